// Attention through the C API: outputs against the reference, several rows, reports, bad arguments, values that are not finite.
#include "attend/attend.h"

#include <cmath>
#include <limits>

#include "fixture.h"

namespace tactic::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Dense attention of the case in double sums: output, then lse.
void reference_dense(const KvCase& kv, const float* q, std::int64_t tokens, const float* sinks, std::vector<float>& out,
                     std::vector<float>& lse) {
  const Shape& shape = kv.spec().shape;
  KvView view = kv.view();
  view.tokens = tokens;
  Query query = kv.query();
  query.q = q;
  PartialStorage part(shape.q_heads, shape.v_head_dim);
  reference::attend_all(query, view, {nullptr, 0, tokens}, part.get());
  out.resize(static_cast<std::size_t>(shape.q_heads * shape.v_head_dim));
  lse.resize(static_cast<std::size_t>(shape.q_heads));
  normalise(part.get(), shape.q_heads, shape.v_head_dim, sinks, out.data(), lse.data());
}

class Dense : public ::testing::Test {
 protected:
  explicit Dense(KvSpec spec = {.shape = {4, 2, 64, 80}, .tokens = 70}) : kv(spec), context(make_context(2)) {
    view = to_c(kv.view());
    attention = to_c(kv.spec().shape);
    EXPECT_WORKS(tactic_attend_args_init(&args, sizeof args));
    EXPECT_WORKS(tactic_report_init(&report, sizeof report));
    out.assign(5 * 4 * 80, kNan);
    lse.assign(5 * 4, kNan);
    args.q = kv.q().data();
    args.out = out.data();
    args.lse = lse.data();
  }
  tactic_status run() { return tactic_attend_dense(context.get(), &attention, &view, &args, &report); }

  KvCase kv;
  ContextPtr context;
  tactic_kv_view view;
  tactic_attention attention;
  tactic_attend_args args;
  tactic_report report;
  std::vector<float> out;
  std::vector<float> lse;
};

TEST_F(Dense, EqualsTheReferenceWithSinksAndLogSumExp) {
  const std::vector<float> sinks = {0.5f, -1, -std::numeric_limits<float>::infinity(), 2};
  args.sink_logits = sinks.data();
  ASSERT_WORKS(run());
  std::vector<float> expected;
  std::vector<float> expected_lse;
  reference_dense(kv, kv.q().data(), 70, sinks.data(), expected, expected_lse);
  const Tolerance bound = tolerance(kv);
  for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(out[i], expected[i], bound.output);
  for (std::size_t h = 0; h < 4; ++h) EXPECT_NEAR(lse[h], expected_lse[h], bound.logit + bound.weight);
}

TEST_F(Dense, EachRowOfADraftSeesItsOwnTokens) {
  constexpr std::int64_t kStride = 4 * 64 + 3;
  std::vector<float> q(5 * kStride, kNan);  // poison between the rows
  for (int r = 0; r < 5; ++r) {
    const std::vector<float> row = kv.normal(4 * 64, 1);
    std::copy(row.begin(), row.end(), q.begin() + r * kStride);
  }
  args.q = q.data();
  args.q_row_stride = kStride;
  args.rows = 5;
  const std::int64_t chosen[] = {70, 1, 12, 70, 69};
  for (const bool given : {false, true}) {
    args.row_tokens = given ? chosen : nullptr;
    ASSERT_WORKS(run());
    for (int r = 0; r < 5; ++r) {
      std::vector<float> expected;
      std::vector<float> expected_lse;
      reference_dense(kv, q.data() + r * kStride, given ? chosen[r] : 66 + r, nullptr, expected, expected_lse);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(out[static_cast<std::size_t>(r) * 320 + i], expected[i], 1e-5) << "row " << r;
      }
    }
  }
}

TEST_F(Dense, ScaleZeroIsOneOverTheRootOfHeadDim) {
  const auto output = [&](float scale) {
    attention.scale = scale;
    EXPECT_WORKS(run());
    return std::vector<float>(out.begin(), out.begin() + 4 * 80);
  };
  EXPECT_EQ(output(0), output(0.125f));
  EXPECT_NE(output(0), output(0.25f));
}

TEST_F(Dense, ReportCountsAllTokensAndBytesOfTheRows) {
  std::vector<std::int64_t> attended(4, -1);
  std::vector<std::uint64_t> bits(8, ~std::uint64_t{0});
  const std::int64_t seen[] = {3, 70};
  const std::vector<float> q = kv.normal(2 * 4 * 64, 1);
  args.q = q.data();
  args.rows = 2;
  args.row_tokens = seen;
  report.attended = attended.data();
  report.attended_count = attended.size();
  report.token_bits = bits.data();
  report.token_bits_count = bits.size();
  ASSERT_WORKS(run());
  EXPECT_EQ(attended, (std::vector<std::int64_t>{3, 3, 70, 70}));
  const std::uint64_t all = ~std::uint64_t{0};
  EXPECT_EQ(bits, (std::vector<std::uint64_t>{7, 0, 7, 0, all, 63, all, 63}));
  EXPECT_EQ(report.bytes, 73.0 * 2 * (64 + 80) * 2);
  EXPECT_EQ(report.dense_bytes, report.bytes);
  EXPECT_GT(report.total_us, 0);
}

