// The engine's saved state of a sequence, from the layout of flash attention to that of plain attention.
//
// The layout (llama.cpp 0.5.0, src/llama-context.cpp and src/llama-kv-cache.cpp, state_write), little endian: u32 magic, i32
// sequence, then once per cache of the model:
//   u32 streams, for each: u32 cells (none: the stream ends here), for each cell: i32 position, u32 sequences = 1, i32 sequence;
//   u32 v_trans, u32 layers;
//   for each layer: i32 K type, u64 K row bytes, K [cells, row];
//   v_trans = 0, for each layer: i32 V type, u64 V row bytes, V [cells, row]
//   v_trans = 1, for each layer: i32 V type, u32 element bytes, u32 elements of a row, V [elements, cells]
#include "state.h"

#include <ggml.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace tactic::program {
namespace {

constexpr std::uint32_t kMagic = 0xaf143cd8;  // of a saved sequence
constexpr std::uint32_t kMost = 1u << 28;     // cells or layers: more is damage, and would overflow sizes

class Copier {
 public:
  explicit Copier(std::span<const std::uint8_t> in) : in_(in) { out_.reserve(in.size()); }

  bool done() const { return at_ == in_.size(); }
  std::span<const std::uint8_t> take(std::uint64_t bytes) {
    if (bytes > in_.size() - at_) throw Error(Status::corrupt, "saved state is cut short: read the document again");
    const auto part = in_.subspan(at_, bytes);
    at_ += bytes;
    return part;
  }
  template <typename T>
  T take() {
    T value{};
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  template <typename T>
  void put(T value) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&value);
    out_.insert(out_.end(), bytes, bytes + sizeof value);
  }
  template <typename T>
  T copy() {
    const T value = take<T>();
    put(value);
    return value;
  }
  void copy(std::uint64_t bytes) {
    const auto part = take(bytes);
    out_.insert(out_.end(), part.begin(), part.end());
  }
  std::uint8_t* extend(std::uint64_t bytes) {
    out_.resize(out_.size() + bytes);
    return out_.data() + (out_.size() - bytes);
  }
  std::vector<std::uint8_t> release() { return std::move(out_); }

 private:
  std::span<const std::uint8_t> in_;
  std::size_t at_ = 0;
  std::vector<std::uint8_t> out_;
};

// [rows, columns] to [columns, rows] of 2- or 4-byte elements, in tiles that keep both sides in the first cache.
template <typename T>
void transpose(const std::uint8_t* from, std::uint8_t* to, std::size_t rows, std::size_t columns) {
  constexpr std::size_t kTile = 32;
  for (std::size_t r0 = 0; r0 < rows; r0 += kTile) {
    for (std::size_t c0 = 0; c0 < columns; c0 += kTile) {
      for (std::size_t c = c0; c < std::min(columns, c0 + kTile); ++c) {
        for (std::size_t r = r0; r < std::min(rows, r0 + kTile); ++r) {
          std::memcpy(to + (c * rows + r) * sizeof(T), from + (r * columns + c) * sizeof(T), sizeof(T));
        }
      }
    }
  }
}

void check(bool good) {
  if (!good) throw Error(Status::corrupt, "saved state is not laid out as this engine version does: read the document again");
}

void transpose_layer(Copier& copier, std::uint32_t cells) {
  const auto type = copier.copy<std::int32_t>();
  const auto row = copier.take<std::uint64_t>();
  check(type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 || type == GGML_TYPE_F32);
  const std::uint32_t element = type == GGML_TYPE_F32 ? 4 : 2;
  check(row % element == 0 && row / element < kMost);
  const auto columns = static_cast<std::uint32_t>(row / element);
  copier.put(element);
  copier.put(columns);
  const auto values = copier.take(row * cells);
  std::uint8_t* out = copier.extend(values.size());
  if (element == 2) {
    transpose<std::uint16_t>(values.data(), out, cells, columns);
  } else {
    transpose<std::uint32_t>(values.data(), out, cells, columns);
  }
}

void convert_stream(Copier& copier) {
  const auto cells = copier.copy<std::uint32_t>();
  check(cells < kMost);
  if (cells == 0) return;
  for (std::uint32_t cell = 0; cell < cells; ++cell) {
    copier.copy<std::int32_t>();
    check(copier.copy<std::uint32_t>() == 1);
    copier.copy<std::int32_t>();
  }
  check(copier.take<std::uint32_t>() == 0);
  copier.put(std::uint32_t{1});
  const auto layers = copier.copy<std::uint32_t>();
  check(layers > 0 && layers < kMost);
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    copier.copy<std::int32_t>();
    const auto row = copier.copy<std::uint64_t>();
    check(row < kMost);
    copier.copy(row * cells);
  }
  for (std::uint32_t layer = 0; layer < layers; ++layer) transpose_layer(copier, cells);
}

}  // namespace

std::vector<std::uint8_t> transpose_v(std::span<const std::uint8_t> state) {
  Copier copier(state);
  check(copier.copy<std::uint32_t>() == kMagic);
  copier.copy<std::int32_t>();
  check(!copier.done());
  while (!copier.done()) {
    const auto streams = copier.copy<std::uint32_t>();
    check(streams == 1);  // one sequence is one stream
    convert_stream(copier);
  }
  return copier.release();
}

}  // namespace tactic::program
