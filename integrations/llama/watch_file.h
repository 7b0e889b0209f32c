// What the plug-in saw of a prompt, as a file beside the engine's own state: queries of its last tokens, h2o's sums.
#pragma once

#include <string>

namespace tactic::llama {

// Of the cache that decoded last. Both throw Error that names the file; a file that is not whole is never left behind.
void save_watch(const std::string& path);
// For the layers that are there: the model must have computed something in this context before.
void load_watch(const std::string& path);

}  // namespace tactic::llama
