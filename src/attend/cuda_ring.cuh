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
  const int result = (group < 8 ? group : 8) * (v_dim + 4) * 4;  // Fold, in cuda_merge.cuh
  const int rows = tokens > clusters ? tokens : clusters;
  return (rows > result ? rows : result) + kStageHead;
}

struct StageHead {
  unsigned valid;  // a bit per entry
  unsigned represented;
};

template <int kStages>
class Ring {
 public:
  // Tiles whose entries are on their way. When tile i has arrived, so have the entries of tile i + kLead, which go with its rows:
  // one more than the ring is long, since blocks of the cache are looked up a tile ahead of the copy.
  static constexpr int kLead = kStages + 1;
  static constexpr int kEntryBytes = kLead * 32 * 4;

  __device__ Ring(const AttendArgs& a, unsigned char* memory, const WorkTables& tables, const Stretch& stretch, int warp,
                  int warps)
      : a_(a),
        memory_(shared_address(memory)),
        bytes_((a.ring_bytes - kEntryBytes) / kStages),
        lane_(static_cast<int>(threadIdx.x) % 32),
        entries_(memory_ + kStages * bytes_),
        finder_(a, tables, stretch.problem, lane_),
        end_(stretch.end),
        warps_(warps),
        policy_(evict_first()) {
    // the tiles of a block go round its warps by their number in the whole line, so that short problems do not pile up on warp 0
    next_ = stretch.begin + (warp - stretch.begin % warps + warps) % warps;
  }

  __device__ int next() const { return next_; }

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

  __device__ int offset(int stage) const { return stage * bytes_; }

  // Copies the tile that comes next into the stage, whose contents every lane has read. The first kLead calls only look ahead;
  // the last of them must `wait`.
  template <typename Rows>
  __device__ __forceinline__ void refill(const Rows& rows, int stage, bool wait) {
    if (found_[0].count > 0) copy(rows, memory_ + stage * bytes_);
#pragma unroll
    for (int i = 1; i < kLead; ++i) found_[i - 1] = found_[i];
    found_[kLead - 1].count = 0;
    if (next_ < end_) found_[kLead - 1] = finder_.find(next_, entries_ + find_slot_ * 128);
    next_ += warps_;
    find_slot_ = find_slot_ + 1 == kLead ? 0 : find_slot_ + 1;
    commit_copies();
    if (wait) wait_copies<0>();
    look_up();
  }

