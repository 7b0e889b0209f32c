// Scores of answers.
#include "metrics.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "ruler/ruler.h"

namespace tactic::eval {

std::string normalised_answer(const std::string& text) {
  std::string plain;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 128 && std::ispunct(byte) != 0) continue;
    plain += byte < 128 ? static_cast<char>(std::tolower(byte)) : c;
  }
  std::string result;
  for (const std::string& word : split_words(plain)) {
    if (word == "a" || word == "an" || word == "the") continue;
    result += (result.empty() ? "" : " ") + word;
  }
  return result;
}

double token_f1(const std::string& answer, const std::string& reference) {
  const std::vector<std::string> said = split_words(normalised_answer(answer));
  const std::vector<std::string> wanted = split_words(normalised_answer(reference));
  std::map<std::string, int> left;
  for (const std::string& word : wanted) ++left[word];
  int common = 0;
  for (const std::string& word : said) {
    if (left[word]-- > 0) ++common;
  }
  if (common == 0) return 0;
  const double precision = common / static_cast<double>(said.size());
  const double recall = common / static_cast<double>(wanted.size());
  return 2 * precision * recall / (precision + recall);
}

double best_f1(const std::string& answer, std::span<const std::string> references, bool first_line) {
  std::string counted = answer;
  if (first_line) {
    const std::size_t begin = counted.find_first_not_of('\n');
    counted = begin == std::string::npos ? "" : counted.substr(begin, counted.find('\n', begin) - begin);
  }
  double best = 0;
  for (const std::string& reference : references) best = std::max(best, token_f1(counted, reference));
  return best;
}

}  // namespace tactic::eval
