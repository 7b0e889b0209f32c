// Save and load: the same sequence comes back; damage anywhere is found and changes nothing; files are whole or not there.
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <random>

#include "fixture.h"

namespace tactic::test {
namespace {

using Bytes = std::vector<unsigned char>;

class Saved : public ::testing::Test {
 protected:
  Saved()
      : cache(400), context(make_context(1)), sequence(make_sequence(cache.shape(), 2)), other(make_sequence(cache.shape(), 2)) {
    prefill(sequence.get(), context.get(), cache, 2);
    q = cache.query();
    expected = attend(sequence.get(), context.get(), 1, cache.view(), q);
    bytes = save();
  }
  Bytes save() {
    std::size_t size = 0;
    EXPECT_WORKS(tactic_sequence_save_size(sequence.get(), &size));
    Bytes to(size + 16, 0xab);
    std::size_t written = 0;
    EXPECT_WORKS(tactic_sequence_save_buffer(sequence.get(), to.data(), size, &written));
    EXPECT_EQ(written, size);
    EXPECT_EQ(to[size], 0xab) << "wrote past the capacity";
    to.resize(size);
    return to;
  }
  tactic_status load(const Bytes& from) { return tactic_sequence_load_buffer(other.get(), from.data(), from.size()); }

  TopicCache cache;
  ContextPtr context;
  SequencePtr sequence;
  SequencePtr other;
  std::vector<float> q;
  std::vector<float> expected;
  Bytes bytes;
};

TEST_F(Saved, ABufferBringsTheSequenceBack) {
  ASSERT_WORKS(load(bytes));
  EXPECT_EQ(attend(other.get(), context.get(), 1, cache.view(), q), expected);
  std::swap(sequence, other);
  EXPECT_EQ(save(), bytes);
}

TEST_F(Saved, AFileHoldsTheSameBytesAndBringsTheSequenceBack) {
  const TemporaryFolder folder;
  const std::string path = folder.file("index");
  ASSERT_WORKS(tactic_sequence_save(sequence.get(), path.c_str()));
  std::ifstream in(path, std::ios::binary);
  const Bytes stored((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  EXPECT_EQ(stored, bytes);
  ASSERT_WORKS(tactic_sequence_load(other.get(), path.c_str()));
  EXPECT_EQ(attend(other.get(), context.get(), 1, cache.view(), q), expected);
}

TEST_F(Saved, SavingAgainReplacesTheFileAndLeavesNothingElse) {
  const TemporaryFolder folder;
  const std::string path = folder.file("index");
  std::ofstream(path) << "what was there before";
  ASSERT_WORKS(tactic_sequence_save(sequence.get(), path.c_str()));
  EXPECT_EQ(std::filesystem::file_size(path), bytes.size());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST_F(Saved, EveryTruncationIsCorrupt) {
  std::mt19937 random(1);
  for (int run = 0; run < 200; ++run) {
    Bytes cut = bytes;
    // every length near both ends, random ones between
    cut.resize(run < 60    ? static_cast<std::size_t>(run)
               : run < 100 ? bytes.size() - static_cast<std::size_t>(run - 59)
                           : random() % bytes.size());
    EXPECT_FAILS(load(cut), TACTIC_CORRUPT, "index: ");
  }
}

TEST_F(Saved, EveryChangedByteIsCorruptAndLeavesTheSequenceAsItWas) {
  ASSERT_WORKS(load(bytes));
  std::mt19937 random(2);
  for (int run = 0; run < 400; ++run) {
    Bytes changed = bytes;
    // the header byte by byte, the checksum byte by byte, random places between
    const std::size_t at = run < 60   ? static_cast<std::size_t>(run)
                           : run < 68 ? bytes.size() - static_cast<std::size_t>(run - 59)
                                      : random() % bytes.size();
    changed[at] ^= static_cast<unsigned char>(1 + random() % 255);
    EXPECT_EQ(load(changed), TACTIC_CORRUPT) << "byte " << at;
  }
  EXPECT_EQ(attend(other.get(), context.get(), 1, cache.view(), q), expected);
}

TEST_F(Saved, BytesBehindTheEndAreCorruptAndLeaveTheSequenceAsItWas) {
  Bytes longer = bytes;
  longer.push_back(0);
  EXPECT_FAILS(load(longer), TACTIC_CORRUPT, "bytes behind its end");
  std::int64_t first = -1;
  std::int64_t last = -1;
  ASSERT_WORKS(tactic_sequence_clustered(other.get(), 0, &first, &last));
  EXPECT_EQ(last, 0);
}

TEST_F(Saved, AnotherModelsIndexIsRefused) {
  other = make_sequence(cache.shape(), 3);
  EXPECT_FAILS(load(bytes), TACTIC_CORRUPT, "made for another model");
  other = make_sequence({4, 1, 64, 64}, 2);
  EXPECT_FAILS(load(bytes), TACTIC_CORRUPT, "made for another model");
}

TEST_F(Saved, ABufferThatIsTooSmallIsRefusedWithTheSizeNeeded) {
  Bytes small(bytes.size() - 1);
  std::size_t written = 7;
  EXPECT_FAILS(tactic_sequence_save_buffer(sequence.get(), small.data(), small.size(), &written), TACTIC_INVALID_ARGUMENT,
               "must be at least " + std::to_string(bytes.size()));
  EXPECT_EQ(written, 7u);
}

TEST_F(Saved, FileErrorsNameTheFileAndLeaveNothing) {
  const TemporaryFolder folder;
  EXPECT_FAILS(tactic_sequence_save(sequence.get(), folder.file("no/such/index").c_str()), TACTIC_IO, "no/such/index");
  EXPECT_FAILS(tactic_sequence_load(other.get(), folder.file("none").c_str()), TACTIC_IO, "No such file");
  EXPECT_FAILS(tactic_sequence_load(other.get(), folder.path().c_str()), TACTIC_IO, "Is a directory");
  EXPECT_FAILS(tactic_sequence_save(sequence.get(), folder.path().c_str()), TACTIC_IO, "cannot be replaced");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  std::ofstream(folder.file("text")) << "hello";
  EXPECT_FAILS(tactic_sequence_load(other.get(), folder.file("text").c_str()), TACTIC_CORRUPT, "text': index: ");
  EXPECT_FAILS(tactic_sequence_save(sequence.get(), nullptr), TACTIC_INVALID_ARGUMENT, "path is null");
  EXPECT_FAILS(tactic_sequence_load(sequence.get(), nullptr), TACTIC_INVALID_ARGUMENT, "path is null");
}

// A limit on the size of files stands for the full disk: both fail in write().
TEST_F(Saved, AFullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  const std::string path = folder.file("index");
  std::ofstream(path) << "what was there before";
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = bytes.size() / 2;
  std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const tactic_status status = tactic_sequence_save(sequence.get(), path.c_str());
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(status, TACTIC_IO);
  EXPECT_NE(std::string(tactic_last_error()).find("File too large"), std::string::npos) << tactic_last_error();
  EXPECT_EQ(std::filesystem::file_size(path), 21u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

}  // namespace
}  // namespace tactic::test
