// Scores of answers.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace tactic::eval {

// Lower case, no punctuation, no a/an/the, single spaces (SQuAD's normalisation, as LongBench uses it).
std::string normalised_answer(const std::string& text);

// F1 of the normalised words as multisets; 0 when none is common.
double token_f1(const std::string& answer, const std::string& reference);

// The largest over the references. first_line: only the answer's first non-empty line counts (few-shot tasks).
double best_f1(const std::string& answer, std::span<const std::string> references, bool first_line);

}  // namespace tactic::eval
