// A batch with lists on the host and on the device, and attention over them in double precision.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "attend/attend.h"
#include "attend/cuda.h"
#include "support/device.h"

namespace tactic::test {

inline constexpr std::int32_t kRepresentedStride = 64;

struct ListsSpec {
  KvSpec kv{.shape = {8, 2, 128, 128}, .k_type = DType::f32, .v_type = DType::f32};
  DeviceBatch::Format format{};
  std::vector<std::int64_t> lengths = {300};
  int pieces = 3;
  int clusters = 200;    // a head has
  double listed = 0.3;   // share of the clustered tokens
  int represented = 40;  // most a piece has
  std::int32_t sinks = 4, recent = 30;
  float softcap = 0;
};

// A batch with lists, on the host and on the device.
class Lists {
 public:
  explicit Lists(const ListsSpec& spec) : spec_(spec), random_(spec.kv.seed) {
    for (std::size_t s = 0; s < spec.lengths.size(); ++s) {
      KvSpec kv = spec.kv;
      kv.tokens = spec.lengths[s], kv.seed = spec.kv.seed + 100 * s;
      owned_.push_back(std::make_unique<KvCase>(kv));
      owned_.back()->params() = {1 / std::sqrt(static_cast<float>(kv.shape.head_dim)), spec.softcap, nullptr};
      cases_.push_back(owned_.back().get());
    }
    make_lists();
  }
  KvCase& kv(std::size_t s) { return *cases_[s]; }
  std::size_t problems() const { return cases_.size() * heads(); }
  std::vector<std::int32_t>& tokens() { return tokens_; }
  std::vector<std::int32_t>& token_count() { return token_count_; }
  std::vector<std::int32_t>& represented() { return represented_; }
  DeviceBatch& batch() { return *batch_; }

