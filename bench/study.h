// Studies of quality on real queries, keys and values: bench_study STUDY CAPTURE [every nth layer].
#pragma once

#include "capture.h"

namespace tactic::bench {

// Tables of docs/results/estimation.md: the stages of choosing one by one, targets swept to equal success.
void study_estimation(const program::Capture& capture, int every);

// Tables of docs/results/loss.md: whole decode steps of several methods, P swept; units read against the output's error.
void study_error(const program::Capture& capture, int every);

}  // namespace tactic::bench
