// The indexes of a cache's layers as one file.
#pragma once

#include <string>

namespace tactic::llama {

// Of the cache that decoded last. Both throw Error that names the file; a file that is not whole is never left behind.
void save_index(const std::string& path);
// Reads the whole file, then offers each layer its part; layers whose first graph has not run yet get theirs when it does.
void load_index(const std::string& path);
// Forgets all indexes and what load_index() offered.
void drop_indexes();

}  // namespace tactic::llama
