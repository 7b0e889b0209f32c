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

// Stretches of the scratch, each on a 256-byte border.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <typename T>
  T* take(std::size_t count) {
    std::byte* at = base_ + used_;
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

// Of the current device.
struct DeviceFacts {
  int processors = 0;
  int shared_bytes = 0;          // a block can have
  int clusters_at_once[8] = {};  // by log2 of their blocks; 0 where there are none
};
const DeviceFacts& device_facts();

}  // namespace tactic::cuda
