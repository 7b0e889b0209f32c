// The index of a sequence as bytes. Layout: docs/index-format.md. Integers and floats little-endian as in memory.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <istream>
#include <ostream>
#include <string>

#include "core/error.h"
#include "sequence/sequence.h"

namespace tactic {
namespace {

static_assert(std::endian::native == std::endian::little, "the index format is little-endian");

constexpr std::uint64_t kMagic = 0x3158444943544354;  // "TCTCIDX1"
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kChunk = std::size_t{1}
                               << 20;  // elements read at once, so that a damaged length ends at the end of the file

[[noreturn]] void corrupt(const std::string& what) {
  throw Error(Status::corrupt, "index: " + what + "; delete it and cluster again");
}

// FNV-1a over 64-bit words, then the odd bytes, of each piece: guards against damage, not against an attacker. Pieces of the
// reader (kChunk elements) are multiples of 8 bytes, so that they sum to what the writer's whole arrays do.
class Checksum {
 public:
  void add(const void* data, std::size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (; bytes >= 8; p += 8, bytes -= 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, p, 8);
      value_ = (value_ ^ word) * kPrime;
    }
    for (; bytes > 0; ++p, --bytes) value_ = (value_ ^ *p) * kPrime;
  }
  std::uint64_t value() const { return value_; }

 private:
  static constexpr std::uint64_t kPrime = 0x100000001b3u;
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

class Writer {
 public:
  explicit Writer(std::ostream& out) : out_(out) {}
  template <typename T>
  void value(T v) {
    raw(&v, sizeof v);
  }
  template <typename T>
  void array(std::span<const T> values) {
    value(static_cast<std::uint64_t>(values.size()));
    raw(values.data(), values.size_bytes());
  }
  void finish() {
    const std::uint64_t sum = checksum_.value();
    out_.write(reinterpret_cast<const char*>(&sum), sizeof sum);
    out_.flush();
    if (!out_) throw Error(Status::io, "index: write failed (disk full?)");
  }

 private:
  void raw(const void* data, std::size_t bytes) {
    checksum_.add(data, bytes);
    out_.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    if (!out_) throw Error(Status::io, "index: write failed (disk full?)");
  }
  std::ostream& out_;
  Checksum checksum_;
};

class Reader {
 public:
  explicit Reader(std::istream& in) : in_(in) {}
  template <typename T>
  T value() {
    T v{};
    raw(&v, sizeof v);
    return v;
  }
  // An array that must hold `size` elements.
  template <typename T>
  void array(Buffer<T>& to, std::size_t size, const char* name) {
    check_size(size, name);
    to.resize(0);
    for (std::size_t at = 0; at < size; at += kChunk) {
      const std::size_t n = std::min(kChunk, size - at);
      to.resize(at + n);
      raw(to.data() + at, n * sizeof(T));
    }
  }
  template <typename T>
  void array(std::vector<T>& to, std::size_t size, const char* name) {
    Buffer<T> buffer;
    array(buffer, size, name);
    to.assign(buffer.begin(), buffer.end());
  }
  // An array of any size up to `limit`.
  template <typename T>
  void list(std::vector<T>& to, std::size_t limit, const char* name) {
    const auto size = value<std::uint64_t>();
    if (size > limit) corrupt(std::string(name) + " too long");
    to.resize(size);
    if (size > 0) raw(to.data(), size * sizeof(T));
  }
  void finish() {
    const std::uint64_t sum = checksum_.value();
    std::uint64_t stored = 0;
    in_.read(reinterpret_cast<char*>(&stored), sizeof stored);
    if (in_.gcount() != sizeof stored) corrupt("truncated");
    if (stored != sum) corrupt("checksum does not match");
  }

