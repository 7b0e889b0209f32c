// What the memory of this machine allows: the limits that attention is measured against, and caches to measure on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/attend.h"
#include "core/team.h"
#include "core/view.h"

namespace tactic::bench {

// Bytes from mmap, zeroed; asks for 2 MB pages when `huge` (the kernel may refuse: then they are 4 KB), else for 4 KB ones.
class Pages {
 public:
  Pages() = default;
  Pages(std::size_t bytes, bool huge);
  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return data_.get_deleter().bytes; }
  // Whether most of what was touched lies in 2 MB pages, as /proc/self/smaps says.
  bool in_huge_pages() const;

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Unmap> data_;
};

// K and V of some layers with random elements of deviation 1; much larger than the caches when the layers are many.
struct CacheSpec {
  int kv_heads = 8;
  int head_dim = 128;
  std::int64_t tokens = 32768;
  int layers = 4;
  DType type = DType::f16;
  bool head_major = false;  // [kv_head][token][dim]; else llama.cpp's [token][kv_head][dim]
  bool huge = false;
};
class Cache {
 public:
  explicit Cache(const CacheSpec& spec);
  const KvView& layer(int i) const { return views_[static_cast<std::size_t>(i)]; }
  int layers() const { return static_cast<int>(views_.size()); }
  // Of all K and V rows of a layer.
  double layer_bytes() const;

 private:
  CacheSpec spec_;
  Pages pages_;
  std::vector<KvView> views_;
};

// Rows to gather: per KV head a list of tokens.
struct Gather {
  KvView kv;
  std::vector<TokenList> lists;  // [kv_heads]
};
double bytes_of(const Gather& gather);

// `share` of `tokens` tokens, ascending, in runs of geometric length with mean `run`.
std::vector<std::int32_t> random_tokens(std::int64_t tokens, double share, double run, std::uint64_t seed);

// GB/s at which the team reads `bytes` in order, each worker its share: best of `rounds`.
double stream_bandwidth(Team& team, std::size_t bytes, bool huge = false, int rounds = 5);
// The same over bytes that exist.
double stream_bandwidth(Team& team, std::span<const std::byte> bytes, int rounds);

// How rows are asked for: so many ahead, into the L1 or the L2.
struct GatherWay {
  int ahead;
  bool into_l1;
};
// Seconds a gather, of one pass over the gathers: the team reads the K and V rows and adds their words up, each worker an equal
// share of every list.
double gather_seconds(Team& team, std::span<const Gather> gathers, const GatherWay& way);

// Seconds in which the team reads the K and V rows of a gather and adds their words up, with the best of a few prefetch
// distances into L1 or L2: mean over the gathers, which follow each other. What fits the caches is found there after the first
// pass: give it more.
double bare_gather_seconds(Team& team, std::span<const Gather> gathers, int rounds = 3);

}  // namespace tactic::bench
