// Reading, writing and gathering budgets.
#include "budget_file.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace tactic::llama {
namespace {

constexpr const char* kFormat = "tactic budgets 1";

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw Error(Status::invalid_argument, "budget file '" + path + "' " + what + ": make it with save_budgets");
}

std::vector<std::vector<double>> read_table(const std::string& path, const nlohmann::json& json, const char* field) {
  const auto table = json.find(field);
  if (table == json.end() || !table->is_array() || table->empty()) refuse(path, std::string("has no table '") + field + "'");
  std::vector<std::vector<double>> rows;
  for (const auto& row : *table) {
    if (!row.is_array() || row.empty() || (!rows.empty() && row.size() != rows.front().size())) {
      refuse(path, std::string("has rows of other lengths in '") + field + "', layer " + std::to_string(rows.size()));
    }
    rows.emplace_back();
    for (const auto& value : row) {
      if (!value.is_number() || !(value.get<double>() >= 0) || value.get<double>() > 1e9) {
        refuse(path, std::string("has a value that is no number of tokens in '") + field + "', layer " +
                         std::to_string(rows.size() - 1));
      }
      rows.back().push_back(value.get<double>());
    }
  }
  return rows;
}

double mean_of(const std::vector<std::vector<double>>& table) {
  double sum = 0, count = 0;
  for (const auto& row : table) {
    for (const double value : row) {
      sum += value;
      ++count;
    }
  }
  return sum / count;
}

}  // namespace

BudgetTables read_budgets(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw Error(Status::invalid_argument, "budget file '" + path + "' cannot be read: name a file of save_budgets");
  const nlohmann::json json = nlohmann::json::parse(in, nullptr, false);
  if (json.is_discarded() || !json.is_object()) refuse(path, "is no JSON object");
  if (json.value("format", nlohmann::json()) != kFormat) refuse(path, std::string("is not of format '") + kFormat + "'");
  BudgetTables tables;
  tables.kv_head = read_table(path, json, "kv_head");
  tables.query_head = read_table(path, json, "query_head");
  if (tables.kv_head.size() != tables.query_head.size()) refuse(path, "has tables of different numbers of layers");
  const auto number = [&](const char* field) {
    const auto value = json.find(field);
    return value != json.end() && value->is_number() ? value->get<double>() : 0.0;
  };
  tables.mass = number("mass");
  tables.rows = static_cast<std::int64_t>(std::min(number("rows"), 1e15));
  tables.prompt_tokens = number("prompt_tokens");
  const auto method = json.find("method");
  if (method != json.end() && method->is_string()) tables.method = method->get<std::string>();
  return tables;
}

void write_budgets(const std::string& path, const BudgetTables& tables) {
  nlohmann::ordered_json json;
  json["format"] = kFormat;
  json["method"] = tables.method;
  json["mass"] = tables.mass;
  json["rows"] = tables.rows;
  json["prompt_tokens"] = tables.prompt_tokens;
  json["kv_head_mean"] = mean_of(tables.kv_head);
  json["query_head_mean"] = mean_of(tables.query_head);
  json["kv_head"] = tables.kv_head;
  json["query_head"] = tables.query_head;
  const std::string partial = path + ".part";
  std::ofstream out(partial, std::ios::trunc);
  out << json.dump() << '\n';
  out.close();
  if (!out || std::rename(partial.c_str(), path.c_str()) != 0) {
    std::remove(partial.c_str());
    throw Error(Status::io, "budget file '" + path + "' cannot be written: name another");
  }
}

void BudgetLog::add(int layer, std::span<const std::int64_t> kv, std::span<const std::int64_t> query, std::int64_t generated,
                    std::int64_t prompt) {
  if (layer < 0) return;
  if (layers_.size() <= static_cast<std::size_t>(layer)) layers_.resize(static_cast<std::size_t>(layer) + 1);
  Sums& sums = layers_[static_cast<std::size_t>(layer)];
  if (sums.kv.size() != kv.size() || sums.query.size() != query.size()) {  // the first row, or another model
    sums = {};
    sums.kv.assign(kv.size(), 0);
    sums.query.assign(query.size(), 0);
  }
  ++sums.rows;
  sums.prompt += static_cast<double>(prompt);
  for (std::size_t h = 0; h < kv.size(); ++h) sums.kv[h] += static_cast<double>(kv[h] - generated);
  for (std::size_t h = 0; h < query.size(); ++h) sums.query[h] += static_cast<double>(query[h] - generated);
}

BudgetTables BudgetLog::means() const {
  BudgetTables tables;
  for (const Sums& sums : layers_) {
    if (sums.rows == 0) throw Error(Status::invalid_state, "no budgets to save: some layer's attention was left to the engine");
    const auto per_row = [&](std::vector<double> values) {
      for (double& value : values) value /= static_cast<double>(sums.rows);
      return values;
    };
    tables.kv_head.push_back(per_row(sums.kv));
    tables.query_head.push_back(per_row(sums.query));
    tables.rows += sums.rows;
    tables.prompt_tokens += sums.prompt;
  }
  if (tables.rows == 0) throw Error(Status::invalid_state, "no budgets to save: nothing was decoded since reset_stats()");
  tables.prompt_tokens /= static_cast<double>(tables.rows);
  return tables;
}

}  // namespace tactic::llama
