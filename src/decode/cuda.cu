// A step of one layer on the caller's stream: one kernel, or select (K1), then attend with merge (K2).
#include "attend/cuda.h"
#include "core/error.h"
#include "decode/cuda.h"
#include "decode/cuda_fused.h"
#include "select/cuda.h"

namespace tactic::cuda {
namespace {

constexpr std::size_t kBorder = 256;  // of the stretches of scratch

std::size_t padded(std::size_t bytes) { return (bytes + kBorder - 1) / kBorder * kBorder; }

bool dense(const DeviceIndex* index, const Options& options) {
  return index == nullptr || options.method == Method::full || options.mass >= 1;
}

}  // namespace

// Attention's scratch comes first: what must be zero between calls lies in the same place in dense and in sparse steps, which may
// take turns on one scratch, and no list is ever written over it.
std::size_t decode_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex* index, const Options& options) {
  const std::size_t attend_bytes = attend_dense_scratch_bytes(query, kv);
  if (dense(index, options)) return attend_bytes;
  return padded(attend_bytes) + select_scratch_bytes(query, kv, *index, options);
}

void decode_step(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex* index, const Options& options,
                 const DeviceOutput& output, std::uint32_t* status, void* scratch, DeviceStream stream, StepKernels kernels) {
  if (dense(index, options)) return attend_dense(query, kv, output, status, scratch, stream);
  if (kernels != StepKernels::two) {
    const int pieces = fused_pieces(query, kv, *index, options);
    if (pieces > 0) return fused_step(query, kv, *index, options, pieces, output, status, stream);
    if (kernels == StepKernels::one) throw Error(Status::unsupported, "a step as one kernel: not for this call");
  }
  std::byte* rest = static_cast<std::byte*>(scratch) + padded(attend_dense_scratch_bytes(query, kv));
  const DeviceLists lists = select_lists(query, kv, *index, options, rest);
  select(query, kv, *index, options, lists, status, rest, stream);
  attend_lists(query, kv, *index, lists, output, status, scratch, stream);
}

}  // namespace tactic::cuda
