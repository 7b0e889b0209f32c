// What the parts of the benchmark share, and the parts themselves.
#pragma once

#include "cases.h"
#include "harness.h"
#include "settings.h"

namespace tactic::bench::gpu {

struct Session {
  const Settings& settings;
  Timer& timer;
  Results& results;
};

void measure_limits(const Session& session);      // streams, gathers, empty launches
void describe_synthetic(const Session& session);  // the keys that everything else is measured on, beside what was captured
void measure_layers(const Session& session);      // dense and Tactic by stage
void measure_clustering(const Session& session);  // of prompts, a layer at a time
void measure_union(const Session& session);       // one list for the group against one for each query head (paper Fig. 11)
void measure_end_to_end(const Session& session);  // an 8B-shaped decoder, full and with Tactic (paper Fig. 12)

}  // namespace tactic::bench::gpu