 private:
  void check_size(std::size_t size, const char* name) {
    if (value<std::uint64_t>() != size) corrupt(std::string(name) + " has another length than the header says");
  }
  void raw(void* data, std::size_t bytes) {
    in_.read(static_cast<char*>(data), static_cast<std::streamsize>(bytes));
    if (static_cast<std::size_t>(in_.gcount()) != bytes) corrupt("truncated");
    checksum_.add(data, bytes);
  }
  std::istream& in_;
  Checksum checksum_;
};

// The options that shape segments: an index made with others is not what this sequence would have built.
std::array<double, 10> settings_of(const Options& o) {
  return {o.method == Method::paper ? 1.0 : 0.0, static_cast<double>(o.cluster_size), static_cast<double>(o.iterations),
          static_cast<double>(o.segment_tokens), static_cast<double>(o.metric),       static_cast<double>(o.shrinkage),
          o.int8_centroids ? 1.0 : 0.0,          static_cast<double>(o.sink_tokens),  static_cast<double>(o.seed),
          static_cast<double>(o.outlier_share)};
}

void write_head(Writer& w, const HeadClusters& head) {
  w.value(static_cast<std::int32_t>(head.count));
  w.value(static_cast<std::uint8_t>(head.centroid8.empty() ? 0 : 1));
  w.array(head.tokens.span());
  w.array(head.begin.span());
  w.array(head.centroid8.span());
  w.array(head.centroid_scale.span());
  w.array(head.centroid16.span());
  w.array(head.spread.span());
  w.array(head.mean_v.span());
  w.array(head.mean_v_scale.span());
  w.array(head.covariance.span());
  w.value(head.mean_spread);
}

// Tokens [first, last) must each stand in exactly one cluster: what the kernels index with is proven here.
void check_tokens(const HeadClusters& head, std::int64_t first, std::int64_t last) {
  const auto n = static_cast<std::size_t>(last - first);
  if (head.begin[0] != 0 || head.begin[static_cast<std::size_t>(head.count)] != last - first) corrupt("cluster borders");
  for (int c = 0; c < head.count; ++c) {
    if (head.size(c) < 1) corrupt("cluster borders");
  }
  std::vector<bool> seen(n, false);
  for (const std::int32_t t : head.tokens) {
    if (t < first || t >= last || seen[static_cast<std::size_t>(t - first)]) corrupt("token numbers");
    seen[static_cast<std::size_t>(t - first)] = true;
  }
}

HeadClusters read_head(Reader& r, const Segment& segment) {
  HeadClusters head;
  const auto n = static_cast<std::size_t>(segment.last - segment.first);
  head.count = r.value<std::int32_t>();
  if (head.count < 1 || static_cast<std::size_t>(head.count) > n) corrupt("cluster count");
  const bool int8 = r.value<std::uint8_t>() != 0;
  const auto count = static_cast<std::size_t>(head.count);
  const auto d = static_cast<std::size_t>(segment.head_dim);
  const auto dv = static_cast<std::size_t>(segment.v_head_dim);
  r.array(head.tokens, n, "tokens");
  r.array(head.begin, count + 1, "borders");
  r.array(head.centroid8, int8 ? count * d : 0, "centroids");
  r.array(head.centroid_scale, int8 ? count : 0, "centroid scales");
  r.array(head.centroid16, int8 ? 0 : count * d, "centroids");
  r.array(head.spread, count, "spreads");
  r.array(head.mean_v, count * dv, "mean values");
  r.array(head.mean_v_scale, count, "mean value scales");
  r.array(head.covariance, d * d, "covariance");
  head.mean_spread = r.value<float>();
  check_tokens(head, segment.first, segment.last);
  return head;
}

}  // namespace

void Sequence::save(std::ostream& out) const {
  Writer w(out);
  w.value(kMagic);
  w.value(kVersion);
  w.value(config_.layers);
  w.value(config_.shape);
  for (const double setting : settings_of(config_.options)) w.value(setting);
  for (const LayerState& layer : layers_) {
    for (const QueryMoment& moment : layer.moments) {
      w.value(moment.weight());
      w.array(moment.sum());
    }
    w.value(layer.observed);
    w.value(static_cast<std::uint8_t>(layer.probed ? 1 : 0));
    w.array(std::span<const float>(layer.probes));
    w.array(std::span<const float>(layer.index.margin));
    w.value(static_cast<std::uint32_t>(layer.index.segments.size()));
    for (const auto& segment : layer.index.segments) {
      w.value(segment->first);
      w.value(segment->last);
      for (const HeadClusters& head : segment->heads) write_head(w, head);
    }
  }
  w.finish();
}

void Sequence::load(std::istream& in) {
  Reader r(in);
  if (r.value<std::uint64_t>() != kMagic) corrupt("not a Tactic index");
  if (const auto version = r.value<std::uint32_t>(); version != kVersion)
    corrupt("version " + std::to_string(version) + " is not " + std::to_string(kVersion));
  const auto layers = r.value<int>();
  const auto shape = r.value<Shape>();
  const Shape& own = config_.shape;
  if (layers != config_.layers || shape.q_heads != own.q_heads || shape.kv_heads != own.kv_heads ||
      shape.head_dim != own.head_dim || shape.v_head_dim != own.v_head_dim) {
    corrupt("made for another model");
  }
  for (const double setting : settings_of(config_.options)) {
    if (r.value<double>() != setting) corrupt("made with other clustering options");
  }
  const std::size_t probe_values =
      static_cast<std::size_t>(kProbes) * static_cast<std::size_t>(own.q_heads) * static_cast<std::size_t>(own.head_dim);
  std::vector<LayerState> fresh(static_cast<std::size_t>(layers));
  for (LayerState& layer : fresh) {
    for (int h = 0; h < own.kv_heads; ++h) {
      const auto weight = r.value<double>();
      std::vector<double> sum;
      r.array(sum, static_cast<std::size_t>(own.head_dim) * static_cast<std::size_t>(own.head_dim), "query moment");
      layer.moments.emplace_back(own.head_dim);
      layer.moments.back().restore(sum, weight);
    }
    layer.observed = r.value<std::int64_t>();
    layer.probed = r.value<std::uint8_t>() != 0;
    r.list(layer.probes, probe_values, "probes");
    if (layer.observed < 0 || (!layer.probes.empty() && layer.probes.size() != probe_values)) corrupt("probes");
    r.list(layer.index.margin, static_cast<std::size_t>(own.kv_heads), "margins");
    if (!layer.index.margin.empty() && layer.index.margin.size() != static_cast<std::size_t>(own.kv_heads)) corrupt("margins");
    const auto segments = r.value<std::uint32_t>();
    for (std::uint32_t s = 0; s < segments; ++s) {
      auto segment = std::make_shared<Segment>();
      segment->first = r.value<std::int64_t>();
      segment->last = r.value<std::int64_t>();
      segment->head_dim = own.head_dim;
      segment->v_head_dim = own.v_head_dim;
      const std::int64_t expected = layer.index.segments.empty() ? segment->first : layer.index.last();
      if (segment->first < 0 || segment->first != expected || segment->last <= segment->first ||
          segment->last > (std::int64_t{1} << 31) - 1) {
        corrupt("segment borders");
      }
      for (int h = 0; h < own.kv_heads; ++h) segment->heads.push_back(read_head(r, *segment));
      layer.index.segments.push_back(std::move(segment));
    }
  }
  r.finish();
  for (LayerState& layer : fresh) layer.index.tables = make_tables(layer.index.segments);
  layers_ = std::move(fresh);
}

}  // namespace tactic
