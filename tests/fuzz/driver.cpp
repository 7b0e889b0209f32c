// Runs a fuzz target without libFuzzer: the files of a corpus folder as they are, then seeded random changes of them.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

std::vector<Bytes> read_corpus(const char* folder) {
  std::vector<Bytes> corpus;
  if (folder != nullptr && std::filesystem::is_directory(folder)) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      std::ifstream file(entry.path(), std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
  }
  if (corpus.empty()) corpus.emplace_back();
  return corpus;
}

// One to four edits: flip a bit, set a byte to an edge value, cut the end off, double a stretch, insert noise.
void mutate(Bytes& bytes, std::mt19937& random) {
  const auto below = [&](std::size_t limit) { return static_cast<std::ptrdiff_t>(random() % limit); };
  constexpr std::uint8_t kEdges[] = {0, 1, 0x7f, 0x80, 0xff};
  for (auto edits = 1 + below(4); edits > 0; --edits) {
    const auto size = bytes.size();
    const auto at = below(size + 1);
    switch (size == 0 ? 4 : below(5)) {
      case 0:
        bytes[static_cast<std::size_t>(below(size))] ^= static_cast<std::uint8_t>(1 << below(8));
        break;
      case 1:
        bytes[static_cast<std::size_t>(below(size))] = kEdges[below(std::size(kEdges))];
        break;
      case 2:
        bytes.resize(static_cast<std::size_t>(at));
        break;
      case 3: {
        const Bytes stretch(bytes.begin() + below(size), bytes.end());
        if (size < 1 << 16) bytes.insert(bytes.begin() + at, stretch.begin(), stretch.end());
        break;
      }
      default:
        for (auto i = 1 + below(8); i > 0; --i) bytes.insert(bytes.begin() + at, static_cast<std::uint8_t>(random()));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* runs_text = std::getenv("TACTIC_FUZZ_RUNS");
  const int runs = runs_text != nullptr ? std::atoi(runs_text) : 5000;
  const auto corpus = read_corpus(argc > 1 ? argv[1] : nullptr);
  for (const auto& bytes : corpus) LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  std::mt19937 random(1);
  for (int run = 0; run < runs; ++run) {
    Bytes bytes = corpus[random() % corpus.size()];
    mutate(bytes, random);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%zu files and %d changes of them\n", corpus.size(), runs);
}