  // Uploads and runs, twice: the second run finds used scratch and must give the same bits.
  void run() {
    batch_ = std::make_unique<DeviceBatch>(cases_, spec_.format);
    device_tokens_ = DeviceArray<std::int32_t>(tokens_), first_d_ = DeviceArray<std::int32_t>(token_first_);
    count_d_ = DeviceArray<std::int32_t>(token_count_), represented_d_ = DeviceArray<std::int32_t>(represented_);
    represented_count_d_ = DeviceArray<std::int32_t>(represented_count_), weight_d_ = DeviceArray<float>(log_weight_);
    range_d_ = DeviceArray<std::int32_t>(range_), clusters_d_ = DeviceArray<std::int32_t>(clusters_);
    mean_d_ = DeviceArray<std::int8_t>(mean_v_), scale_d_ = DeviceArray<float>(scale_);
    rerun();
    const std::vector<float> first = batch_->out();
    rerun();
    const std::vector<float> second = batch_->out();
    ASSERT_EQ(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)), 0) << "not reproducible";
  }

  void rerun() {
    DeviceLists lists;
    lists.pieces = spec_.pieces, lists.token_stride = stride_, lists.represented_stride = kRepresentedStride;
    lists.tokens = device_tokens_.get(), lists.token_first = first_d_.get(), lists.token_count = count_d_.get();
    lists.represented = represented_d_.get(), lists.log_weight = weight_d_.get();
    lists.represented_count = represented_count_d_.get();
    DeviceIndex index;
    index.capacity = spec_.clusters, index.token_capacity = stride_;
    index.range = range_d_.get(), index.clusters = clusters_d_.get();
    index.mean_v = mean_d_.get(), index.mean_v_scale = scale_d_.get();
    const std::size_t bytes = cuda::attend_scratch_bytes(batch_->query(), batch_->kv(), lists);
    if (scratch_.size() < bytes) scratch_ = DeviceArray<std::byte>(bytes, 0);
    cuda::attend_lists(batch_->query(), batch_->kv(), index, lists, batch_->output(), batch_->status(), scratch_.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
  }

  // Output [v_head_dim] and log-sum-exp of a query head, in double.
  std::vector<double> want(std::size_t s, int q_head, double* lse) {
    const Shape& shape = spec_.kv.shape;
    const int head = q_head / shape.group(), g = q_head % shape.group();
    const std::size_t p = s * heads() + static_cast<std::size_t>(head);
    std::vector<std::int32_t> ids;
    for (std::int32_t t = 0; t < range_[2 * s]; ++t) ids.push_back(t);
    for (std::size_t i = range_[2 * s + 1]; i < static_cast<std::size_t>(spec_.lengths[s]); ++i)
      ids.push_back(static_cast<std::int32_t>(i));
    for (std::size_t piece = p * spec_.pieces; piece < (p + 1) * spec_.pieces; ++piece) {
      const auto* from = tokens_.data() + p * stride_ + token_first_[piece];
      ids.insert(ids.end(), from, from + token_count_[piece]);
    }
    const auto count = static_cast<std::int64_t>(ids.size());
    std::vector<float> logits(static_cast<std::size_t>(count * shape.group()));
    reference::score_list(cases_[s]->query(), cases_[s]->view(), head, {ids.data(), 0, count}, logits.data(), count);
    std::vector<double> logit;
    std::vector<std::vector<double>> value;
    for (std::int64_t i = 0; i < count; ++i) {
      logit.push_back(logits[static_cast<std::size_t>(g * count + i)]);
      const std::vector<float> v = cases_[s]->v(ids[static_cast<std::size_t>(i)], head);
      value.emplace_back(v.begin(), v.end());
    }
    const auto dim = static_cast<std::size_t>(shape.v_head_dim), group = static_cast<std::size_t>(shape.group());
    for (std::size_t piece = p * spec_.pieces; piece < (p + 1) * spec_.pieces; ++piece) {
      for (std::int32_t i = 0; i < represented_count_[piece]; ++i) {
        const std::size_t at = piece * kRepresentedStride + static_cast<std::size_t>(i);
        const std::size_t column = p * static_cast<std::size_t>(spec_.clusters) + static_cast<std::size_t>(represented_[at]);
        logit.push_back(log_weight_[at * group + static_cast<std::size_t>(g)]);
        value.emplace_back();
        for (std::size_t d = 0; d < dim; ++d)
          value.back().push_back(static_cast<double>(mean_v_[column * dim + d]) * scale_[column]);
      }
    }
    std::vector<double> out(dim, 0.0);
    *lse = -std::numeric_limits<double>::infinity();
    if (logit.empty()) return out;
    const double top = *std::max_element(logit.begin(), logit.end());
    double sum = 0;
    for (std::size_t i = 0; i < logit.size(); ++i) {
      const double w = std::exp(logit[i] - top);
      sum += w;
      for (std::size_t d = 0; d < dim; ++d) out[d] += w * value[i][d];
    }
    for (double& x : out) x /= sum;
    *lse = top + std::log(sum);
    return out;
  }

  // Weights are rounded to 16 bits before they meet V: relative 2^-9 (bf16) each, so 2^-8 of the largest |V| with the other
  // roundings; |V| stays below 5 in these cases.
  void expect_right(int only_head = -1) {
    const Shape& shape = spec_.kv.shape;
    const std::vector<float> out = batch_->out(), lse = batch_->lse();
    const double output_bound = 5 * 0x1p-8, lse_bound = 0x1p-8;
    for (std::size_t s = 0; s < cases_.size(); ++s) {
      for (int h = 0; h < shape.q_heads; ++h) {
        if (only_head >= 0 && h / shape.group() != only_head) continue;
        double lse_want = 0;
        const std::vector<double> expected = want(s, h, &lse_want);
        const std::size_t row = s * static_cast<std::size_t>(shape.q_heads) + static_cast<std::size_t>(h);
        if (std::isinf(lse_want)) {
          ASSERT_EQ(lse[row], lse_want) << "sequence " << s << " head " << h;
        } else {
          ASSERT_NEAR(lse[row], lse_want, lse_bound + 1e-6 * std::abs(lse_want)) << "sequence " << s << " head " << h;
        }
        for (std::size_t d = 0; d < expected.size(); ++d)
          ASSERT_NEAR(out[row * expected.size() + d], expected[d], output_bound)
              << "sequence " << s << " head " << h << " dim " << d;
      }
    }
  }
  void expect_status(std::size_t s, std::uint32_t status) { EXPECT_EQ(batch_->statuses()[s], status) << "sequence " << s; }

 private:
  std::size_t heads() const { return static_cast<std::size_t>(spec_.kv.shape.kv_heads); }
  int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(std::max(n, 1))); }

  void make_lists() {
    const Shape& shape = spec_.kv.shape;
    const auto longest = *std::max_element(spec_.lengths.begin(), spec_.lengths.end());
    stride_ = static_cast<std::int32_t>((longest + 63) / 64 * 64 + 64);
    const std::size_t pieces = problems() * static_cast<std::size_t>(spec_.pieces);
    tokens_.assign(problems() * static_cast<std::size_t>(stride_), -7);
    token_first_.assign(pieces, 0), token_count_.assign(pieces, 0), represented_count_.assign(pieces, 0);
    represented_.assign(pieces * kRepresentedStride, -7);
    log_weight_.assign(pieces * kRepresentedStride * static_cast<std::size_t>(shape.group()), NAN);
    clusters_.assign(problems(), spec_.clusters);
    for (std::size_t i = 0; i < problems() * static_cast<std::size_t>(spec_.clusters * shape.v_head_dim); ++i)
      mean_v_.push_back(static_cast<std::int8_t>(below(255) - 127));
    for (std::size_t i = 0; i < problems() * static_cast<std::size_t>(spec_.clusters); ++i)
      scale_.push_back(0.001f * static_cast<float>(1 + below(20)));
    for (std::size_t s = 0; s < cases_.size(); ++s) {
      const auto length = static_cast<std::int32_t>(spec_.lengths[s]);
      const std::int32_t first = std::min(spec_.sinks, length), last = std::max(length - spec_.recent, first);
      range_.push_back(first), range_.push_back(last);
      for (std::size_t h = 0; h < heads(); ++h) fill_head(s * heads() + h, first, last);
    }
  }

  void fill_head(std::size_t p, std::int32_t first, std::int32_t last) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(last - first));
    std::iota(order.begin(), order.end(), first);
    std::shuffle(order.begin(), order.end(), random_);
    std::size_t taken = 0;
    const auto group = static_cast<std::size_t>(spec_.kv.shape.group());
    for (int piece = 0; piece < spec_.pieces; ++piece) {
      const std::size_t at = p * static_cast<std::size_t>(spec_.pieces) + static_cast<std::size_t>(piece);
      const std::size_t share = order.size() / static_cast<std::size_t>(spec_.pieces);
      const auto count = std::min(static_cast<std::size_t>(2 * spec_.listed * below(static_cast<int>(share) + 1)), share);
      token_first_[at] = static_cast<std::int32_t>(piece * (stride_ / spec_.pieces)),
      token_count_[at] = static_cast<std::int32_t>(count);
      std::copy_n(order.begin() + static_cast<std::ptrdiff_t>(taken), count,
                  tokens_.begin() + static_cast<std::ptrdiff_t>(p * static_cast<std::size_t>(stride_)) + token_first_[at]);
      taken += count;
      represented_count_[at] = spec_.represented == 0 ? 0 : below(spec_.represented + 1);
      for (std::size_t i = at * kRepresentedStride;
           i < at * kRepresentedStride + static_cast<std::size_t>(represented_count_[at]); ++i) {
        represented_[i] = below(spec_.clusters);
        for (std::size_t g = 0; g < group; ++g) log_weight_[i * group + g] = 0.01f * static_cast<float>(below(600) - 300);
      }
    }
  }

  ListsSpec spec_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<KvCase>> owned_;
  std::vector<KvCase*> cases_;
  std::int32_t stride_ = 0;
  std::vector<std::int32_t> tokens_, token_first_, token_count_, represented_, represented_count_, range_, clusters_;
  std::vector<float> log_weight_, scale_;
  std::vector<std::int8_t> mean_v_;
  std::unique_ptr<DeviceBatch> batch_;
  DeviceArray<std::int32_t> device_tokens_, first_d_, count_d_, represented_d_, represented_count_d_, range_d_, clusters_d_;
  DeviceArray<float> weight_d_, scale_d_;
  DeviceArray<std::int8_t> mean_d_;
  DeviceArray<std::byte> scratch_;
};

}  // namespace tactic::test
