// Batches of sequences on a CUDA device: checks of what the caller gives, then sequence/ and decode/.
#include "decode/cuda.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "capi/structs.h"
#include "core/device_check.h"
#include "sequence/cuda.h"
#include "tactic/tactic_cuda.h"

struct tactic_cuda_batch : tactic::capi::Handle {
  std::unique_ptr<tactic::cuda::DeviceSequences> state;
  tactic::AttentionParams params;
};

namespace tactic::capi {

TACTIC_GROWING(tactic_cuda_kv, "kv", lengths, lengths);
TACTIC_GROWING(tactic_cuda_batch_config, "config", max_length, max_length);
TACTIC_GROWING(tactic_cuda_step_args, "args", out, scratch_bytes);

tactic_cuda_kv Growing<tactic_cuda_kv>::defaults() {
  tactic_cuda_kv kv{};
  kv.size = sizeof kv;
  kv.block_size = 1;
  return kv;
}
tactic_cuda_batch_config Growing<tactic_cuda_batch_config>::defaults() {
  tactic_cuda_batch_config config{};
  config.size = sizeof config;
  config.sequences = 1;
  return config;
}
tactic_cuda_step_args Growing<tactic_cuda_step_args>::defaults() {
  tactic_cuda_step_args args{};
  args.size = sizeof args;
  args.q_dtype = args.out_dtype = TACTIC_CUDA_BF16;
  return args;
}

namespace {

void check_aligned(const std::string& name, const void* pointer, std::uintptr_t bytes) {
  if (pointer == nullptr) refuse(name + " is null; give its device address");
  if (reinterpret_cast<std::uintptr_t>(pointer) % bytes != 0)
    refuse(name + " is not aligned to " + std::to_string(bytes) + " bytes");
}

std::int64_t row_stride(const std::string& name, std::int64_t stride, std::int64_t row_bytes) {
  if (stride < row_bytes || stride % 16 != 0) {
    refuse(name + " is " + std::to_string(stride) + " bytes, must be a multiple of 16 and at least a row (" +
           std::to_string(row_bytes) + " bytes)");
  }
  return stride;
}

DeviceRows rows_of(const tactic_cuda_rows& c, const std::string& name, int dim, int kv_heads, bool paged, int sequences) {
  check_aligned(name + ".data", c.data, 16);
  check_range((name + ".dtype").c_str(), c.dtype, TACTIC_CUDA_F32, TACTIC_CUDA_FP8_E4M3);
  if (c.dim != dim) {
    refuse(name + ".dim is " + std::to_string(c.dim) + ", must be " + std::to_string(dim) + ", the head dimension of the layer");
  }
  if (!std::isfinite(c.scale) || c.scale < 0)
    refuse(name + ".scale is " + std::to_string(c.scale) + ", must be positive; 0 means 1");
  DeviceRows rows;
  rows.data = static_cast<const std::byte*>(c.data);
  rows.type = static_cast<DeviceType>(c.dtype);
  rows.dim = dim;
  rows.scale = c.scale == 0 ? 1.0f : c.scale;
  const auto bytes = dim * static_cast<std::int64_t>(size_of(rows.type));
  rows.token_stride = row_stride(name + ".token_stride", c.token_stride, bytes);
  if (kv_heads > 1) rows.head_stride = row_stride(name + ".head_stride", c.head_stride, bytes);
  if (paged) rows.block_stride = row_stride(name + ".block_stride", c.block_stride, bytes);
  if (!paged && sequences > 1) rows.sequence_stride = row_stride(name + ".sequence_stride", c.sequence_stride, bytes);
  return rows;
}

DeviceKv to_core(const tactic_cuda_kv& c, const cuda::DeviceSequences& batch) {
  const cuda::DeviceSequencesConfig& config = batch.config();
  if (c.kv_heads != config.shape.kv_heads) {
    refuse("kv.kv_heads is " + std::to_string(c.kv_heads) + ", must be " + std::to_string(config.shape.kv_heads) +
           ", the KV heads of the layer");
  }
  const bool paged = c.block_table != nullptr;
  DeviceKv kv;
  kv.k = rows_of(c.k, "kv.k", config.shape.head_dim, c.kv_heads, paged, config.sequences);
  kv.v = rows_of(c.v, "kv.v", config.shape.v_head_dim, c.kv_heads, paged, config.sequences);
  kv.sequences = config.sequences;
  kv.kv_heads = c.kv_heads;
  kv.max_length = config.max_length;
  kv.lengths = c.lengths != nullptr ? c.lengths : batch.lengths();
  if (paged) {
    check_range("kv.block_size", c.block_size, 1, cuda::kMostTokens);
    check_range("kv.block_count", c.block_count, 0, std::numeric_limits<std::int32_t>::max());
    const std::int64_t needed = (std::int64_t{config.max_length} + c.block_size - 1) / c.block_size;
    check_range("kv.max_blocks", c.max_blocks, needed, std::numeric_limits<std::int32_t>::max());
    kv.block_table = c.block_table;
    kv.block_size = c.block_size;
    kv.max_blocks = c.max_blocks;
    kv.block_count = c.block_count;
  }
  return kv;
}

struct Step {
  DeviceQuery query;
  DeviceOutput output;
  Options options;
};

std::int64_t stride_or_row(const char* name, std::int64_t stride, std::int64_t row) {
  if (stride == 0) return row;
  check_range(name, stride, row, std::numeric_limits<std::int64_t>::max() / 8);
  return stride;
}

Step to_core(const tactic_cuda_step_args& c, const tactic_cuda_batch& batch, bool sizes_only) {
  const cuda::DeviceSequencesConfig& config = batch.state->config();
  const Shape& shape = config.shape;
  check_range("args.q_dtype", c.q_dtype, TACTIC_CUDA_F32, TACTIC_CUDA_BF16);
  check_range("args.out_dtype", c.out_dtype, TACTIC_CUDA_F32, TACTIC_CUDA_BF16);
  check_range("args.observe", c.observe, 0, 1);
  if (!sizes_only) {
    check_aligned("args.q", c.q, 16);
    check_aligned("args.out", c.out, 16);
    check_aligned("args.scratch", c.scratch, 256);
  }
  Step step;
  step.query.q = c.q;
  step.query.type = static_cast<DeviceType>(c.q_dtype);
  step.query.sequence_stride =
      static_cast<std::int64_t>(size_of(step.query.type)) *
      stride_or_row("args.q_sequence_stride", c.q_sequence_stride, std::int64_t{shape.q_heads} * shape.head_dim);
  step.query.shape = shape;
  step.query.scale = batch.params.scale;
  step.query.softcap = batch.params.softcap;
  step.query.sink_logits = c.sink_logits;
  step.output.out = c.out;
  step.output.type = static_cast<DeviceType>(c.out_dtype);
  step.output.sequence_stride =
      static_cast<std::int64_t>(size_of(step.output.type)) *
      stride_or_row("args.out_sequence_stride", c.out_sequence_stride, std::int64_t{shape.q_heads} * shape.v_head_dim);
  if (step.query.sequence_stride % 16 != 0 || step.output.sequence_stride % 16 != 0) {
    refuse("args.q_sequence_stride and args.out_sequence_stride must be multiples of 16 bytes");
  }
  step.output.lse = c.lse;
  step.options = config.options;
  if (c.mass != 0) {
    if (!(c.mass > 0 && c.mass <= 1))
      refuse("args.mass is " + std::to_string(c.mass) + ", must be in (0, 1], or 0 for the batch's");
    step.options.mass = c.mass;
  }
  return step;
}

void check_layer(const tactic_cuda_batch& batch, std::int32_t layer) {
  check_range("layer", layer, 0, batch.state->config().layers - 1);
}
void check_sequence(const tactic_cuda_batch& batch, std::int32_t sequence) {
  check_range("sequence", sequence, 0, batch.state->config().sequences - 1);
}
void check_tokens(const tactic_cuda_batch& batch, std::int32_t tokens) {
  check_range("tokens", tokens, 0, batch.state->config().max_length);
}

// What the device leaves out (docs/gpu.md says why) is refused, not ignored.
void check_options(const Options& options) {
  const auto lacks = [](const char* field, const char* what) {
    throw Error(Status::unsupported, std::string("options.") + field + " is 1: the device has no " + what +
                                         "; use 0 (tactic_cuda_options_init() sets all that the device needs)");
  };
  if (options.promise) lacks("promise", "probe of heads");
  if (options.method != Method::tactic) return;
  if (options.verify) lacks("verify", "second look at what was attended");
}

tactic_options device_options() {
  tactic_options options = Growing<tactic_options>::defaults();
  options.verify = options.tail_factor = 0;
  return options;
}

}  // namespace
}  // namespace tactic::capi

