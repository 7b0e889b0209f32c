// Results as they come: an append-only file of JSON lines.
#include "journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "core/error.h"

namespace tactic::eval {
namespace {

constexpr const char* kRemedy = "name another folder with --output";

std::string read_whole(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(Status::io, fmt::format("results {} cannot be read ({}): {}", path, std::strerror(errno), kRemedy));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// Offset behind the last whole line.
std::size_t whole_lines(const std::string& text) {
  const std::size_t end = text.rfind('\n');
  return end == std::string::npos ? 0 : end + 1;
}

Json parse_line(const std::string& line, const std::string& path, std::size_t number) {
  Json json = Json::parse(line, nullptr, false);
  if (json.is_discarded() || !json.is_object()) {
    throw Error(Status::corrupt,
                fmt::format("results {} line {} is not a JSON object: delete that line, its sample is then measured again", path,
                            number));
  }
  return json;
}

JournalContent parse(const std::string& text, const std::string& path) {
  JournalContent content;
  content.path = path;
  std::size_t number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    Json json = parse_line(line, path, ++number);
    if (number == 1) {
      if (!json.contains("tactic_eval") || !json["tactic_eval"].is_number_integer() || !json.contains("experiment"))
        throw Error(Status::corrupt, fmt::format("{} does not begin as results of tactic eval do: {}", path, kRemedy));
      if (json["tactic_eval"] != kJournalFormat) {
        throw Error(Status::unsupported, fmt::format("results {} have format {}, this program writes format {}: {}", path,
                                                     json["tactic_eval"].dump(), kJournalFormat, kRemedy));
      }
      content.experiment = json["experiment"].get<std::string>();
      content.version = json.value("version", "");
    } else if (json.contains("run")) {
      content.runs.push_back(std::move(json["run"]));
    } else if (json.contains("key") && json.contains("config") && json.contains("result")) {
      content.samples.push_back(std::move(json));
    } else {
      throw Error(Status::corrupt,
                  fmt::format("results {} line {} has neither run nor key, config and result: delete that line", path, number));
    }
  }
  return content;
}

std::uint64_t fnv(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  // FNV's low bits mix well, its high ones less: one more round.
  hash ^= hash >> 32;
  hash *= 0xd6e8feb86659fd93u;
  return hash ^ (hash >> 32);
}

}  // namespace

std::string Journal::key_of(const Json& config) {
  // Sorted keys: the order in which a configuration was put together does not count.
  return fmt::format("{:016x}", fnv(nlohmann::json(config).dump()));
}

Journal::Journal(const std::string& path, const std::string& experiment, const std::string& version) : path_(path) {
  descriptor_ = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0)
    throw Error(Status::io, fmt::format("results {} cannot be opened ({}): {}", path, std::strerror(errno), kRemedy));
  try {
    if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0)
      throw Error(Status::io, fmt::format("results {} are being written by another run: wait for it, or {}", path, kRemedy));
    const std::string text = read_whole(path);
    const std::size_t whole = whole_lines(text);
    if (whole < text.size() && ftruncate(descriptor_, static_cast<off_t>(whole)) != 0)
      throw Error(Status::io, fmt::format("results {} cannot be written ({}): {}", path, std::strerror(errno), kRemedy));
    if (whole == 0) {
      write_line(Json{{"tactic_eval", kJournalFormat}, {"version", version}, {"experiment", experiment}}.dump());
      return;
    }
    JournalContent content = parse(text.substr(0, whole), path);
    if (content.experiment != experiment) {
      throw Error(Status::invalid_argument,
                  fmt::format("results {} are of experiment {}, not {}: {}", path, content.experiment, experiment, kRemedy));
    }
    if (content.version != version) {
      throw Error(Status::unsupported,
                  fmt::format("results {} were written by version {}, this is {}: {}", path, content.version, version, kRemedy));
    }
    for (Json& sample : content.samples) results_[sample["key"].get<std::string>()] = std::move(sample["result"]);
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

Journal::~Journal() { close(descriptor_); }

const Json* Journal::find(const std::string& key) const {
  const auto found = results_.find(key);
  return found == results_.end() ? nullptr : &found->second;
}

void Journal::append(const std::string& key, const Json& config, const Json& result) {
  write_line(Json{{"key", key}, {"config", config}, {"result", result}}.dump());
  results_[key] = result;
}

void Journal::append_run(const Json& run) { write_line(Json{{"run", run}}.dump()); }

void Journal::write_line(const std::string& line) {
  const std::string text = line + "\n";
  const ssize_t written = write(descriptor_, text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size()) || fdatasync(descriptor_) != 0) {
    const std::string reason = written < 0 ? std::strerror(errno) : "the disk is full";
    throw Error(Status::io,
                fmt::format("results {} cannot be written ({}): free some space and start again, finished samples are kept",
                            path_, reason));
  }
}

JournalContent read_journal(const std::string& path) {
  const std::string text = read_whole(path);
  JournalContent content = parse(text.substr(0, whole_lines(text)), path);
  if (content.experiment.empty()) throw Error(Status::corrupt, fmt::format("results {} are empty: run the experiment", path));
  return content;
}

}  // namespace tactic::eval
