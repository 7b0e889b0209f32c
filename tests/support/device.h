// Test cases on the device: memory, batches of KvCases as DeviceKv in every layout, host clusters as a DeviceIndex.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/half.h"
#include "decode/decode.h"
#include "support/kv.h"

namespace tactic::test {

inline void cuda_ok(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <class T>
std::vector<T> fetch(const T* from, std::size_t count) {
  std::vector<T> host(count);
  cuda_ok(cudaMemcpy(host.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// Base of all device tests: skipped, with the reason, where there is no GPU (scripts/test-gpu refuses to run there).
class OnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no usable GPU";
  }
  void TearDown() override {
    if (has_gpu()) {
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << "left by the test";
    }
  }
};

// Under compute-sanitizer's initcheck, poison would hide what nobody wrote: TACTIC_TEST_UNWRITTEN=1 leaves it out.
inline bool leaves_memory_unwritten() {
  static const bool wanted = std::getenv("TACTIC_TEST_UNWRITTEN") != nullptr;
  return wanted;
}

// An array on the device. Fresh memory holds 0xff bytes: NaN in every float type, -1 as an integer.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t size, int fill = 0xff) : size_(size) {
    void* data = nullptr;
    cuda_ok(cudaMalloc(&data, std::max<std::size_t>(size * sizeof(T), 16)));
    data_.reset(static_cast<T*>(data));
    if (fill != 0xff || !leaves_memory_unwritten()) cuda_ok(cudaMemset(data, fill, size * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) { set(host); }
  T* get() const { return data_.get(); }
  std::size_t size() const { return size_; }
  void set(const std::vector<T>& host) {
    cuda_ok(cudaMemcpy(data_.get(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    cuda_ok(cudaMemcpy(values.data(), data_.get(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  struct Free {
    void operator()(T* data) const { cudaFree(data); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0;
};

inline DeviceType device_type(DType type) { return static_cast<DeviceType>(type); }

// fp8 e4m3 (no infinities, NaN 0x7f, largest 448), round to nearest even.
inline std::uint8_t float_to_fp8(float f) {
  std::uint8_t best = 0x7f;
  if (!std::isfinite(f)) return best;
  const auto value = [](int code) {
    const int exponent = code >> 3, mantissa = code & 7;
    return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  };
  const double magnitude = std::min<double>(std::abs(f), 448);
  int code = 0;
  while (code < 0x7e && value(code + 1) <= magnitude) ++code;
  if (code < 0x7e) {
    const double below = magnitude - value(code), above = value(code + 1) - magnitude;
    if (above < below || (above == below && code % 2 == 1)) ++code;
  }
  return static_cast<std::uint8_t>(code | (std::signbit(f) ? 0x80 : 0));
}
inline float fp8_to_float(std::uint8_t bits) {
  const int code = bits & 0x7f, exponent = code >> 3, mantissa = code & 7;
  if (code == 0x7f) return NAN;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>((bits & 0x80) != 0 ? -magnitude : magnitude);
}

// Sequences of one layer on the device, each a KvCase of its own length; all of one shape, type and layout. The element values
// are those of the cases, except with fp8, where each case is first rounded to what fp8 can hold (so that it stays the oracle).
// Everything that is no valid element is NaN.
class DeviceBatch {
 public:
  struct Format {
    Layout layout = Layout::side_by_side;
    int block_size = 16;
    DeviceType type = DeviceType::bf16;  // of K and V
    DeviceType query = DeviceType::f32;
    DeviceType output = DeviceType::f32;
    float k_scale = 1, v_scale = 1;  // fp8
    std::int32_t max_length = 0;     // 0: of the longest case
  };
  DeviceBatch(const std::vector<KvCase*>& cases, const Format& format) : cases_(cases), format_(format) {
    for (const KvCase* c : cases) longest_ = std::max(longest_, c->spec().tokens);
    longest_ = std::max<std::int64_t>(longest_, format.max_length);
    const Shape& shape = this->shape();
    kv_.sequences = static_cast<int>(cases.size());
    kv_.kv_heads = shape.kv_heads;
    kv_.max_length = static_cast<std::int32_t>(longest_);
    if (format.layout == Layout::blocks) make_table();
    kv_.k = upload(true, shape.head_dim, format.k_scale, k_);
    kv_.v = upload(false, shape.v_head_dim, format.v_scale, v_);
    set_lengths();
    upload_queries();
    out_ = DeviceArray<std::byte>(cases.size() * static_cast<std::size_t>(shape.q_heads * shape.v_head_dim) *
                                  size_of(format.output));
    lse_ = DeviceArray<float>(cases.size() * static_cast<std::size_t>(shape.q_heads));
    status_ = DeviceArray<std::uint32_t>(cases.size(), 0);
  }

  const Shape& shape() const { return cases_[0]->spec().shape; }
  const DeviceKv& kv() const { return kv_; }
  DeviceKv& kv() { return kv_; }
  DeviceQuery query() const {
    DeviceQuery q;
    q.q = q_.get(), q.type = format_.query, q.shape = shape();
    q.sequence_stride = shape().q_heads * shape().head_dim * static_cast<std::int64_t>(size_of(format_.query));
    q.scale = cases_[0]->params().scale, q.softcap = cases_[0]->params().softcap;
    q.sink_logits = sinks_.get();
    return q;
  }
  DeviceOutput output() const {
    return {out_.get(), format_.output, shape().q_heads * shape().v_head_dim * static_cast<std::int64_t>(size_of(format_.output)),
            lse_.get()};
  }
  std::uint32_t* status() const { return status_.get(); }
  std::vector<std::uint32_t> statuses() const { return status_.host(); }
  // [S, q_heads, v_head_dim]
  std::vector<float> out() const {
    const std::vector<std::byte> bytes = out_.host();
    std::vector<float> values(bytes.size() / size_of(format_.output));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = load_element(bytes.data(), static_cast<DType>(format_.output), i);
    return values;
  }
  std::vector<float> lse() const { return lse_.host(); }
  void set_sinks(const std::vector<float>& logits) { sinks_ = DeviceArray<float>(logits); }
  // The row of a token where the device has it.
  std::byte* k_row(std::size_t s, std::int64_t t, int h) const { return row(kv_.k, s, t, h); }
  std::byte* v_row(std::size_t s, std::int64_t t, int h) const { return row(kv_.v, s, t, h); }
  // Pages change places while a graph goes on: `count` drawn blocks move to free ones, what they leave is poison again.
  void move_blocks(std::mt19937_64& random, int count) {
    for (int i = 0; i < count; ++i) {
      std::int32_t& from = table_[random() % table_.size()];
      std::int32_t& to = free_blocks_[random() % free_blocks_.size()];
      for (const DeviceRows* rows : {&kv_.k, &kv_.v}) {
        auto* data = const_cast<std::byte*>(rows->data);
        const auto bytes = static_cast<std::size_t>(rows->block_stride);
        cuda_ok(cudaMemcpy(data + to * rows->block_stride, data + from * rows->block_stride, bytes, cudaMemcpyDeviceToDevice));
        cuda_ok(cudaMemset(data + from * rows->block_stride, 0xff, bytes));
      }
      std::swap(from, to);
    }
    device_table_.set(table_);
  }
  // After a change of the cases' queries; or of the lengths, which default to the cases' own.
  void upload_queries() {
    std::vector<std::byte> bytes;
    for (KvCase* c : cases_) {
      const std::size_t before = bytes.size();
      bytes.resize(before + c->q().size() * size_of(format_.query));
      for (std::size_t i = 0; i < c->q().size(); ++i)
        store_element(bytes.data() + before, static_cast<DType>(format_.query), i, c->q()[i]);
      for (std::size_t i = 0; i < c->q().size(); ++i)
        c->q()[i] = load_element(bytes.data() + before, static_cast<DType>(format_.query), i);
    }
    if (q_.size() == 0) q_ = DeviceArray<std::byte>(bytes.size());
    q_.set(bytes);
  }
  void set_lengths(std::vector<std::int32_t> lengths = {}) {
    if (lengths.empty()) {
      for (const KvCase* c : cases_) lengths.push_back(static_cast<std::int32_t>(c->spec().tokens));
    }
    if (lengths_.size() == 0) lengths_ = DeviceArray<std::int32_t>(lengths.size());
    lengths_.set(lengths);
    kv_.lengths = lengths_.get();
  }

 private:
  void make_table() {  // every second block of a shuffled range, over all sequences
    const auto size = format_.block_size;
    kv_.block_size = size;
    kv_.max_blocks = static_cast<std::int32_t>((longest_ + size - 1) / size);
    kv_.block_count = 2 * kv_.max_blocks * kv_.sequences + 1;
    for (std::int32_t b = 0; b < kv_.max_blocks * kv_.sequences; ++b) table_.push_back(2 * b + 1), free_blocks_.push_back(2 * b);
    std::mt19937_64 random(77);
    std::shuffle(table_.begin(), table_.end(), random);
    device_table_ = DeviceArray<std::int32_t>(table_);
    kv_.block_table = device_table_.get();
  }

  std::byte* row(const DeviceRows& rows, std::size_t s, std::int64_t t, int h) const {
    return const_cast<std::byte*>(rows.data) + place(rows, static_cast<std::int64_t>(s), t, h);
  }
  std::int64_t place(const DeviceRows& rows, std::int64_t s, std::int64_t t, std::int64_t h) const {
    if (table_.empty()) return s * rows.sequence_stride + t * rows.token_stride + h * rows.head_stride;
    const std::int64_t block = table_[static_cast<std::size_t>(s * kv_.max_blocks + t / kv_.block_size)];
    return block * rows.block_stride + t % kv_.block_size * rows.token_stride + h * rows.head_stride;
  }

  DeviceRows upload(bool is_k, int dim, float scale, DeviceArray<std::byte>& to) {
    constexpr std::int64_t gap = 64;  // poison bytes between rows
    const std::int64_t row = dim * static_cast<std::int64_t>(size_of(format_.type));
    const int heads = shape().kv_heads;
    DeviceRows rows;
    rows.type = format_.type, rows.dim = dim, rows.scale = scale;
    std::int64_t total = 0;
    if (format_.layout == Layout::head_major) {
      rows.token_stride = row, rows.head_stride = (longest_ + 1) * row;
      rows.sequence_stride = heads * rows.head_stride;
      total = kv_.sequences * rows.sequence_stride;
    } else {
      rows.head_stride = row + (format_.layout == Layout::padded ? gap : 0);
      rows.token_stride = heads * rows.head_stride + gap;
      rows.block_stride = kv_.block_size * rows.token_stride + gap;
      rows.sequence_stride = longest_ * rows.token_stride + gap;
      total = table_.empty() ? kv_.sequences * rows.sequence_stride : kv_.block_count * rows.block_stride;
    }
    std::vector<std::byte> bytes(static_cast<std::size_t>(total), std::byte{0xff});
    for (std::size_t s = 0; s < cases_.size(); ++s) {
      for (std::int64_t t = 0; t < cases_[s]->spec().tokens; ++t) {
        for (int h = 0; h < heads; ++h)
          store(*cases_[s], is_k, t, h, scale, bytes.data() + place(rows, static_cast<std::int64_t>(s), t, h));
      }
    }
    to = DeviceArray<std::byte>(bytes);
    rows.data = to.get();
    return rows;
  }

  void store(KvCase& c, bool is_k, std::int64_t t, int h, float scale, std::byte* to) const {
    std::vector<float> values = is_k ? c.k(t, h) : c.v(t, h);
    if (format_.type != DeviceType::fp8_e4m3) {
      for (std::size_t i = 0; i < values.size(); ++i) store_element(to, static_cast<DType>(format_.type), i, values[i]);
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = load_element(to, static_cast<DType>(format_.type), i);
    } else {
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint8_t bits = float_to_fp8(values[i] / scale);
        std::memcpy(to + i, &bits, 1);
        values[i] = fp8_to_float(bits) * scale;
      }
    }
    is_k ? c.set_k(t, h, values) : c.set_v(t, h, values);  // f32 cases hold what the device holds
  }

  std::vector<KvCase*> cases_;
  Format format_;
  std::int64_t longest_ = 0;
  DeviceKv kv_;
  std::vector<std::int32_t> table_, free_blocks_;
  DeviceArray<std::int32_t> device_table_, lengths_;
  DeviceArray<std::byte> k_, v_, q_, out_;
  DeviceArray<float> lse_, sinks_;
  DeviceArray<std::uint32_t> status_;
};

}  // namespace tactic::test
