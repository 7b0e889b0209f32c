// The index as bytes: round trip, and damage of every kind refused without a trace.
#include <gtest/gtest.h>

#include <sstream>

#include "core/error.h"
#include "support/story.h"

namespace tactic::test {
namespace {

constexpr Shape kShape{4, 2, 64, 64};

class Save : public testing::Test {
 protected:
  Story story_{kShape, 1600};
  Stage stage_;
  Options options_ = small_options();

  Sequence grown() {
    Sequence s(story_.config(options_, 2));
    for (int layer = 0; layer < 2; ++layer) {
      story_.observe(s, layer, 0, 1000);
      stage_.update(s, story_, 1000, true, layer);
      story_.observe(s, layer, 1000, 1300);
      stage_.update(s, story_, 1300, true, layer);
    }
    return s;
  }
  static std::string bytes_of(const Sequence& s) {
    std::ostringstream out;
    s.save(out);
    return out.str();
  }
  static void expect_refused(Sequence& s, const std::string& bytes, const std::string& why) {
    const std::string before = bytes_of(s);
    std::istringstream in(bytes);
    try {
      s.load(in);
      FAIL() << "loaded: " << why;
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), Status::corrupt) << why << ": " << error.what();
    }
    EXPECT_EQ(bytes_of(s), before) << why;
  }
};

TEST_F(Save, LoadedSequenceStepsAndGrowsIdentically) {
  for (const bool promise : {false, true}) {
    options_.promise = promise;
    Sequence saved = grown();
    std::istringstream in(bytes_of(saved));
    Sequence loaded(story_.config(options_, 2));
    loaded.load(in);
    for (int layer = 0; layer < 2; ++layer) {
      EXPECT_EQ(loaded.layer(layer).margin, saved.layer(layer).margin);
      expect_same_step(stage_.attend(saved, story_, 1300, layer), stage_.attend(loaded, story_, 1300, layer));
      for (Sequence* s : {&saved, &loaded}) {
        story_.observe(*s, layer, 1300, 1560);
        EXPECT_EQ(stage_.update(*s, story_, 1560, true, layer).clustered, 256);
      }
      expect_same_step(stage_.attend(saved, story_, 1560, layer), stage_.attend(loaded, story_, 1560, layer));
    }
    EXPECT_EQ(bytes_of(saved), bytes_of(loaded));
  }
}

TEST_F(Save, F16CentroidsComeBackToo) {
  options_ = paper_options();
  options_.min_context = 512;
  options_.recluster_tokens = 256;
  const Sequence saved = grown();
  std::istringstream in(bytes_of(saved));
  Sequence loaded(story_.config(options_, 2));
  loaded.load(in);
  expect_same_step(stage_.attend(saved, story_, 1300), stage_.attend(loaded, story_, 1300));
}

TEST_F(Save, EmptySequenceComesBackEmpty) {
  const Sequence saved(story_.config(options_, 2));
  Sequence loaded = grown();
  std::istringstream in(bytes_of(saved));
  loaded.load(in);
  EXPECT_TRUE(loaded.layer(0).segments.empty());
  EXPECT_EQ(bytes_of(loaded), bytes_of(saved));
}

TEST_F(Save, TruncatedBytesAreRefused) {
  const std::string bytes = bytes_of(grown());
  Sequence s(story_.config(options_, 2));
  for (std::size_t keep = 0; keep < bytes.size(); keep += std::max<std::size_t>(1, bytes.size() / 97))
    expect_refused(s, bytes.substr(0, keep), "first " + std::to_string(keep) + " bytes");
}

TEST_F(Save, AnyFlippedBitIsRefused) {
  const std::string bytes = bytes_of(grown());
  Sequence s(story_.config(options_, 2));
  std::mt19937_64 random(11);
  for (int i = 0; i < 200; ++i) {
    std::string damaged = bytes;
    // Every byte of the header, then anywhere.
    const std::size_t at = i < 64 ? static_cast<std::size_t>(i) : random() % bytes.size();
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (random() % 8)));
    expect_refused(s, damaged, "byte " + std::to_string(at));
  }
}

TEST_F(Save, AnotherModelsOrSettingsIndexIsRefused) {
  const std::string bytes = bytes_of(grown());
  Sequence layers(story_.config(options_, 3));
  expect_refused(layers, bytes, "layers");
  SequenceConfig config = story_.config(options_, 2);
  config.shape.q_heads = 8;
  Sequence shape(config);
  expect_refused(shape, bytes, "shape");
  Options other = options_;
  other.cluster_size = 12;
  Sequence size(story_.config(other, 2));
  expect_refused(size, bytes, "cluster size");
  other = options_;
  other.int8_centroids = false;
  Sequence centroids(story_.config(other, 2));
  expect_refused(centroids, bytes, "centroid type");
  other = options_;
  other.sink_tokens = 8;
  Sequence sinks(story_.config(other, 2));
  expect_refused(sinks, bytes, "sink tokens");
  other = options_;
  other.outlier_share = 0.25f;
  Sequence outliers(story_.config(other, 2));
  expect_refused(outliers, bytes, "outlier share");
}

TEST_F(Save, FullDiskIsAnIoError) {
  struct Full : std::streambuf {
    std::streamsize xsputn(const char*, std::streamsize) override { return 0; }
    int overflow(int) override { return traits_type::eof(); }
  } full;
  std::ostream out(&full);
  try {
    grown().save(out);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::io);
  }
}

}  // namespace
}  // namespace tactic::test
