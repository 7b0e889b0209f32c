// What prefill shows of a layer, remembered by token number.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <istream>
#include <ostream>

#include "baselines/rules.h"

namespace tactic {
namespace {

constexpr std::uint64_t kMagic = 0x3168637461775400u;  // "\0Twatch1"

// The same token decoded twice gives queries that differ by the rounding of another batch shape; other tokens differ by far more.
constexpr float kSameToken = 0.05f;  // of the norm

template <typename T>
void put(std::ostream& out, const T* data, std::size_t count) {
  out.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(count * sizeof(T)));
}

template <typename T>
void get(std::istream& in, T* data, std::size_t count) {
  in.read(reinterpret_cast<char*>(data), static_cast<std::streamsize>(count * sizeof(T)));
  if (!in) throw Error(Status::corrupt, "the watched prompt ends early: write it again");
}

bool close(const float* a, const float* b, std::size_t count) {
  float difference = 0, norm = 0;
  for (std::size_t i = 0; i < count; ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += a[i] * a[i] + b[i] * b[i];
  }
  return difference <= kSameToken * kSameToken * norm;
}

}  // namespace

PromptWatch::PromptWatch(const Shape& shape, const AttentionParams& params) : shape_(shape), params_(params) {
  params_.sink_logits = nullptr;  // weights among tokens
}

void PromptWatch::clear() {
  first_ = last_ = column_tokens_ = 0;
  columns_.clear();
}

void PromptWatch::see(Team& team, const QueryRows& queries, std::int64_t first, const KvView& kv, bool columns) {
  if (first == 0) clear();
  const std::int64_t end = first + queries.rows;
  // Sums hold what rows [0, column_tokens_) gave. Rows seen again are not added again, but must be the same and lead to the end.
  if (column_tokens_ > first && (end < column_tokens_ || !repeats(queries, first))) forget_columns();
  if (columns && column_tokens_ >= first && column_tokens_ >= 0 && end > column_tokens_) grow_columns(team, queries, first, kv);

  if (first > last_ || first < first_) first_ = first;
  const std::size_t dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t row_size = static_cast<std::size_t>(shape_.q_heads) * dim;
  ring_.resize(kKept * row_size);
  for (int row = std::max(0, queries.rows - kKept); row < queries.rows; ++row) {
    float* slot = ring_.data() + static_cast<std::size_t>((first + row) % kKept) * row_size;
    for (int h = 0; h < shape_.q_heads; ++h) {
      std::copy_n(queries.q + row * queries.row_stride + h * queries.head_stride, dim, slot + static_cast<std::size_t>(h) * dim);
    }
  }
  last_ = end;
  first_ = std::max(first_, end - kKept);
}

// Whether the rows that the ring has are these.
bool PromptWatch::repeats(const QueryRows& queries, std::int64_t first) const {
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t row_size = static_cast<std::size_t>(shape_.q_heads) * dim;
  for (std::int64_t token = std::max(first, first_); token < std::min(first + queries.rows, last_); ++token) {
    const float* slot = ring_.data() + static_cast<std::size_t>(token % kKept) * row_size;
    for (int h = 0; h < shape_.q_heads; ++h) {
      const float* q = queries.q + (token - first) * queries.row_stride + h * queries.head_stride;
      if (!close(q, slot + static_cast<std::size_t>(h) * dim, dim)) return false;
    }
  }
  return true;
}

void PromptWatch::forget_columns() {
  columns_.clear();
  column_tokens_ = -1;
}

void PromptWatch::grow_columns(Team& team, const QueryRows& queries, std::int64_t first, const KvView& kv) {
  const std::int64_t end = first + queries.rows;
  const std::int64_t skipped = column_tokens_ - first;
  const auto old = static_cast<std::size_t>(column_tokens_), width = static_cast<std::size_t>(end);
  std::vector<double> wider(static_cast<std::size_t>(shape_.kv_heads) * width, 0.0);
  for (std::size_t h = 0; h < static_cast<std::size_t>(shape_.kv_heads); ++h)
    std::copy_n(columns_.begin() + static_cast<std::ptrdiff_t>(h * old), old,
                wider.begin() + static_cast<std::ptrdiff_t>(h * width));
  columns_ = std::move(wider);
  const QueryRows fresh{queries.q + skipped * queries.row_stride, queries.rows - static_cast<int>(skipped), queries.row_stride,
                        queries.head_stride};
  add_columns(team, fresh, shape_, params_, kv, column_tokens_, columns_.data(), end);
  column_tokens_ = end;
}

bool PromptWatch::queries(std::int64_t last, int count, std::vector<float>& out) const {
  if (count > kKept || last > last_ || last - count < first_) return false;
  const std::size_t row_size = static_cast<std::size_t>(shape_.q_heads) * static_cast<std::size_t>(shape_.head_dim);
  out.clear();
  for (std::int64_t token = last - count; token < last; ++token) {
    const float* slot = ring_.data() + static_cast<std::size_t>(token % kKept) * row_size;
    out.insert(out.end(), slot, slot + row_size);
  }
  return true;
}

std::span<const double> PromptWatch::columns(std::int64_t tokens) const {
  if (tokens != column_tokens_) return {};
  return columns_;
}

void PromptWatch::save(std::ostream& out) const {
  const std::int64_t head[] = {
      static_cast<std::int64_t>(kMagic), shape_.q_heads, shape_.kv_heads, shape_.head_dim, first_, last_, column_tokens_};
  put(out, head, std::size(head));
  const std::size_t row_size = static_cast<std::size_t>(shape_.q_heads) * static_cast<std::size_t>(shape_.head_dim);
  for (std::int64_t token = first_; token < last_; ++token)
    put(out, ring_.data() + static_cast<std::size_t>(token % kKept) * row_size, row_size);
  put(out, columns_.data(), columns_.size());
}

void PromptWatch::load(std::istream& in) {
  std::int64_t head[7] = {};
  get(in, head, std::size(head));
  const bool known = head[0] == static_cast<std::int64_t>(kMagic) && head[1] == shape_.q_heads && head[2] == shape_.kv_heads &&
                     head[3] == shape_.head_dim && head[4] >= 0 && head[5] >= head[4] && head[5] - head[4] <= kKept &&
                     head[6] >= -1 && head[6] <= (std::int64_t{1} << 26);
  if (!known) throw Error(Status::corrupt, "the watched prompt is damaged or of another model: write it again");
  PromptWatch read(shape_, params_);
  read.first_ = head[4];
  read.last_ = head[5];
  read.column_tokens_ = head[6];
  const std::size_t row_size = static_cast<std::size_t>(shape_.q_heads) * static_cast<std::size_t>(shape_.head_dim);
  read.ring_.resize(kKept * row_size);
  for (std::int64_t token = read.first_; token < read.last_; ++token)
    get(in, read.ring_.data() + static_cast<std::size_t>(token % kKept) * row_size, row_size);
  read.columns_.resize(static_cast<std::size_t>(std::max<std::int64_t>(0, head[6])) * static_cast<std::size_t>(shape_.kv_heads));
  get(in, read.columns_.data(), read.columns_.size());
  *this = std::move(read);
}

}  // namespace tactic
