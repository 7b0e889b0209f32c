#include "eval/spec.h"

#include "support.h"

namespace tactic::eval {
namespace {

Spec parse(const char* arms, const SpecChanges& changes = {}) {
  return parse_spec({{"name", "x"}, {"kind", "closeness"}, {"title", "t"}, {"arms", Json::parse(arms)}}, "x", changes);
}

std::vector<std::string> labels(const Spec& spec) {
  std::vector<std::string> result;
  for (const Arm& arm : spec.arms) result.push_back(arm.label);
  return result;
}

using Labels = std::vector<std::string>;

TEST(Spec, ListsBecomeArms) {
  const Spec spec = parse(R"([{"method": "full"}, {"method": "paper", "mass": [0.7, 0.9]},
    {"method": ["quest", "snapkv"], "mass": [0.7, 0.9], "budget_of": "paper"}])");
  EXPECT_EQ(labels(spec), (Labels{"full", "paper P=0.7", "paper P=0.9", "quest B=paper P=0.7", "snapkv B=paper P=0.7",
                                  "quest B=paper P=0.9", "snapkv B=paper P=0.9"}));
  EXPECT_EQ(spec.arms[3].budget_of, "paper P=0.7");
  EXPECT_EQ(spec.arms[3].mass, 0);
}

TEST(Spec, EachTakesOneSettingAtATime) {
  const Spec spec = parse(
      R"([{"method": "tactic", "mass": 0.9, "settings": {"goal": "mass"}, "each": {"verify": 0, "metric": ["l2", "diagonal"]}}])");
  EXPECT_EQ(labels(spec), (Labels{"tactic P=0.9 goal=mass verify=0", "tactic P=0.9 goal=mass metric=l2",
                                  "tactic P=0.9 goal=mass metric=diagonal"}));
}

TEST(Spec, ChangesReplaceMassesAndKeepSourcesOfBudgets) {
  SpecChanges changes;
  changes.masses = {0.5};
  changes.methods = {"quest"};
  changes.settings = {"dense_layers=2"};
  const Spec spec =
      parse(R"([{"method": ["paper", "tactic"], "mass": [0.7, 0.9]}, {"method": "quest", "mass": [0.7], "budget_of": "paper"}])",
            changes);
  EXPECT_EQ(labels(spec), (Labels{"paper P=0.5 dense_layers=2", "quest B=paper P=0.5 dense_layers=2 dense_layers=2"}));
}

TEST(Spec, ErrorsNameOriginAndField) {
  EXPECT_MENTIONS(message_of([] { parse(R"([{"mass": 0.5}])"); }), "experiment x: field arms.method is missing");
  EXPECT_MENTIONS(message_of([] { parse(R"([{"method": "quest", "mass": 0.9, "budget_of": "paper"}])"); }), "no arm before it");
  EXPECT_MENTIONS(message_of([] { parse(R"([{"method": "paper", "mass": 1.5}])"); }), "1.5");
  EXPECT_MENTIONS(message_of([] { parse_spec({{"name", "x"}, {"kind", "closeness"}}, "x"); }), "field title is missing");
  EXPECT_MENTIONS(message_of([] { parse(R"([{"method": "full"}])", {.masses = {}, .methods = {}, .settings = {"verify"}}); }),
                  "NAME=VALUE");
}

TEST(Spec, EveryBuiltInExperimentParses) {
  for (const BuiltIn& known : built_in_experiments()) {
    const Spec spec = parse_spec(Json::parse(known.text), known.name);
    EXPECT_EQ(spec.name, known.name);
    EXPECT_FALSE(spec.title.empty());
  }
  EXPECT_EQ(built_in_experiments().size(), 17u);
}

}  // namespace
}  // namespace tactic::eval