using namespace tactic::capi;

tactic_status tactic_cuda_check(int32_t device) {
  return guard([&] { tactic::cuda::require_device(device); });
}

tactic_status tactic_cuda_options_init(tactic_options* options, size_t size) {
  return guard([&] { write_defaults(options, size, device_options()); });
}
tactic_status tactic_cuda_kv_init(tactic_cuda_kv* kv, size_t size) {
  return guard([&] { write_defaults(kv, size); });
}
tactic_status tactic_cuda_batch_config_init(tactic_cuda_batch_config* config, size_t size) {
  return guard([&] { write_defaults(config, size); });
}
tactic_status tactic_cuda_step_args_init(tactic_cuda_step_args* args, size_t size) {
  return guard([&] { write_defaults(args, size); });
}

tactic_status tactic_cuda_batch_create(const tactic_cuda_batch_config* config, tactic_cuda_batch** batch) {
  return guard([&] {
    require(batch, "batch");
    *batch = nullptr;
    const tactic_cuda_batch_config c = read_struct(config);
    tactic_sequence_config config_of_one = read_struct(c.sequence);
    tactic_options options = device_options();
    if (config_of_one.options == nullptr) config_of_one.options = &options;
    const tactic::SequenceConfig sequence = to_core(config_of_one);
    check_range("config.sequences", c.sequences, 1, 4096);
    check_range("config.max_length", c.max_length, 1, tactic::cuda::kMostTokens);
    check_options(sequence.options);
    tactic::cuda::require_device(-1);
    auto made = std::make_unique<tactic_cuda_batch>();
    made->params = sequence.params;
    made->state = std::make_unique<tactic::cuda::DeviceSequences>(tactic::cuda::DeviceSequencesConfig{
        sequence.layers, c.sequences, c.max_length, sequence.shape, sequence.rotary, sequence.options});
    *batch = made.release();
  });
}