TEST_F(Dense, ReportArraysThatAreTooShortAreRefused) {
  std::vector<std::int64_t> counts(8);
  std::vector<float> masses(8);
  std::vector<std::uint64_t> bits(8);
  report.attended = counts.data();
  report.attended_count = 1;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "report.attended_count is 1, must be at least 2");
  report.attended = nullptr;
  report.budget = counts.data();
  report.budget_count = 3;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "report.budget_count is 3, must be at least 4");
  report.budget = nullptr;
  report.estimated_mass = masses.data();
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "report.estimated_mass_count is 0, must be at least 4");
  report.estimated_mass = nullptr;
  report.token_bits = bits.data();
  report.token_bits_count = 3;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "report.token_bits_count is 3, must be at least 4");
}

TEST_F(Dense, BadArgumentsAreNamed) {
  args.q = nullptr;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "args.q is null");
  args.q = kv.q().data();
  args.out = nullptr;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "args.out is null");
  args.out = out.data();
  args.rows = 0;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "args.rows is 0, must be in [1, 65536]");
  args.rows = 71;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "args.rows is 71, must be at most kv.tokens (70)");
  args.rows = 1;
  args.q_row_stride = 255;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "args.q_row_stride is 255, must be in [256");
  args.q_row_stride = 0;
  const std::int64_t seen[] = {71};
  args.row_tokens = seen;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "args.row_tokens[0] is 71, must be in [1, 70]");
  args.row_tokens = nullptr;
  const float sinks[] = {0, 0, kNan, 0};
  args.sink_logits = sinks;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "args.sink_logits[2] is nan");
}

TEST_F(Dense, BadShapesAreNamed) {
  EXPECT_FAILS(tactic_attend_dense(context.get(), nullptr, &view, &args, nullptr), TACTIC_INVALID_ARGUMENT, "attention is null");
  attention.q_heads = 5;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "attention.q_heads is 5, must be a multiple of kv_heads (2)");
  attention = to_c(kv.spec().shape);
  attention.kv_heads = 0;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "attention.kv_heads is 0");
  attention = to_c(kv.spec().shape);
  attention.head_dim = 65;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "attention.head_dim is 65, must be 64, 80, 96, 128 or 256");
  attention = to_c(kv.spec().shape, kNan);
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "attention.scale is nan, must be finite");
  attention = to_c(kv.spec().shape);
  attention.softcap = -1;
  EXPECT_FAILS(run(), TACTIC_INVALID_ARGUMENT, "attention.softcap is -1");
}

TEST_F(Dense, NanInAQueryNamesTheHeadAndTouchesNothing) {
  kv.q()[3 * 64 + 5] = kNan;
  EXPECT_FAILS(run(), TACTIC_NON_FINITE, "args.q of query head 3 holds NaN or infinity");
  EXPECT_TRUE(std::isnan(out[0]));
  kv.q()[3 * 64 + 5] = std::numeric_limits<float>::infinity();
  EXPECT_FAILS(run(), TACTIC_NON_FINITE, "query head 3");
}

TEST_F(Dense, NanInAKeyOrValueNamesTheHeadAndLeavesTheOthersValid) {
  ASSERT_WORKS(run());
  const std::vector<float> good = out;
  for (const bool in_key : {true, false}) {
    std::vector<float> row = in_key ? kv.k(20, 1) : kv.v(20, 1);
    const std::vector<float> before = row;
    row[7] = kNan;
    in_key ? kv.set_k(20, 1, row) : kv.set_v(20, 1, row);
    EXPECT_FAILS(run(), TACTIC_NON_FINITE, "the result of query head 2 (KV head 1) is not finite");
    for (std::size_t i = 0; i < 2 * 80; ++i) ASSERT_EQ(out[i], good[i]);
    in_key ? kv.set_k(20, 1, before) : kv.set_v(20, 1, before);
  }
}

class Sparse : public ::testing::Test {
 protected:
  Sparse() : cache(1500), context(make_context(2)), sequence(make_sequence(cache.shape(), 2)) {
    prefill(sequence.get(), context.get(), cache, 2);
  }
  // K/V rows attended, both KV heads, for a mass.
  std::int64_t attended(const std::vector<float>& q, float mass) {
    std::vector<float> out(q.size());
    std::vector<std::int64_t> rows(2);
    const tactic_kv_view view = cache.view();
    tactic_attend_args args;
    tactic_report report;
    EXPECT_WORKS(tactic_attend_args_init(&args, sizeof args));
    EXPECT_WORKS(tactic_report_init(&report, sizeof report));
    args.q = q.data();
    args.out = out.data();
    args.mass = mass;
    report.attended = rows.data();
    report.attended_count = rows.size();
    EXPECT_WORKS(tactic_sequence_attend(sequence.get(), context.get(), 1, &view, &args, &report));
    return rows[0] + rows[1];
  }

  TopicCache cache;
  ContextPtr context;
  SequencePtr sequence;
};

