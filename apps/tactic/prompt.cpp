// From document and question to the tokens of one chat turn: document first, question last.
#include "prompt.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace tactic::program {
namespace {

constexpr std::string_view kPlace = "<<tactic:content>>";  // stands for the content while the template is applied

struct Frame {
  std::string before;
  std::string after;
};

Frame chat_frame(const Model& model) {
  const char* known = llama_model_chat_template(model.get(), nullptr);
  const std::string place(kPlace);
  const llama_chat_message message = {"user", place.c_str()};
  std::string text(1024, '\0');
  std::int32_t length = -1;
  if (known != nullptr) {
    length = llama_chat_apply_template(known, &message, 1, true, text.data(), static_cast<std::int32_t>(text.size()));
    if (length > static_cast<std::int32_t>(text.size())) {
      text.resize(static_cast<std::size_t>(length));
      length = llama_chat_apply_template(known, &message, 1, true, text.data(), length);
    }
  }
  text.resize(static_cast<std::size_t>(std::max(length, 0)));
  const std::size_t at = text.find(kPlace);
  if (length <= 0 || at == std::string::npos) return {"", "\n\nAnswer:"};
  return {text.substr(0, at), text.substr(at + kPlace.size())};
}

void append(Tokens& to, const Tokens& more) { to.insert(to.end(), more.begin(), more.end()); }

}  // namespace

Prompt make_prompt(const Model& model, const std::string& document, const std::string& question, int context, int answer,
                   Truncate truncate) {
  const Frame frame = chat_frame(model);
  Prompt prompt;
  prompt.kept = model.tokenise(frame.before, true, true);
  prompt.closing = model.tokenise("\n\n" + question, false, false);
  append(prompt.closing, model.tokenise(frame.after, false, true));
  const int trained = model.shape().trained_context;
  const std::int64_t room = context > 0 ? std::min(context, trained) : trained;
  const auto reserved = static_cast<std::int64_t>(prompt.size()) + answer;
  Tokens text = model.tokenise(document, false, false);
  append(prompt.kept, fit_document(std::move(text), room - reserved, truncate, model.tokenise("\n[...]\n", false, false), room));
  return prompt;
}

}  // namespace tactic::program