void tactic_cuda_batch_destroy(tactic_cuda_batch* batch) { delete batch; }

const char* tactic_cuda_batch_error(const tactic_cuda_batch* batch) {
  return batch == nullptr ? "batch is null" : batch->message.text;
}

tactic_status tactic_cuda_batch_bytes(tactic_cuda_batch* batch, size_t* bytes) {
  return guard(batch, "batch", [&] {
    require(bytes, "bytes");
    *bytes = batch->state->bytes();
  });
}

tactic_status tactic_cuda_lengths(tactic_cuda_batch* batch, int32_t** lengths) {
  return guard(batch, "batch", [&] {
    require(lengths, "lengths");
    *lengths = batch->state->lengths();
  });
}

tactic_status tactic_cuda_clear(tactic_cuda_batch* batch, int32_t sequence, tactic_cuda_stream stream) {
  return guard(batch, "batch", [&] {
    check_sequence(*batch, sequence);
    batch->state->clear(sequence, stream);
  });
}

tactic_status tactic_cuda_set_length(tactic_cuda_batch* batch, int32_t sequence, int32_t tokens, tactic_cuda_stream stream) {
  return guard(batch, "batch", [&] {
    check_sequence(*batch, sequence);
    check_tokens(*batch, tokens);
    batch->state->set_length(sequence, tokens, stream);
  });
}

tactic_status tactic_cuda_truncate(tactic_cuda_batch* batch, int32_t sequence, int32_t tokens, tactic_cuda_stream stream) {
  return guard(batch, "batch", [&] {
    check_sequence(*batch, sequence);
    check_tokens(*batch, tokens);
    batch->state->truncate(sequence, tokens, stream);
  });
}

