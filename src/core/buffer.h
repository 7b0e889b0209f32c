// Owning, cache-line aligned arrays of plain values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

namespace tactic {

// An array of trivial T, 64-byte aligned, uninitialised when it grows. resize() never shrinks the capacity, so that a warm
// workspace allocates nothing.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) { resize(size); }
  Buffer(const Buffer& other) { assign(other.span()); }
  Buffer(Buffer&& other) noexcept
      : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)), capacity_(std::exchange(other.capacity_, 0)) {}
  Buffer& operator=(const Buffer& other) {
    if (this != &other) assign(other.span());
    return *this;
  }
  Buffer& operator=(Buffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    return *this;
  }

  // Contents are kept up to the smaller of the two sizes.
  void resize(std::size_t size) {
    if (size > capacity_) {
      T* fresh = static_cast<T*>(::operator new (size * sizeof(T), std::align_val_t{64}));
      std::copy(data_.get(), data_.get() + size_, fresh);
      data_.reset(fresh);
      capacity_ = size;
    }
    size_ = size;
  }
  void fill(T value) { std::fill(begin(), end(), value); }
  void assign(std::span<const T> values) {
    resize(values.size());
    std::copy(values.begin(), values.end(), data());
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::size_t bytes() const { return capacity_ * sizeof(T); }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  std::span<T> span() { return {data(), size_}; }
  std::span<const T> span() const { return {data(), size_}; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<T[], Free> data_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace tactic
