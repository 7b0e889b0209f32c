// What the choice works on; shared by its copies for the instruction sets.
#pragma once

#include "select/select.h"

namespace tactic {

struct ChooseTask {
  const HeadTable* table;
  int group;
  const float* mass;
  const float* fixed;
  const float* target;
  bool joint;
  std::uint8_t* chosen;
  std::int32_t* list;  // or null
  float* covered;      // or null
  SelectScratch* scratch;
};

}  // namespace tactic
