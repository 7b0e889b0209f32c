// Real queries, keys and values of a model on a text: recorded from a run, written and read as safetensors.
//
// Tensors of a file, N = prompt tokens, T = decode steps, W = last prompt tokens whose queries are kept (128 or N):
//   q         f32 [T, layers, q_heads, head_dim]   post-RoPE, unscaled; step t is token N + t and attends to tokens 0 .. N + t
//   prompt_q  f32 [W, layers, q_heads, head_dim]   of tokens N - W .. N - 1
//   k, v      f16 [layers, kv_heads, N + T, head_dim]
//   tokens    i32 [N + T]
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cluster/cluster.h"
#include "core/types.h"
#include "core/view.h"
#include "document.h"
#include "safetensors.h"

namespace tactic::program {

struct CaptureInfo {
  std::string model;  // description and file name
  int layers = 0;
  Shape shape;
  int prompt_tokens = 0;  // N
  int steps = 0;          // T
  int window = 0;         // W
  AttentionParams params;
  Rotary rotary;

  int tokens() const { return prompt_tokens + steps; }
};

// A capture in memory; the spans are of `storage` or of `file`.
class Capture {
 public:
  // Throws Error(io) or Error(corrupt) naming the file.
  static Capture read(const std::string& path);
  void write(const std::string& path) const;

  const CaptureInfo& info() const { return info_; }
  std::span<const float> q(int step, int layer) const;  // [q_heads, head_dim]
  const float* prompt_q(int layer) const;               // [W, ...], token stride layers * q_heads * head_dim
  KvView kv(int layer, std::int64_t tokens) const;      // of the first `tokens`
  std::int64_t token_stride() const { return std::int64_t{info_.layers} * row(); }  // floats between two tokens' queries

 private:
  friend class Recorder;
  std::int64_t row() const { return std::int64_t{info_.shape.q_heads} * info_.shape.head_dim; }

  CaptureInfo info_;
  std::vector<MappedFile> file_;  // of a capture that was read: one
  struct Storage {
    std::vector<float> q, prompt_q;
    std::vector<std::uint16_t> k, v;
    Tokens tokens;
  } storage_;  // of one that was recorded
  std::span<const float> q_, prompt_q_;
  std::span<const std::uint16_t> k_, v_;
  std::span<const Token> tokens_;
};

struct RecordOptions {
  std::string model;
  std::string file;
  int tokens = 0;  // of the prompt; 0: as many as document and context have
  int steps = 64;
  int threads = 0;
  bool verbose = false;
};

// Runs the model over the document: `tokens` tokens at once, then `steps` single ones. Throws Error or Interrupted.
Capture record(const RecordOptions& options);

}  // namespace tactic::program
