// How rows get from the caches into a warp's ring of stages in shared memory, by asynchronous copies that run ahead of the
// arithmetic by the ring's length, and lookups of token numbers and block ids that run ahead of the copies.
//
// A stage holds one tile: of tokens, 16 rows of K, then 16 of V; of represented clusters, 32 rows of mean V in int8, 32 scales,
// then log weights [32, G]. Row strides are odd multiples of 16 bytes, which keeps ldmatrix free of bank conflicts. The last 16
// bytes say which entries are valid.
#pragma once

#include "attend/cuda_work.cuh"

namespace tactic::cuda {

constexpr int kStageHead = 16;  // bytes at a stage's end: valid mask, whether represented

__host__ __device__ constexpr int row_stride(int chunks) { return (chunks | 1) * 16; }
__host__ __device__ constexpr int stage_bytes(int k_chunks, int v_chunks, int v_dim, int group, bool represented) {
  const int tokens = kTile * (row_stride(k_chunks) + row_stride(v_chunks));
  const int clusters = represented ? kRepresentedTile * (row_stride(v_dim / 16) + 4 + 4 * group) : 0;
  return (tokens > clusters ? tokens : clusters) + kStageHead;
}

struct StageHead {
  unsigned valid;  // a bit per entry
  unsigned represented;
};

template <int kStages>
class Ring {
 public:
  __device__ Ring(const AttendArgs& a, unsigned char* memory, const int* first_tile, const Stretch& stretch, int warp, int warps)
      : a_(a),
        memory_(shared_address(memory)),
        bytes_(a.ring_bytes / kStages),
        lane_(static_cast<int>(threadIdx.x) % 32),
        finder_(a, first_tile, stretch.problem),
        end_(stretch.end),
        warps_(warps) {
    // the tiles of a block go round its warps by their number in the whole line, so that short problems do not pile up on warp 0
    next_ = stretch.begin + (warp - stretch.begin % warps + warps) % warps;
    first_ = next_;
  }

  __device__ int first() const { return first_; }

  template <typename Rows>
  __device__ void start(const Rows& rows) {
    tile_ = find();
    const Tile second = find();
    place_ = locate(tile_);
    tile_ = second;
#pragma unroll
    for (int s = 0; s < kStages; ++s) refill(rows, s);
  }

  // Waits for the oldest stage.
  __device__ std::uint32_t wait(int stage) const {
    wait_copies<kStages - 1>();
    __syncwarp();
    return memory_ + stage * bytes_;
  }
  __device__ StageHead head(std::uint32_t stage) const {
    StageHead head;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(head.valid), "=r"(head.represented)
                 : "r"(stage + bytes_ - kStageHead)
                 : "memory");
    return head;
  }

  // Copies the next tile into the stage, whose contents every lane has read.
  template <typename Rows>
  __device__ void refill(const Rows& rows, int stage) {
    const Tile later = find();
    if (place_.count > 0) copy(rows, memory_ + stage * bytes_);
    commit_copies();
    place_ = locate(tile_);
    tile_ = later;
  }

 private:
  struct Place {
    int count, entry, block, problem, place;
    bool represented, valid;
  };

  __device__ Tile find() {
    if (next_ >= end_) return {-1, 0, 0, 0, false};
    const Tile tile = finder_.find(next_);
    next_ += warps_;
    return tile;
  }

  // Checks token numbers and asks for their blocks.
  __device__ Place locate(const Tile& tile) const {
    Place place{tile.count, tile.entry, 0, tile.problem, tile.place, tile.represented, false};
    if (tile.count == 0) return place;
    const int sequence = tile.problem / a_.kv_heads;
    const int limit = tile.represented ? min(a_.clusters[tile.problem], a_.capacity) : a_.lengths[sequence];
    place.valid = static_cast<unsigned>(tile.entry) < static_cast<unsigned>(max(limit, 0));
    const int mine = tile.represented ? lane_ : lane_ % kTile;
    if (!place.valid && mine < tile.count) atomicOr(a_.status + sequence, device_status::bad_index);
    if (a_.block_table != nullptr && !tile.represented && place.valid) {
      const int block = a_.block_shift >= 0 ? tile.entry >> a_.block_shift : tile.entry / a_.block_size;
      place.block = a_.block_table[static_cast<std::size_t>(sequence) * a_.max_blocks + block];
    }
    return place;
  }

