// The handle tactic_sequence.
#pragma once

#include "capi/handle.h"
#include "sequence/sequence.h"

struct tactic_sequence : tactic::capi::Handle {
  explicit tactic_sequence(tactic::Sequence from) : state(std::move(from)) {}
  tactic::Sequence state;
};
