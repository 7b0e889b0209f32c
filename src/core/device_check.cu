#include <algorithm>
#include <atomic>
#include <string>

#include "core/cuda.h"
#include "core/device_check.h"

namespace tactic::cuda {
namespace {

// Its image tells whether this library holds code for a device.
__global__ void probe_kernel() {}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

[[noreturn]] void unusable(const std::string& message) {
  cudaGetLastError();
  throw Error(Status::unsupported, message);
}

}  // namespace

bool has_sm90_code() {
  constexpr int kDevices = 64;
  enum Answer : char { unknown, no, yes };
  static std::atomic<Answer> answers[kDevices];
  int device = 0;
  check(cudaGetDevice(&device), "current CUDA device");
  std::atomic<Answer>& answer = answers[std::min(device, kDevices - 1)];
  if (answer == unknown) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, probe_kernel), "code for this device");
    answer = attributes.ptxVersion >= 90 ? yes : no;
  }
  return answer == yes;
}

void require_device(int device) {
  int driver = 0, runtime = 0, count = 0;
  check(cudaRuntimeGetVersion(&runtime), "version of the CUDA runtime");
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    unusable("no CUDA driver: install the NVIDIA driver, or use the functions of tactic.h, which run on the CPU");
  }
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaErrorInsufficientDriver) {
    unusable("the driver supports CUDA " + version(driver) + ", this library was built with " + version(runtime) +
             ": install a newer driver");
  }
  if (found != cudaSuccess || count == 0) {
    unusable(std::string("no usable GPU: ") + (found == cudaSuccess ? "none is visible" : cudaGetErrorString(found)));
  }
  if (device < -1 || device >= count) {
    throw Error(Status::invalid_argument,
                "device is " + std::to_string(device) + ", must be in [0, " + std::to_string(count - 1) + "]");
  }
  if (device >= 0) check(cudaSetDevice(device), "choice of the CUDA device");
  int current = 0, major = 0, minor = 0;
  check(cudaGetDevice(&current), "current CUDA device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, current), "compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, current), "compute capability");
  cudaFuncAttributes attributes{};
  if (major < 8 || cudaFuncGetAttributes(&attributes, probe_kernel) != cudaSuccess) {
    unusable("device " + std::to_string(current) + " is of architecture sm_" + std::to_string(major) + std::to_string(minor) +
             ", for which this library has no code: it needs sm_80 or newer and a build for it (TACTIC_CUDA_ARCHITECTURES)");
  }
}

}  // namespace tactic::cuda
