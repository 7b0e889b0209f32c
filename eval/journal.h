// Results as they come: an append-only file of JSON lines, each sample under the hash of its configuration.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace tactic::eval {

using Json = nlohmann::ordered_json;

constexpr int kJournalFormat = 1;

// First line: {"tactic_eval": format, "version": program, "experiment": name}. Then a line a record: {"key", "config", "result"}
// for samples, {"run": {...}} for a start of the program. A line is written whole by one write() and is on the disk before
// append() returns: a kill at any moment costs at most the sample being measured. A last line without its end (power cut) is cut
// off when the file is opened for writing; any other damage is an error that names the line.
class Journal {
 public:
  // Opens for appending and keeps the file locked. Throws Error(io) or Error(corrupt) naming file, line and remedy; results of
  // another format or program version are refused.
  Journal(const std::string& path, const std::string& experiment, const std::string& version);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // The result kept under a key, or null.
  const Json* find(const std::string& key) const;
  void append(const std::string& key, const Json& config, const Json& result);
  void append_run(const Json& run);
  std::size_t samples() const { return results_.size(); }

  // 16 hex digits of the configuration's canonical text.
  static std::string key_of(const Json& config);

 private:
  void write_line(const std::string& line);

  std::string path_;
  int descriptor_ = -1;
  std::unordered_map<std::string, Json> results_;
};

// A journal that is only read, for the report. An unfinished last line is passed over.
struct JournalContent {
  std::string path;
  std::string experiment;
  std::string version;
  std::vector<Json> runs;
  std::vector<Json> samples;  // {"key", "config", "result"}
};
JournalContent read_journal(const std::string& path);

}  // namespace tactic::eval