  template <typename Rows>
  __device__ void copy(const Rows& rows, std::uint32_t stage) {
    const unsigned problem = static_cast<unsigned>(place_.problem);
    if (place_.represented) {
      const unsigned valid = __ballot_sync(kWarp, place_.valid);
      copy_represented(stage, valid);
      set_head(stage, valid, 1);
      return;
    }
    const unsigned sequence = problem / a_.kv_heads, kv_head = problem % a_.kv_heads;
    // lanes 0 .. 15 know the rows of K, lanes 16 .. 31 those of V
    const RowSteps& steps = lane_ < kTile ? a_.k : a_.v;
    unsigned row = kv_head * steps.head;
    bool valid = place_.valid;
    if (a_.block_table == nullptr) {
      row += sequence * steps.sequence + static_cast<unsigned>(place_.entry) * steps.token;
    } else {
      if (a_.block_count > 0 && valid && static_cast<unsigned>(place_.block) >= static_cast<unsigned>(a_.block_count)) {
        atomicOr(a_.status + sequence, device_status::bad_block);
        valid = false;
      }
      const int in_block =
          a_.block_shift >= 0 ? place_.entry & (a_.block_size - 1) : place_.entry % a_.block_size;
      row += static_cast<unsigned>(place_.block) * steps.block + static_cast<unsigned>(in_block) * steps.token;
    }
    const unsigned mask = __ballot_sync(kWarp, valid) & 0xffffu;
    if (!valid) row = 0;
    copy_rows(stage, a_.k.data, row, 0, rows.k_chunks(), kTile, mask);
    copy_rows(stage + kTile * row_stride(rows.k_chunks()), a_.v.data, row, kTile, rows.v_chunks(), kTile, mask);
    set_head(stage, mask, 0);
  }

  // `count` rows of `chunks` 16-byte chunks; row r begins `row` of lane first_lane + r (in 16 bytes) behind data.
  __device__ __forceinline__ void copy_rows(std::uint32_t to, const std::byte* data, unsigned row, int first_lane, int chunks,
                                            int count, unsigned mask) const {
#pragma unroll 8
    for (int step = 0; step < (count * chunks + 31) / 32; ++step) {
      const int i = step * 32 + lane_;
      const int r = i / chunks, chunk = i % chunks;
      const unsigned begin = __shfl_sync(kWarp, row, first_lane + r);
      if (count * chunks % 32 == 0 || r < count) {
        copy_16(to + r * row_stride(chunks) + chunk * 16, data + static_cast<std::size_t>(begin + chunk) * 16,
                static_cast<int>(mask >> r & 1) * 16);
      }
    }
  }

  __device__ __forceinline__ void copy_represented(std::uint32_t stage, unsigned mask) {
    const int chunks = a_.v_dim / 16, group = a_.group;
    const std::size_t column = place_.valid ? static_cast<std::size_t>(place_.problem) * a_.capacity + place_.entry : 0;
    const auto row = static_cast<unsigned>(column) * chunks;
    copy_rows(stage, a_.mean_v, row, 0, chunks, kRepresentedTile, mask);
    const std::uint32_t scales = stage + kRepresentedTile * row_stride(chunks), weights = scales + kRepresentedTile * 4;
    copy_4(scales + lane_ * 4, a_.mean_v_scale + column, place_.valid ? 4 : 0);
    const auto* from = reinterpret_cast<const std::byte*>(a_.lists.log_weight + static_cast<std::size_t>(place_.place) * group);
    const int bytes = place_.count * group * 4;
    for (int i = lane_ * 16; i < kRepresentedTile * group * 4; i += 32 * 16) {
      const int left = min(max(bytes - i, 0), 16);
      copy_16(weights + i, from + (left > 0 ? i : 0), left);
    }
  }

  __device__ __forceinline__ void set_head(std::uint32_t stage, unsigned valid, unsigned represented) const {
    if (lane_ == 0) {
      asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(stage + bytes_ - kStageHead), "r"(valid), "r"(represented)
                   : "memory");
    }
  }

  const AttendArgs& a_;
  std::uint32_t memory_;
  int bytes_;
  int lane_;
  TileFinder finder_;
  int next_, end_, warps_, first_;
  Tile tile_{-1, 0, 0, 0, false};                           // its token numbers are on their way
  Place place_{0, 0, 0, 0, 0, false, false};                // its block ids are
};

}  // namespace tactic::cuda