TEST_F(Sparse, LeavesTokensOutAndStaysNearDense) {
  for (int step = 0; step < 5; ++step) {
    const std::vector<float> q = cache.query();
    EXPECT_LT(attended(q, 0), 2 * 1500 / 2);
    const std::vector<float> sparse = attend(sequence.get(), context.get(), 1, cache.view(), q);
    const std::vector<float> dense = attend_dense(context.get(), cache, cache.view(), q);
    // At least 0.9 of the mass is attended, the rest joins by its means: off by at most twice the rest's share of max |v| < 5.
    for (std::size_t i = 0; i < dense.size(); ++i) ASSERT_NEAR(sparse[i], dense[i], 2 * 0.1 * 5);
  }
}

TEST_F(Sparse, MassOfTheCallReplacesTheSequences) {
  const std::vector<float> q = cache.query();
  const std::int64_t usual = attended(q, 0);
  EXPECT_EQ(attended(q, 0.9f), usual);
  EXPECT_LT(attended(q, 0.5f), usual);
  EXPECT_EQ(attended(q, 1), 2 * 1500);
  EXPECT_EQ(attended(q, 0), usual) << "the call's mass stayed";
}

TEST_F(Sparse, MassOneEqualsDense) {
  const std::vector<float> q = cache.query();
  EXPECT_EQ(attend(sequence.get(), context.get(), 0, cache.view(), q, 1), attend_dense(context.get(), cache, cache.view(), q));
}

TEST_F(Sparse, ReportBitsAreTheTokensAttended) {
  const std::vector<float> q = cache.query();
  std::vector<float> out(q.size());
  constexpr std::size_t kWords = (1500 + 63) / 64;
  std::vector<std::uint64_t> bits(2 * kWords, 0);
  std::vector<std::int64_t> rows(2);
  std::vector<float> mass(4, kNan);
  const tactic_kv_view view = cache.view();
  tactic_attend_args args;
  tactic_report report;
  ASSERT_WORKS(tactic_attend_args_init(&args, sizeof args));
  ASSERT_WORKS(tactic_report_init(&report, sizeof report));
  args.q = q.data();
  args.out = out.data();
  report.attended = rows.data();
  report.attended_count = 2;
  report.token_bits = bits.data();
  report.token_bits_count = bits.size();
  report.estimated_mass = mass.data();
  report.estimated_mass_count = 4;
  ASSERT_WORKS(tactic_sequence_attend(sequence.get(), context.get(), 0, &view, &args, &report));
  for (std::size_t h = 0; h < 2; ++h) {
    std::int64_t count = 0;
    for (std::size_t w = 0; w < kWords; ++w) count += std::popcount(bits[h * kWords + w]);
    EXPECT_EQ(count, rows[h]);
    EXPECT_EQ(bits[h * kWords] & 15, 15u) << "the sinks";
  }
  for (const float m : mass) EXPECT_GE(m, 0.9f);
  EXPECT_LT(report.bytes, report.dense_bytes);
}

TEST_F(Sparse, BadMassOrLayerIsNamed) {
  const std::vector<float> q = cache.query();
  std::vector<float> out(q.size());
  const tactic_kv_view view = cache.view();
  tactic_attend_args args;
  ASSERT_WORKS(tactic_attend_args_init(&args, sizeof args));
  args.q = q.data();
  args.out = out.data();
  const auto run = [&](int layer) { return tactic_sequence_attend(sequence.get(), context.get(), layer, &view, &args, nullptr); };
  for (const float mass : {-0.5f, 1.5f, kNan}) {
    args.mass = mass;
    EXPECT_FAILS(run(0), TACTIC_INVALID_ARGUMENT, "args.mass is");
  }
  args.mass = 0;
  EXPECT_FAILS(run(2), TACTIC_INVALID_ARGUMENT, "layer is 2, must be in [0, 1]");
  EXPECT_FAILS(run(-1), TACTIC_INVALID_ARGUMENT, "layer is -1");
  EXPECT_STREQ(tactic_sequence_error(sequence.get()), "layer is -1, must be in [0, 1]");
}

// The NaN comes after clustering, so that the choice meets it in the logits of the attended tokens.
TEST_F(Sparse, NanAmongAttendedTokensLeavesTheOtherKvHeadValid) {
  const std::vector<float> q = cache.query();
  const std::vector<float> good = attend(sequence.get(), context.get(), 0, cache.view(), q);
  for (std::int64_t t = 0; t < 1500; t += 3) cache.kv.set_k(t, 0, std::vector<float>(64, kNan));
  std::vector<float> out(q.size());
  const tactic_kv_view view = cache.view();
  tactic_attend_args args;
  ASSERT_WORKS(tactic_attend_args_init(&args, sizeof args));
  args.q = q.data();
  args.out = out.data();
  EXPECT_FAILS(tactic_sequence_attend(sequence.get(), context.get(), 0, &view, &args, nullptr), TACTIC_NON_FINITE,
               "query head 0 (KV head 0)");
  for (std::size_t i = 2 * 64; i < 4 * 64; ++i) ASSERT_EQ(out[i], good[i]);
}

}  // namespace
}  // namespace tactic::test
