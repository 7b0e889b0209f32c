// The door of the fused step: which calls it takes, how many blocks a head, launch.
#include <algorithm>

#include "attend/cuda_launch.h"
#include "core/error.h"
#include "decode/cuda_fused.h"
#include "decode/cuda_fused_kernel.cuh"
#include "select/cuda_device.h"

namespace tactic::cuda {
namespace {

using FusedKernel = void (*)(FusedTask);

constexpr int kFewestFusedPieces = 2;
// As many pieces as there are, but eight leave processors to the next step's blocks, which then start early and fetch what they
// need of the index (an H200, 1 x 128K, 1.0% of the tokens listed: 15.7 us with 8 pieces, 16.8 with 9; 1.7%: 17.5 and 17.9; 2.5%:
// 20.0 and 19.8; 5%: 26.3 and 25.1). Only where much is listed more are faster: above this P.
constexpr float kHighMass = 0.965f;
constexpr int kShortPiece = 256;  // columns: eight such pieces are always enough (1 x 32K, 5%: 14.2 us, 14.9 with 9)
// Tokens of a head of two pieces. Beyond, a long head keeps its two processors while the others rest: two kernels (8 x 128K, 5%,
// d = 64: 59 us for 75; d = 128, clusters of 64: 85 for 95; 8 x 64K, 5%: 57 us as one, 60 as two).
constexpr int kLongestHalf = 96 * 1024;

struct FusedPlan {
  FusedKernel kernel = nullptr;
  std::size_t bytes = 0;  // of shared memory
};

template <typename Half, int Group, int Dim>
FusedPlan plan_shape(FusedTask& task) {
  using Shape = FusedShape<SelectShape<Group, Dim, true>, MatrixMath<Half, false, Dim, 1, true>, 2>;
  return {fused_kernel<Shape>, FusedShared<Shape>().place(nullptr, task)};
}

template <typename Half, int Group>
FusedPlan plan_dim(FusedTask& task) {
  return task.attend.dim == 64 ? plan_shape<Half, Group, 64>(task) : plan_shape<Half, Group, 128>(task);
}

template <typename Half>
FusedPlan plan_type(FusedTask& task) {
  return task.attend.group <= 4 ? plan_dim<Half, 4>(task) : plan_dim<Half, 8>(task);
}

FusedPlan make_plan(FusedTask& task) {
  return task.attend.k_type == DeviceType::bf16 ? plan_type<__nv_bfloat16>(task) : plan_type<__half>(task);
}

FusedTask make_task(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options, int pieces,
                    const DeviceOutput& output, std::uint32_t* status) {
  FusedTask task{};
  task.select = select_task(query, kv, index, options, pieces, status);
  task.attend = attend_args(query, kv, index, output, status);
  task.pieces = pieces;
  const int quads = task.attend.group * task.attend.v_dim / 4;
  task.share = (quads + pieces - 1) / pieces;
  task.by_share = divisor(static_cast<std::uint32_t>(task.share));
  return task;
}

Launch launch_of(const FusedPlan& plan, const DeviceKv& kv, int pieces) {
  Launch shape;
  shape.grid = dim3(static_cast<unsigned>(pieces), static_cast<unsigned>(kv.kv_heads), static_cast<unsigned>(kv.sequences));
  shape.block = 32 * kFusedWarps;
  shape.shared_bytes = plan.bytes;
  shape.cluster = pieces;
  shape.dependent = true;
  return shape;
}

void allow(const FusedPlan& plan, int pieces) {
  check(cudaFuncSetAttribute(plan.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.bytes)),
        "shared memory of a fused step");
  if (pieces > 8)
    check(cudaFuncSetAttribute(plan.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster of a fused step");
}

// Thread-block clusters of the plan that run at the same time.
int clusters_of(const FusedPlan& plan, int pieces) {
  allow(plan, pieces);
  Launch shape;
  shape.block = 32 * kFusedWarps;
  shape.shared_bytes = plan.bytes;
  shape.cluster = pieces;
  return clusters_at_once(plan.kernel, shape);
}

// The same for blocks that fill a processor, as all plans' do by registers: [pieces]. Asked once a device.
const int* clusters_by_pieces(const FusedPlan& plan) {
  constexpr int kDevices = 64;
  static int counts[kDevices][kMostFusedPieces + 1];
  int device = 0;
  check(cudaGetDevice(&device), "current CUDA device");
  int* own = counts[std::min(device, kDevices - 1)];
  for (int pieces = kMostFusedPieces; own[1] == 0 && pieces > 0; --pieces)
    own[pieces] = pieces == 1 ? device_facts().processors : clusters_of(plan, pieces);
  return own;
}

bool takes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options) {
  const int dim = query.shape.head_dim;
  return has_sm90_code() && chooses_here(options) && index.int8_centroids && query.shape.group() <= 8 &&
         (dim == 64 || dim == 128) && query.shape.v_head_dim == dim && kv.k.type == kv.v.type && query.type == kv.k.type &&
         (kv.k.type == DeviceType::bf16 || kv.k.type == DeviceType::f16);
}

}  // namespace

int fused_pieces(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options) {
  if (!takes(query, kv, index, options)) return 0;
  const int slots = kv.sequences * kv.kv_heads, processors = device_facts().processors;
  if (slots * kFewestFusedPieces > processors) return 0;
  int most = kMostFusedPieces, few = most;
  while (slots * few > processors / 2 && few > 8) --few;
  if (options.mass < kHighMass || index.capacity <= kShortPiece * 8) {
    FusedTask task = make_task(query, kv, index, options, few, {}, nullptr);
    if (make_plan(task).bytes <= static_cast<std::size_t>(device_facts().shared_bytes)) most = few;
  }
  for (int pieces = most; pieces >= kFewestFusedPieces; --pieces) {
    FusedTask task = make_task(query, kv, index, options, pieces, {}, nullptr);
    const FusedPlan plan = make_plan(task);
    if (plan.bytes > static_cast<std::size_t>(device_facts().shared_bytes)) return 0;
    if (clusters_by_pieces(plan)[pieces] >= slots) return pieces > 2 || index.token_capacity <= kLongestHalf ? pieces : 0;
  }
  return 0;
}

void fused_step(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options, int pieces,
                const DeviceOutput& output, std::uint32_t* status, DeviceStream stream) {
  FusedTask task = make_task(query, kv, index, options, pieces, output, status);
  const FusedPlan plan = make_plan(task);
  allow(plan, pieces);
  launch("fused step", plan.kernel, launch_of(plan, kv, pieces), stream, task);
}

}  // namespace tactic::cuda
