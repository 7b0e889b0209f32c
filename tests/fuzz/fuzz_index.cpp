// Saved indexes: whatever the bytes, load() gives a sequence that can step, or refuses with Error(corrupt) and leaves the
// sequence as it was. The input edits a valid index, so that it gets past the header: an odd first byte cuts the end off at
// the place of the next three; then come records of a 3-byte place and the value to set there.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>

#include "core/error.h"
#include "support/story.h"

namespace {

using namespace tactic;
using namespace tactic::test;

constexpr Shape kShape{2, 1, 64, 64};
constexpr std::int64_t kTokens = 700;

std::string bytes_of(const Sequence& sequence) {
  std::ostringstream out;
  sequence.save(out);
  return out.str();
}

struct Fixture {
  Story story{kShape, kTokens};
  Stage stage{1};
  Sequence sequence{story.config(small_options())};
  std::string saved;

  Fixture() {
    story.observe(sequence, 0, 0, kTokens);
    stage.update(sequence, story, kTokens);
    saved = bytes_of(sequence);
  }
};

std::size_t place(const std::uint8_t* p, std::size_t limit) {
  return (p[0] | std::size_t{p[1]} << 8 | std::size_t{p[2]} << 16) % limit;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Fixture fixture;
  std::string bytes = fixture.saved;
  if (size >= 4 && data[0] % 2 == 1) bytes.resize(place(data + 1, bytes.size()));
  for (std::size_t i = 4; i + 4 <= size && !bytes.empty(); i += 4) {
    bytes[place(data + i, bytes.size())] = static_cast<char>(data[i + 3]);
  }
  std::istringstream in(bytes);
  Sequence loaded(fixture.story.config(small_options()));
  const std::string before = bytes_of(loaded);
  try {
    loaded.load(in);
    fixture.stage.attend(loaded, fixture.story, kTokens);
  } catch (const Error& error) {
    if (error.status() != Status::corrupt || bytes_of(loaded) != before) std::abort();
  }
  return 0;
}
