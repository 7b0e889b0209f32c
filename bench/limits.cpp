// Memory limits and synthetic caches.
#include "bench/limits.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <random>
#include <string>

#include "core/half.h"

namespace tactic::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Where the sums go, so that no read can be left out.
std::atomic<std::uint64_t> sink{0};

std::uint64_t add_words(const std::byte* bytes, std::size_t count) {
  std::uint64_t sums[8] = {};
  std::size_t i = 0;
  for (; i + 64 <= count; i += 64) {
    std::uint64_t words[8];
    std::memcpy(words, bytes + i, 64);
    for (int j = 0; j < 8; ++j) sums[j] += words[j];
  }
  for (; i < count; ++i) sums[0] += static_cast<std::uint64_t>(bytes[i]);
  std::uint64_t sum = 0;
  for (const std::uint64_t s : sums) sum += s;
  return sum;
}

// kLocality as of __builtin_prefetch: 3 into the L1, 2 into the L2.
template <int kLocality>
void ask_for(const std::byte* row, std::size_t bytes) {
  for (std::size_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, kLocality);
}

template <int kLocality>
std::uint64_t gather_rows(const KvView& kv, int head, const TokenList& list, std::int64_t begin, std::int64_t end, int ahead) {
  const std::size_t k_bytes = static_cast<std::size_t>(kv.k.dim) * size_of(kv.k.type);
  const std::size_t v_bytes = static_cast<std::size_t>(kv.v.dim) * size_of(kv.v.type);
  const auto token = [&](std::int64_t i) { return list.ids != nullptr ? list.ids[i] : list.first + i; };
  std::uint64_t sum = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    if (i + ahead < end) {
      ask_for<kLocality>(row(kv, kv.k, token(i + ahead), head), k_bytes);
      ask_for<kLocality>(row(kv, kv.v, token(i + ahead), head), v_bytes);
    }
    sum += add_words(row(kv, kv.k, token(i), head), k_bytes);
    sum += add_words(row(kv, kv.v, token(i), head), v_bytes);
  }
  return sum;
}

template <int kLocality>
double gather_once(Team& team, std::span<const Gather> gathers, int ahead) {
  const auto start = Clock::now();
  for (const Gather& gather : gathers) {
    team.run([&](Worker& worker) {
      std::uint64_t sum = 0;
      for (int head = 0; head < gather.kv.kv_heads; ++head) {
        const TokenList& list = gather.lists[static_cast<std::size_t>(head)];
        const auto [begin, end] = worker.share(list.count);
        sum += gather_rows<kLocality>(gather.kv, head, list, begin, end, ahead);
      }
      sink.fetch_add(sum, std::memory_order_relaxed);
    });
  }
  return seconds_since(start) / static_cast<double>(gathers.size());
}

}  // namespace

Pages::Pages(std::size_t bytes, bool huge) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  madvise(data, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  data_ = {static_cast<std::byte*>(data), Unmap{bytes}};
}

bool Pages::in_huge_pages() const {
  std::ifstream maps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<std::uintptr_t>(data());
  bool ours = false;
  std::uint64_t resident = 0, kilobytes = 0;
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) ours = begin <= wanted && wanted < end;
    if (!ours) continue;
    if (std::sscanf(line.c_str(), "Rss: %" SCNu64, &kilobytes) == 1) resident = kilobytes;
    if (std::sscanf(line.c_str(), "AnonHugePages: %" SCNu64, &kilobytes) == 1) return 2 * kilobytes > resident;
  }
  return false;
}

void Pages::Unmap::operator()(std::byte* data) const { munmap(data, bytes); }