tactic_status tactic_cuda_observe_prompt(tactic_cuda_batch* batch, int32_t layer, int32_t sequence, const void* q, int32_t dtype,
                                         int64_t token_stride, int32_t first, int32_t tokens, tactic_cuda_stream stream) {
  return guard(batch, "batch", [&] {
    const tactic::Shape& shape = batch->state->config().shape;
    check_layer(*batch, layer);
    check_sequence(*batch, sequence);
    require(q, "q");
    check_range("dtype", dtype, TACTIC_CUDA_F32, TACTIC_CUDA_BF16);
    check_range("first", first, 0, batch->state->config().max_length);
    check_range("tokens", tokens, 1, batch->state->config().max_length - first);
    const auto type = static_cast<tactic::DeviceType>(dtype);
    const std::int64_t stride = stride_or_row("token_stride", token_stride, std::int64_t{shape.q_heads} * shape.head_dim);
    batch->state->observe_prompt(layer, sequence, q, type, stride * static_cast<std::int64_t>(tactic::size_of(type)), first,
                                 tokens, stream);
  });
}

tactic_status tactic_cuda_due(tactic_cuda_batch* batch, int32_t layer, int32_t sequence, int32_t tokens, int32_t* due) {
  return guard(batch, "batch", [&] {
    require(due, "due");
    check_layer(*batch, layer);
    check_sequence(*batch, sequence);
    check_tokens(*batch, tokens);
    *due = batch->state->due(layer, sequence, tokens);
  });
}

tactic_status tactic_cuda_cluster(tactic_cuda_batch* batch, int32_t first_layer, int32_t layers, const tactic_cuda_kv* kv,
                                  int32_t sequence, int32_t tokens, int32_t* clustered, tactic_cuda_stream stream) {
  return guard(batch, "batch", [&] {
    check_layer(*batch, first_layer);
    check_range("layers", layers, 1, batch->state->config().layers - first_layer);
    require(kv, "kv");
    check_sequence(*batch, sequence);
    check_tokens(*batch, tokens);
    std::vector<tactic::DeviceKv> views;
    views.reserve(static_cast<std::size_t>(layers));
    const auto* view = reinterpret_cast<const std::byte*>(kv);  // views lie as far apart as the caller's struct is long
    for (std::int32_t l = 0; l < layers; ++l, view += kv->size) {
      views.push_back(to_core(read_struct(reinterpret_cast<const tactic_cuda_kv*>(view)), *batch->state));
    }
    const std::int32_t most = batch->state->cluster(first_layer, views, sequence, tokens, stream);
    if (clustered != nullptr) *clustered = most;
  });
}

tactic_status tactic_cuda_settle(tactic_cuda_batch* batch, tactic_cuda_stream stream) {
  return guard(batch, "batch", [&] { batch->state->settle(stream); });
}

tactic_status tactic_cuda_append(tactic_cuda_batch* batch, tactic_cuda_stream stream) {
  return guard(batch, "batch", [&] { batch->state->append(stream); });
}

tactic_status tactic_cuda_step_bytes(tactic_cuda_batch* batch, const tactic_cuda_kv* kv, const tactic_cuda_step_args* args,
                                     size_t* bytes) {
  return guard(batch, "batch", [&] {
    require(bytes, "bytes");
    const tactic::DeviceKv view = to_core(read_struct(kv), *batch->state);
    const Step step = to_core(read_struct(args), *batch, true);
    *bytes = tactic::cuda::decode_scratch_bytes(step.query, view, &batch->state->index(0), step.options);
  });
}

tactic_status tactic_cuda_step(tactic_cuda_batch* batch, int32_t layer, const tactic_cuda_kv* kv,
                               const tactic_cuda_step_args* args, tactic_cuda_stream stream) {
  return guard(batch, "batch", [&] {
    check_layer(*batch, layer);
    const tactic::DeviceKv view = to_core(read_struct(kv), *batch->state);
    const tactic_cuda_step_args c = read_struct(args);
    const Step step = to_core(c, *batch, false);
    const tactic::DeviceIndex& index = batch->state->index(layer);
    const std::size_t needed = tactic::cuda::decode_scratch_bytes(step.query, view, &index, step.options);
    if (c.scratch_bytes < needed) {
      refuse("args.scratch_bytes is " + std::to_string(c.scratch_bytes) + ", must be at least " + std::to_string(needed) +
             "; ask tactic_cuda_step_bytes()");
    }
    if (c.observe != 0) batch->state->observe(layer, step.query, stream);
    tactic::cuda::decode_step(step.query, view, &index, step.options, step.output, batch->state->status(), c.scratch, stream);
  });
}
