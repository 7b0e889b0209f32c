// A build without CUDA.
#include "core/error.h"
#include "sequence/cuda.h"

namespace tactic::cuda {

struct DeviceSequences::Implementation {};

DeviceSequences::DeviceSequences(const DeviceSequencesConfig&) { throw_absent(); }
DeviceSequences::~DeviceSequences() = default;
const DeviceSequencesConfig& DeviceSequences::config() const { throw_absent(); }
const DeviceIndex& DeviceSequences::index(int) const { throw_absent(); }
std::int32_t* DeviceSequences::lengths() const { throw_absent(); }
std::uint32_t* DeviceSequences::status() const { throw_absent(); }
std::size_t DeviceSequences::bytes() const { throw_absent(); }
void DeviceSequences::append(DeviceStream) { throw_absent(); }
void DeviceSequences::observe(int, const DeviceQuery&, DeviceStream) { throw_absent(); }
void DeviceSequences::clear(int, DeviceStream) { throw_absent(); }
void DeviceSequences::set_length(int, std::int32_t, DeviceStream) { throw_absent(); }
void DeviceSequences::observe_prompt(int, int, const void*, DeviceType, std::int64_t, std::int32_t, std::int32_t, DeviceStream) {
  throw_absent();
}
std::int32_t DeviceSequences::due(int, int, std::int32_t) const { throw_absent(); }
std::int32_t DeviceSequences::cluster(int, std::span<const DeviceKv>, int, std::int32_t, DeviceStream) { throw_absent(); }
void DeviceSequences::truncate(int, std::int32_t, DeviceStream) { throw_absent(); }
void DeviceSequences::settle(DeviceStream) { throw_absent(); }

}  // namespace tactic::cuda
