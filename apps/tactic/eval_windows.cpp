// Windows of the user's texts.
#include "eval_windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <span>

#include "core/error.h"
#include "files.h"

namespace tactic::program {
namespace {

// Windows lie as far apart as if so many steps were taken: experiments of up to so many share their prompts, which are read once.
constexpr std::int64_t kSharedSteps = 32;

// 0 .. count - 1 in bit-reversed order of the next power of two.
std::vector<std::int64_t> spread_order(std::int64_t count) {
  int bits = 0;
  while ((std::int64_t{1} << bits) < count) ++bits;
  std::vector<std::int64_t> order;
  for (std::int64_t i = 0; i < (std::int64_t{1} << bits); ++i) {
    std::int64_t reversed = 0;
    for (int b = 0; b < bits; ++b) reversed |= ((i >> b) & 1) << (bits - 1 - b);
    if (reversed < count) order.push_back(reversed);
  }
  return order;
}

}  // namespace

void describe(const Window& window, eval::Json& config) {
  config["text"] = window.text;
  config["window"] = window.number;
  config["context"] = window.prompt.size();
  config["steps"] = window.steps.size();
}

std::string hash_of(const Window& window) {
  const auto bytes = std::as_bytes(std::span(window.prompt.data(), window.prompt.size()));
  const auto more = std::as_bytes(std::span(window.steps.data(), window.steps.size()));
  return fmt::format("{:016x}", hash_bytes(more, hash_bytes(bytes)));
}

std::vector<Window> make_windows(const Model& model, const std::vector<std::string>& texts, int context, int steps, int count) {
  if (texts.empty()) throw Error(Status::invalid_argument, "no text: name one or several with --text");
  const Tokens start = model.tokenise("", true, false);
  std::vector<std::vector<Window>> by_text;
  for (const std::string& path : texts) {
    const Tokens tokens = model.tokenise(read_document(path), false, false);
    const std::int64_t fresh = context - static_cast<std::int64_t>(start.size());
    const std::int64_t length = fresh + std::max<std::int64_t>(steps, kSharedSteps);
    const std::int64_t windows = static_cast<std::int64_t>(tokens.size()) / length;
    if (windows == 0) {
      throw Error(Status::invalid_argument,
                  fmt::format("text {} has {} tokens, {} fewer than a window of --context {} and --steps {} needs: name a longer "
                              "one or ask for less",
                              path, tokens.size(), length - static_cast<std::int64_t>(tokens.size()), context, steps));
    }
    std::vector<Window> made;
    for (const std::int64_t block : spread_order(windows)) {
      if (static_cast<int>(made.size()) == count) break;
      Window window;
      window.text = std::filesystem::path(path).filename().string();
      window.number = static_cast<int>(made.size());
      window.first = block * length;
      window.prompt = start;
      const auto from = tokens.begin() + window.first;
      window.prompt.insert(window.prompt.end(), from, from + fresh);
      window.steps.assign(from + fresh, from + fresh + steps);
      made.push_back(std::move(window));
    }
    if (static_cast<int>(made.size()) < count)
      fmt::print(stderr, "tactic: {} has only {} windows of {} tokens, not {}\n", path, made.size(), length, count);
    by_text.push_back(std::move(made));
  }
  std::vector<Window> all;
  for (int i = 0; i < count; ++i) {
    for (auto& windows : by_text) {
      if (i < static_cast<int>(windows.size())) all.push_back(std::move(windows[static_cast<std::size_t>(i)]));
    }
  }
  return all;
}

}  // namespace tactic::program
