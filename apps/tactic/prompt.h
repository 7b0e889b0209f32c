// From document and question to the tokens of one chat turn: document first, question last.
#pragma once

#include <string>

#include "document.h"
#include "engine.h"

namespace tactic::program {

// The parts of the prompt. opening + document are the same for every question, so their K and V can be kept.
struct Prompt {
  Tokens kept;     // the template's beginning and the document
  Tokens closing;  // the question and the template's end

  std::size_t size() const { return kept.size() + closing.size(); }
};

// The model's own chat template where the engine knows it, else plain text. Special tokens written in document or question stay
// text. `context`: most tokens of all, at most the model's; 0: the model's. `answer`: tokens to leave room for. Throws
// Error(invalid_argument) when it doesn't fit the model's context (see fit_document).
Prompt make_prompt(const Model& model, const std::string& document, const std::string& question, int context, int answer,
                   Truncate truncate);

}  // namespace tactic::program