 private:
  // The entry of found_[0] that is the lane's, and its block.
  __device__ __forceinline__ void look_up() {
    const Tile& tile = found_[0];
    const int slot = find_slot_;  // kLead calls after find(), the same slot
    if (tile.count == 0) return;
    const int mine = tile.represented ? lane_ : lane_ % kTile;
    entry_ = -1;
    if (mine < tile.count) {
      entry_ = tile.first + mine;
      if (tile.listed) {
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(entry_) : "r"(entries_ + slot * 128 + 4 * lane_) : "memory");
      }
    }
    if (a_.block_table != nullptr && !tile.represented && static_cast<unsigned>(entry_) < static_cast<unsigned>(tile.limit)) {
      const int block = a_.block_shift >= 0 ? entry_ >> a_.block_shift : entry_ / a_.block_size;
      block_ = a_.block_table[static_cast<std::size_t>(tile.sequence) * a_.max_blocks + block];
    }
  }

  template <typename Rows>
  __device__ __forceinline__ void copy(const Rows& rows, std::uint32_t stage) {
    const Tile& tile = found_[0];
    bool valid = static_cast<unsigned>(entry_) < static_cast<unsigned>(tile.limit);
    const int mine = tile.represented ? lane_ : lane_ % kTile;
    if (!valid && mine < tile.count) report(a_.status + tile.sequence, device_status::bad_index);
    if (tile.represented) {
      copy_clusters(rows, stage, valid);
      return;
    }
    // lanes 0 .. 15 know the rows of K, lanes 16 .. 31 those of V
    const RowSteps& steps = lane_ < kTile ? a_.k : a_.v;
    unsigned row = tile.base;
    int token = entry_;
    if (a_.block_table != nullptr) {
      if (valid && static_cast<unsigned>(block_) >= static_cast<unsigned>(a_.block_count)) {
        report(a_.status + tile.sequence, device_status::bad_block);
        valid = false;
      }
      token = a_.block_shift >= 0 ? token & (a_.block_size - 1) : token % a_.block_size;
      row += static_cast<unsigned>(block_) * steps.block;
    }
    row += static_cast<unsigned>(token) * steps.token;
    const unsigned mask = __ballot_sync(kWarp, valid) & 0xffffu;
    if (!valid) row = 0;
    copy_rows<Rows::kRowChunks, kTile>(stage, a_.k.data, row, 0, rows.k_chunks(), mask);
    copy_rows<Rows::kRowChunks, kTile>(stage + kTile * row_stride(rows.k_chunks()), a_.v.data, row, kTile, rows.v_chunks(), mask);
    set_head(stage, mask, 0);
  }

  // kRows rows of `chunks` 16-byte chunks; row r begins `row` of lane first_lane + r (in 16 bytes) behind data. Rows outside the
  // mask become zeros. kChunks: `chunks` where the compiler may know it, else 0.
  template <int kChunks, int kRows>
  __device__ __forceinline__ void copy_rows(std::uint32_t to, const std::byte* data, unsigned row, int first_lane, int chunks,
                                            unsigned mask) const {
    constexpr unsigned kLanes = kChunks > 0 ? kChunks : 32;  // a row
    if constexpr (kChunks > 0 && 32 % kLanes == 0 && kRows % (32 / kLanes) == 0) {
      // A lane copies the same chunk of every so many rows: an address is one multiplication.
      constexpr unsigned kAtOnce = 32 / kLanes, kSteps = kRows / kAtOnce;
      const unsigned lane = static_cast<unsigned>(lane_), first = lane / kLanes, chunk = lane % kLanes;
      const std::uint32_t at = to + first * row_stride(kChunks) + chunk * 16;
      const std::byte* from = data + chunk * 16;
      asm("" : "+l"(from));  // one sum for all steps
      const int source = first_lane + static_cast<int>(first);
      if (mask == (kRows == 32 ? 0xffffffffu : (1u << kRows) - 1)) {
#pragma unroll
        for (unsigned step = 0; step < kSteps; ++step) {
          const unsigned begin = __shfl_sync(kWarp, row, source + static_cast<int>(step * kAtOnce));
          copy_16(at + step * kAtOnce * row_stride(kChunks), from + static_cast<std::size_t>(begin) * 16, 16, policy_);
        }
      } else {
#pragma unroll 1
        for (unsigned step = 0; step < kSteps; ++step) {
          const unsigned begin = __shfl_sync(kWarp, row, source + static_cast<int>(step * kAtOnce));
          copy_16(at + step * kAtOnce * row_stride(kChunks), from + static_cast<std::size_t>(begin) * 16,
                  static_cast<int>(mask >> (first + step * kAtOnce) & 1) * 16, policy_);
        }
      }
    } else {
      const int steps = (kRows * chunks + 31) / 32;
#pragma unroll 4
      for (int step = 0; step < steps; ++step) {
        const int i = step * 32 + lane_;
        const int r = i / chunks, chunk = i % chunks;
        const unsigned begin = __shfl_sync(kWarp, row, first_lane + r);
        if (r >= kRows) continue;
        copy_16(to + r * row_stride(chunks) + chunk * 16, data + chunk * 16 + static_cast<std::size_t>(begin) * 16,
                static_cast<int>(mask >> r & 1) * 16, policy_);
      }
    }
  }

  template <typename Rows>
  __device__ __forceinline__ void copy_clusters(const Rows& rows, std::uint32_t stage, bool valid) {
    const int chunks = rows.mean_chunks(), group = a_.group;
    const unsigned mask = __ballot_sync(kWarp, valid);
    const unsigned column = valid ? found_[0].base + static_cast<unsigned>(entry_) : 0;
    copy_rows<Rows::kMeanChunks, kRepresentedTile>(stage, a_.mean_v, column * chunks, 0, chunks, mask);
    const std::uint32_t scales = stage + kRepresentedTile * row_stride(chunks), weights = scales + kRepresentedTile * 4;
    copy_4(scales + lane_ * 4, a_.mean_v_scale + column, valid ? 4 : 0);
    const auto* from =
        reinterpret_cast<const std::byte*>(a_.lists.log_weight + static_cast<std::size_t>(found_[0].first) * group);
    const int bytes = found_[0].count * group * 4;
#pragma unroll 1
    for (int i = lane_ * 16; i < kRepresentedTile * group * 4; i += 32 * 16) {
      const int left = min(max(bytes - i, 0), 16);
      copy_16(weights + i, from + (left > 0 ? i : 0), left);
    }
    set_head(stage, mask, 1);
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
  std::uint32_t entries_;  // [kLead, 32] of the tiles that are looked ahead at, each lane's own
  TileFinder finder_;
  int next_, end_, warps_;
  std::uint64_t policy_;  // of rows
  int find_slot_ = 0;
  Tile found_[kLead];          // the first is the next to be copied
  int entry_ = 0, block_ = 0;  // of found_[0]
};

}  // namespace tactic::cuda
