// Questions over documents: SQuAD v2 and HotpotQA files in their published formats.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "ruler.h"

namespace tactic::eval {
namespace {

using nlohmann::json;

json load(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw Error(Status::io, fmt::format("data set {} cannot be read: put it there, or name its folder with --data", path));
  json data = json::parse(in, nullptr, false);
  if (data.is_discarded()) throw Error(Status::corrupt, fmt::format("data set {} is not JSON: fetch it again", path));
  return data;
}

const json& field(const json& object, const char* name, json::value_t type, const std::string& path, const std::string& where) {
  if (!object.is_object() || !object.contains(name))
    throw Error(Status::corrupt, fmt::format("data set {}: {} has no field {}: fetch it again", path, where, name));
  const json& value = object[name];
  if (value.type() != type)
    throw Error(Status::corrupt, fmt::format("data set {}: field {} of {} is a {}, not as published: fetch it again", path, name,
                                             where, value.type_name()));
  return value;
}

constexpr json::value_t kText = json::value_t::string;
constexpr json::value_t kList = json::value_t::array;

}  // namespace

QaData read_squad(const std::string& path) {
  const json data = load(path);
  QaData result;
  for (const json& article : field(data, "data", kList, path, "the file")) {
    for (const json& paragraph : field(article, "paragraphs", kList, path, "an article")) {
      const std::size_t document = result.documents.size();
      result.documents.push_back({field(paragraph, "context", kText, path, "a paragraph").get<std::string>()});
      for (const json& qa : field(paragraph, "qas", kList, path, "a paragraph")) {
        if (qa.value("is_impossible", false)) continue;
        QaItem item{.question = field(qa, "question", kText, path, "a question").get<std::string>(),
                    .answers = {},
                    .documents = {document}};
        for (const json& answer : field(qa, "answers", kList, path, "a question"))
          item.answers.push_back(field(answer, "text", kText, path, "an answer").get<std::string>());
        if (!item.answers.empty()) result.items.push_back(std::move(item));
      }
    }
  }
  if (result.items.empty())
    throw Error(Status::corrupt, fmt::format("data set {} has no answerable question: fetch it again", path));
  return result;
}

QaData read_hotpot(const std::string& path) {
  const json data = load(path);
  if (!data.is_array()) throw Error(Status::corrupt, fmt::format("data set {} is not a list of questions: fetch it again", path));
  QaData result;
  std::map<std::string, std::size_t> known;
  for (const json& entry : data) {
    const std::string where = fmt::format("question {}", result.items.size());
    QaItem item{.question = field(entry, "question", kText, path, where).get<std::string>(),
                .answers = {field(entry, "answer", kText, path, where).get<std::string>()},
                .documents = {}};
    for (const json& paragraph : field(entry, "context", kList, path, where)) {
      if (!paragraph.is_array() || paragraph.size() != 2 || !paragraph[0].is_string() || !paragraph[1].is_array())
        throw Error(Status::corrupt,
                    fmt::format("data set {}: field context of {} is not [title, sentences]: fetch it again", path, where));
      std::string text = paragraph[0].get<std::string>() + "\n";
      for (const json& sentence : paragraph[1]) text += sentence.is_string() ? sentence.get<std::string>() : "";
      const auto [at, fresh] = known.try_emplace(text, result.documents.size());
      if (fresh) result.documents.push_back({text});
      item.documents.push_back(at->second);
    }
    result.items.push_back(std::move(item));
  }
  if (result.items.empty()) throw Error(Status::corrupt, fmt::format("data set {} has no question: fetch it again", path));
  return result;
}

RulerSample make_qa(const RulerRequest& request, const RulerSources& sources) {
  const auto found = sources.qa.find(request.task);
  if (found == sources.qa.end()) {
    throw Error(Status::invalid_argument,
                fmt::format("task {} needs {}: name its folder with --data", request.task,
                            request.task == "qa_1" ? "SQuAD's dev-v2.0.json" : "hotpot_dev_distractor_v1.json"));
  }
  const QaData& data = found->second;
  const auto make = [&](int count) {
    Random random(request.seed * 1000003 + static_cast<std::uint64_t>(request.context) + 29);
    const QaItem& item = data.items[random.below(data.items.size())];
    std::vector<std::size_t> chosen = item.documents;
    for (const std::size_t other : random.sample(data.documents.size(), data.documents.size())) {
      if (static_cast<int>(chosen.size()) >= count) break;
      if (std::find(chosen.begin(), chosen.end(), other) == chosen.end()) chosen.push_back(other);
    }
    random.shuffle(chosen);
    std::string text;
    for (std::size_t i = 0; i < chosen.size(); ++i)
      text += fmt::format("{}Document {}:\n{}", i == 0 ? "" : "\n\n", i + 1, data.documents[chosen[i]].text);
    RulerSample sample;
    sample.context =
        "Answer the question based on the given documents. Only give the answer, without any other words.\n\nThe following are "
        "the given "
        "documents.\n\n" +
        text;
    sample.question =
        "Answer the question based on the given documents. Only give the answer, without any other words.\n\nQuestion: " +
        item.question;
    sample.answer_prefix = "Answer:";
    sample.references = item.answers;
    sample.any_reference = true;
    sample.answer_tokens = 32;
    return sample;
  };
  return make(largest_that_fits(request, 1, static_cast<int>(data.documents.size()), make));
}

}  // namespace tactic::eval
