// Choices that need more than one look at a head's columns: made by kernels of their own from what the selection kernel exports.
#pragma once

#include <cstddef>

#include "core/options.h"
#include "select/cuda_piece.h"

namespace tactic::cuda {

// Goal mass: lists with one stretch per (sequence, head).
void choose_by_mass(const SelectTask& task, const Options& options, DeviceStream stream);

// Algorithm 1 for every query head, the union as lists of kPaperPieces stretches per (sequence, head), nothing represented.
constexpr int kPaperPieces = 8;
std::size_t paper_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options);
void choose_by_paper(const SelectTask& task, const Options& options, void* scratch, DeviceStream stream);

}  // namespace tactic::cuda
