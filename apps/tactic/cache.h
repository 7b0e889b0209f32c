// Prefilled documents on disk, so that the next question starts at once.
//
// A document is two files named by a key: KEY.state (the engine's K and V, with checksum) and KEY-OPTIONS.index (the clusters).
// h2o adds KEY.watch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "document.h"
#include "engine.h"

namespace tactic::program {

struct CachedDocument {
  std::vector<std::uint8_t> state;
  double prefill_seconds = 0;  // what reading the document took when it was new
};

class Cache {
 public:
  // Makes the folder if need be. Throws Error(io) when it can't be written.
  explicit Cache(std::string folder);
  // $XDG_CACHE_HOME/tactic or ~/.cache/tactic.
  static std::string default_folder();

  // Of what the prompt's K and V depend on: the model file's identity, the tokens and the engine's version.
  static std::uint64_t key_of(const Model& model, const Tokens& tokens);

  // nullopt: not there. Throws Error(corrupt) naming file and remedy when it is damaged.
  std::optional<CachedDocument> find(std::uint64_t key, const Tokens& tokens) const;
  void keep(std::uint64_t key, const Tokens& tokens, const CachedDocument& document) const;
  // Throws Error(io) if the disk has no room for `bytes` more.
  void require_room(std::uint64_t bytes) const;

  std::string index_path(std::uint64_t key, std::uint64_t options) const;
  std::string watch_path(std::uint64_t key) const;  // what h2o needs of a prompt besides K and V
  const std::string& folder() const { return folder_; }

 private:
  std::string state_path(std::uint64_t key) const;

  std::string folder_;
};

}  // namespace tactic::program
