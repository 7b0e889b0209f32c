// Bookkeeping of caches and the wrapped functions of their buffers.
#include "caches.h"

#include <algorithm>

#include "huge_pages.h"
#include "shared.h"

namespace tactic::llama {
namespace {

// ---- what a wrapped buffer does: note the write, then what it always did ---------------------------------------------

void noted_set(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, std::size_t offset, std::size_t size) {
  Caches& caches = Caches::instance();
  caches.buffer_write(buffer, static_cast<const std::byte*>(tensor->data) + offset, size, Caches::Change::tokens);
  caches.original(buffer).set_tensor(buffer, tensor, data, offset, size);
}

void noted_memset(ggml_backend_buffer_t buffer, ggml_tensor* tensor, std::uint8_t value, std::size_t offset, std::size_t size) {
  Caches& caches = Caches::instance();
  caches.buffer_write(buffer, static_cast<const std::byte*>(tensor->data) + offset, size, Caches::Change::tokens);
  caches.original(buffer).memset_tensor(buffer, tensor, value, offset, size);
}

void noted_set_2d(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, std::size_t offset, std::size_t size,
                  std::size_t copies, std::size_t stride, std::size_t data_stride) {
  Caches& caches = Caches::instance();
  if (copies > 0) {
    caches.buffer_write(buffer, static_cast<const std::byte*>(tensor->data) + offset, (copies - 1) * stride + size,
                        Caches::Change::tokens);
  }
  caches.original(buffer).set_tensor_2d(buffer, tensor, data, offset, size, copies, stride, data_stride);
}

bool noted_copy(ggml_backend_buffer_t buffer, const ggml_tensor* source, ggml_tensor* to) {
  Caches& caches = Caches::instance();
  caches.buffer_write(buffer, to->data, ggml_nbytes(to), Caches::Change::tokens);
  return caches.original(buffer).cpy_tensor(buffer, source, to);
}

void noted_clear(ggml_backend_buffer_t buffer, std::uint8_t value) {
  Caches& caches = Caches::instance();
  caches.buffer_write(buffer, ggml_backend_buffer_get_base(buffer), buffer->size, Caches::Change::tokens);
  caches.original(buffer).clear(buffer, value);
}

void noted_free(ggml_backend_buffer_t buffer) {
  const ggml_backend_buffer_i functions = Caches::instance().release(buffer);
  if (functions.free_buffer != nullptr) functions.free_buffer(buffer);
}

// Cells of `root` that bytes [begin, end) touch, as [first, last).
std::pair<std::int64_t, std::int64_t> cells_of(const ggml_tensor* root, const void* data, std::size_t bytes) {
  const auto base = reinterpret_cast<std::uintptr_t>(root->data);
  const auto begin = std::max(reinterpret_cast<std::uintptr_t>(data), base);
  const auto end = std::min(reinterpret_cast<std::uintptr_t>(data) + bytes, base + ggml_nbytes(root));
  if (begin >= end) return {0, 0};
  return {static_cast<std::int64_t>((begin - base) / root->nb[1]),
          static_cast<std::int64_t>((end - base + root->nb[1] - 1) / root->nb[1])};
}

void mark(Layer& layer, std::int64_t first, std::int64_t last, Caches::Change change, std::uint32_t step) {
  first = std::max<std::int64_t>(first - layer.first_cell(), 0);
  last = std::min(last - layer.first_cell(), layer.cells().count());
  if (first >= last) return;
  if (change == Caches::Change::tokens) {
    layer.cells().replaced(first, last, step);
    layer.queries().clear();  // of what was there before
  } else {
    layer.cells().altered(first, last, step);
  }
}

std::int64_t row_index(const ggml_tensor* rows, std::int64_t i) {
  const std::byte* at = static_cast<const std::byte*>(rows->data) + static_cast<std::size_t>(i) * rows->nb[0];
  return rows->type == GGML_TYPE_I64 ? *reinterpret_cast<const std::int64_t*>(at) : *reinterpret_cast<const std::int32_t*>(at);
}

// Whether a SET_ROWS writes whole cells whose numbers are known before the graph runs.
bool writes_known_cells(const ggml_tensor* node) {
  const ggml_tensor* rows = node->src[1];
  return static_cast<int>(node->op) == ops().set_rows && rows != nullptr && static_cast<int>(rows->op) == ops().none &&
         rows->buffer != nullptr && ggml_backend_buffer_is_host(rows->buffer) && rows->ne[1] == 1 && rows->ne[2] == 1 &&
         (rows->type == GGML_TYPE_I64 || rows->type == GGML_TYPE_I32) && node->nb[1] == node->view_src->nb[1] &&
         node->view_offs == 0;
}

}  // namespace

Caches& Caches::instance() {
  static auto* const caches = new Caches;  // never destroyed: buffers may be freed while the process ends
  return *caches;
}

std::uint32_t Caches::next_step() {
  const std::lock_guard lock(mutex_);
  return ++step_;
}

void Caches::wrap(ggml_backend_buffer* buffer) {
  if (!wrapped_.emplace(buffer, buffer->iface).second) return;
  if (Shared::instance().settings()->huge_pages() && ggml_backend_buffer_is_host(buffer)) {
    collapse_into_huge_pages(ggml_backend_buffer_get_base(buffer), buffer->size);
  }
  ggml_backend_buffer_i& functions = buffer->iface;
  functions.free_buffer = noted_free;  // also where there was none: the buffer's end must be seen
  if (functions.set_tensor != nullptr) functions.set_tensor = noted_set;
  if (functions.memset_tensor != nullptr) functions.memset_tensor = noted_memset;
  if (functions.set_tensor_2d != nullptr) functions.set_tensor_2d = noted_set_2d;
  if (functions.cpy_tensor != nullptr) functions.cpy_tensor = noted_copy;
  if (functions.clear != nullptr) functions.clear = noted_clear;
}

ggml_backend_buffer_i Caches::original(ggml_backend_buffer* buffer) {
  const std::lock_guard lock(mutex_);
  return wrapped_.at(buffer);
}

ggml_backend_buffer_i Caches::release(ggml_backend_buffer* buffer) {
  const std::lock_guard lock(mutex_);
  for (auto it = by_root_.begin(); it != by_root_.end();) {
    it = it->second.front()->buffer() == buffer ? by_root_.erase(it) : std::next(it);
  }
  if (recent_ == buffer) recent_ = nullptr;
  if (watched_ == buffer) watched_ = nullptr;
  const auto found = wrapped_.find(buffer);
  buffer->iface = found->second;
  wrapped_.erase(found);
  return buffer->iface;
}

std::shared_ptr<Layer> Caches::layer(const AttentionNode& node) {
  const std::lock_guard lock(mutex_);
  auto& streams = by_root_[node.k_root];
  for (const auto& known : streams) {
    if (known->first_cell() == node.first_cell) return known;
  }
  auto made = std::make_shared<Layer>(node);
  streams.push_back(made);
  by_root_[node.v_root].push_back(made);
  if (const auto offered = offers_.find(made->number()); offered != offers_.end()) {
    made->offer(std::move(offered->second));
    offers_.erase(offered);
  }
  wrap(node.k_root->buffer);
  return made;
}

void Caches::note_write(const ggml_tensor* node, std::uint32_t step) {
  const std::lock_guard lock(mutex_);
  const auto found = by_root_.find(node->view_src);
  if (found == by_root_.end()) return;
  for (const auto& layer : found->second) {
    if (writes_known_cells(node)) {
      for (std::int64_t i = 0; i < node->src[1]->ne[0]; ++i) {
        const std::int64_t cell = row_index(node->src[1], i) - layer->first_cell();
        if (cell >= 0 && cell < layer->cells().count()) layer->cells().appended(cell, step);
      }
    } else {
      const auto [first, last] = cells_of(node->view_src, node->data, ggml_nbytes(node));
      mark(*layer, first, last, Change::content, step);
    }
  }
}

void Caches::buffer_write(ggml_backend_buffer* buffer, const void* data, std::size_t bytes, Change change) {
  const std::lock_guard lock(mutex_);
  const std::uint32_t step = ++step_;
  for (const auto& [root, streams] : by_root_) {
    if (streams.front()->buffer() != buffer) continue;
    const auto [first, last] = cells_of(root, data, bytes);
    for (const auto& layer : streams) mark(*layer, first, last, change, step);
  }
}

void Caches::offer(int number, SavedIndex saved) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<Layer> target;
  for (const auto& [root, streams] : by_root_) {
    for (const auto& layer : streams) {
      if (layer->k_root() == root && layer->number() == number && (recent_ == nullptr || layer->buffer() == recent_))
        target = layer;
    }
  }
  if (target) {
    target->offer(std::move(saved));
  } else {
    offers_[number] = std::move(saved);
  }
}

void Caches::drop_indexes() {
  for_each([](Layer& layer) { layer.drop_index(); });
  const std::lock_guard lock(mutex_);
  offers_.clear();
}

void Caches::for_each(const std::function<void(Layer&)>& visit) {
  const std::lock_guard lock(mutex_);
  for (const auto& [root, streams] : by_root_) {
    for (const auto& layer : streams) {
      if (layer->k_root() == root) visit(*layer);
    }
  }
}

std::vector<std::shared_ptr<Layer>> Caches::recent() { return in_buffer(recent_); }
std::vector<std::shared_ptr<Layer>> Caches::watched() { return in_buffer(watched_); }

std::vector<std::shared_ptr<Layer>> Caches::in_buffer(const ggml_backend_buffer* buffer) {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Layer>> layers;
  for (const auto& [root, streams] : by_root_) {
    for (const auto& layer : streams) {
      if (layer->k_root() == root && layer->buffer() == buffer) layers.push_back(layer);
    }
  }
  std::sort(layers.begin(), layers.end(), [](const auto& a, const auto& b) { return a->number() < b->number(); });
  return layers;
}

}  // namespace tactic::llama
