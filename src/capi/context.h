// The handle tactic_context: a team of threads with the scratch of its calls.
#pragma once

#include <memory>

#include "capi/handle.h"
#include "core/team.h"
#include "decode/decode.h"

struct tactic_context : tactic::capi::Handle {
  std::unique_ptr<tactic::Team> team;
  tactic::WorkspacePtr workspace;
};

namespace tactic::capi {

// A team whose workers are threads of the caller's pool. run() throws Error(invalid_state) when the pool refuses.
std::unique_ptr<Team> make_callback_team(int workers, tactic_parallel_run parallel_run, void* user);

}  // namespace tactic::capi
