// Windows: pieces of the user's texts, spread over each text so that any number of first ones represents it.
#pragma once

#include <string>
#include <vector>

#include "engine.h"
#include "eval/spec.h"

namespace tactic::program {

struct Window {
  std::string text;        // file name without folder
  int number = 0;          // 0, 1, ...: of the text
  std::int64_t first = 0;  // token of the text
  Tokens prompt;           // the model's start token, if it has one, and what follows of the text
  Tokens steps;            // the tokens that come next
};

// Into the configuration of a sample: which text, window, context and steps.
void describe(const Window& window, eval::Json& config);
// Of prompt and steps, 16 hexadecimal digits.
std::string hash_of(const Window& window);

// Non-overlapping windows of `context` + `steps` (32 at least) tokens, at most `count` a text, windows of the texts in turn. The
// order within a text is that of a binary fraction's bits reversed (0, 1/2, 1/4, 3/4, ...): more windows later leave the earlier
// ones as they are. Throws Error(invalid_argument) when a text has not one window, and says how many tokens are missing.
std::vector<Window> make_windows(const Model& model, const std::vector<std::string>& texts, int context, int steps, int count);

}  // namespace tactic::program