Cache::Cache(const CacheSpec& spec)
    : spec_(spec), pages_(static_cast<std::size_t>(layer_bytes()) * static_cast<std::size_t>(spec.layers), spec.huge) {
  // Random elements once, then copies: a prime number of them, so that heads and layers differ.
  constexpr std::size_t kDistinct = 1000003;
  std::mt19937_64 random(7);
  std::normal_distribution<float> normal;
  std::vector<std::byte> distinct(kDistinct * size_of(spec.type));
  for (std::size_t i = 0; i < kDistinct; ++i) store_element(distinct.data(), spec.type, i, normal(random));
  for (std::size_t at = 0; at < pages_.size(); at += distinct.size()) {
    std::memcpy(pages_.data() + at, distinct.data(), std::min(distinct.size(), pages_.size() - at));
  }
  const std::int64_t row_bytes = spec.head_dim * static_cast<std::int64_t>(size_of(spec.type));
  Rows rows{pages_.data(), spec.type, spec.head_dim, row_bytes * spec.kv_heads, row_bytes, 0};
  if (spec.head_major) {
    rows.token_stride = row_bytes;
    rows.head_stride = row_bytes * spec.tokens;
  }
  for (int i = 0; i < spec.layers; ++i) {
    KvView view{rows, rows, spec.kv_heads, spec.tokens, nullptr, 1};
    view.k.data += i * static_cast<std::int64_t>(layer_bytes());
    view.v.data = view.k.data + static_cast<std::int64_t>(layer_bytes()) / 2;
    views_.push_back(view);
  }
}

double Cache::layer_bytes() const {
  return 2.0 * spec_.kv_heads * spec_.head_dim * static_cast<double>(spec_.tokens) * static_cast<double>(size_of(spec_.type));
}

double bytes_of(const Gather& gather) {
  const double pair = gather.kv.k.dim * static_cast<double>(size_of(gather.kv.k.type)) +
                      gather.kv.v.dim * static_cast<double>(size_of(gather.kv.v.type));
  double bytes = 0;
  for (const TokenList& list : gather.lists) bytes += pair * static_cast<double>(list.count);
  return bytes;
}

std::vector<std::int32_t> random_tokens(std::int64_t tokens, double share, double run, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::geometric_distribution<std::int64_t> inside(1 / run);
  std::geometric_distribution<std::int64_t> between(share / (run * (1 - share)));
  std::vector<std::int32_t> ids;
  for (std::int64_t t = between(random); t < tokens; t += 1 + between(random)) {
    for (std::int64_t end = std::min(tokens, t + 1 + inside(random)); t < end; ++t) ids.push_back(static_cast<std::int32_t>(t));
  }
  return ids;
}

double stream_bandwidth(Team& team, std::span<const std::byte> bytes, int rounds) {
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    const auto start = Clock::now();
    team.run([&](Worker& worker) {
      const auto [begin, end] = worker.share(static_cast<std::int64_t>(bytes.size() / 64));
      sink.fetch_add(add_words(bytes.data() + begin * 64, static_cast<std::size_t>(end - begin) * 64), std::memory_order_relaxed);
    });
    best = std::max(best, static_cast<double>(bytes.size()) / seconds_since(start) * 1e-9);
  }
  return best;
}

double stream_bandwidth(Team& team, std::size_t bytes, bool huge, int rounds) {
  const Pages pages(bytes, huge);
  std::memset(pages.data(), 1, pages.size());  // or all of it would be the one zero page
  return stream_bandwidth(team, {pages.data(), pages.size()}, rounds);
}

double gather_seconds(Team& team, std::span<const Gather> gathers, const GatherWay& way) {
  return way.into_l1 ? gather_once<3>(team, gathers, way.ahead) : gather_once<2>(team, gathers, way.ahead);
}

double bare_gather_seconds(Team& team, std::span<const Gather> gathers, int rounds) {
  double best = gather_once<2>(team, gathers, 32);
  for (int round = 0; round < rounds; ++round) {
    for (const int ahead : {8, 16, 32, 64}) {
      best = std::min(best, gather_once<3>(team, gathers, ahead));
      best = std::min(best, gather_once<2>(team, gathers, ahead));
    }
  }
  return best;
}

}  // namespace tactic::bench
