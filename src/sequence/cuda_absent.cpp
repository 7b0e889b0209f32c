// A build without CUDA.
#include "core/error.h"
#include "sequence/cuda.h"

namespace tactic::cuda {

struct DeviceBatch::Implementation {};

DeviceBatch::DeviceBatch(const DeviceBatchConfig&) { throw_absent(); }
DeviceBatch::~DeviceBatch() = default;
const DeviceBatchConfig& DeviceBatch::config() const { throw_absent(); }
const DeviceIndex& DeviceBatch::index(int) const { throw_absent(); }
std::int32_t* DeviceBatch::lengths() const { throw_absent(); }
std::uint32_t* DeviceBatch::status() const { throw_absent(); }
std::size_t DeviceBatch::bytes() const { throw_absent(); }
void DeviceBatch::append(DeviceStream) { throw_absent(); }
void DeviceBatch::observe(int, const DeviceQuery&, DeviceStream) { throw_absent(); }
void DeviceBatch::clear(int, DeviceStream) { throw_absent(); }
void DeviceBatch::set_length(int, std::int32_t, DeviceStream) { throw_absent(); }
void DeviceBatch::observe_prompt(int, int, const void*, DeviceType, std::int64_t, std::int32_t, std::int32_t, DeviceStream) {
  throw_absent();
}
std::int32_t DeviceBatch::due(int, int, std::int32_t) const { throw_absent(); }
std::int32_t DeviceBatch::cluster(int, std::span<const DeviceKv>, int, std::int32_t, DeviceStream) { throw_absent(); }
void DeviceBatch::truncate(int, std::int32_t, DeviceStream) { throw_absent(); }
void DeviceBatch::settle(DeviceStream) { throw_absent(); }

}  // namespace tactic::cuda
