// Contexts, and what the library says of itself.
#include "capi/context.h"

#include "capi/structs.h"
#include "core/isa.h"

namespace tactic::capi {
namespace {

constexpr int kMostThreads = 1024;

// One parallel run: what a worker of the caller's pool needs.
struct Job {
  const FunctionRef<void(Worker&)>& work;
  Meeting& meeting;
  std::atomic<int> finished{0};
};

extern "C" void tactic_capi_run_worker(void* data, int32_t rank) {
  Job& job = *static_cast<Job*>(data);
  job.meeting.work(job.work, rank);
  job.finished.fetch_add(1, std::memory_order_release);
}

class CallbackTeam final : public Team {
 public:
  CallbackTeam(int workers, tactic_parallel_run parallel_run, void* user)
      : workers_(workers), parallel_run_(parallel_run), user_(user), meeting_(workers) {}
  int size() const override { return workers_; }
  void run(FunctionRef<void(Worker&)> work) override {
    meeting_.begin(workers_);
    Job job{work, meeting_, {}};
    const int32_t refused = parallel_run_(user_, workers_, tactic_capi_run_worker, &job);
    if (refused != 0) {
      throw Error(Status::invalid_state,
                  "parallel_run returned " + std::to_string(refused) + "; the pool must run all workers and return 0");
    }
    const int finished = job.finished.load(std::memory_order_acquire);
    if (finished != workers_) {
      throw Error(Status::invalid_state, "parallel_run returned after " + std::to_string(finished) + " of " +
                                             std::to_string(workers_) + " workers; it must wait for all of them");
    }
    meeting_.end();
  }

 private:
  int workers_;
  tactic_parallel_run parallel_run_;
  void* user_;
  Meeting meeting_;
};

}  // namespace

std::unique_ptr<Team> make_callback_team(int workers, tactic_parallel_run parallel_run, void* user) {
  return std::make_unique<CallbackTeam>(workers, parallel_run, user);
}

tactic_context_config Growing<tactic_context_config>::defaults() {
  tactic_context_config config{};
  config.size = sizeof config;
  return config;
}

}  // namespace tactic::capi

using namespace tactic::capi;

#define TACTIC_TEXT_OF(x) #x
#define TACTIC_TEXT(x) TACTIC_TEXT_OF(x)
#define TACTIC_VERSION_TEXT \
  TACTIC_TEXT(TACTIC_VERSION_MAJOR) "." TACTIC_TEXT(TACTIC_VERSION_MINOR) "." TACTIC_TEXT(TACTIC_VERSION_PATCH)

const char* tactic_version(void) { return TACTIC_VERSION_TEXT; }

const char* tactic_build_info(void) {
  try {
    switch (tactic::active_isa()) {
      case tactic::Isa::avx512:
        return "tactic " TACTIC_VERSION_TEXT " cpu avx512";
      case tactic::Isa::avx2:
        return "tactic " TACTIC_VERSION_TEXT " cpu avx2";
      case tactic::Isa::baseline:
        return "tactic " TACTIC_VERSION_TEXT " cpu baseline";
    }
  } catch (...) {
    fail(nullptr);
  }
  return "tactic " TACTIC_VERSION_TEXT " cpu (TACTIC_ISA names an instruction set that is not here)";
}

const char* tactic_last_error(void) { return thread_message().text; }

const char* tactic_status_name(tactic_status status) {
  switch (status) {
    case TACTIC_OK:
      return "ok";
    case TACTIC_INVALID_ARGUMENT:
      return "invalid argument";
    case TACTIC_INVALID_STATE:
      return "invalid state";
    case TACTIC_OUT_OF_MEMORY:
      return "out of memory";
    case TACTIC_IO:
      return "input/output error";
    case TACTIC_CORRUPT:
      return "corrupt data";
    case TACTIC_NON_FINITE:
      return "not finite";
    case TACTIC_UNSUPPORTED:
      return "unsupported";
    case TACTIC_INTERNAL:
      return "internal error";
  }
  return "unknown status";
}

tactic_status tactic_context_config_init(tactic_context_config* config, size_t size) {
  return guard([&] { write_defaults(config, size); });
}

tactic_status tactic_context_create(const tactic_context_config* config, tactic_context** context) {
  return guard([&] {
    require(context, "context");
    *context = nullptr;
    const tactic_context_config c = config == nullptr ? Growing<tactic_context_config>::defaults() : read_struct(config);
    check_range("config.threads", c.threads, c.parallel_run == nullptr ? 0 : 1, kMostThreads);
    check_range("config.reserved", c.reserved, 0, 0);
    tactic::active_isa();  // an unusable TACTIC_ISA is found here, not in the first step
    auto fresh = std::make_unique<tactic_context>();
    fresh->team = c.parallel_run == nullptr ? tactic::make_thread_team(c.threads)
                                            : make_callback_team(c.threads, c.parallel_run, c.parallel_user);
    fresh->workspace = tactic::make_workspace();
    *context = fresh.release();
  });
}

void tactic_context_destroy(tactic_context* context) { delete context; }

int32_t tactic_context_threads(const tactic_context* context) { return context == nullptr ? 0 : context->team->size(); }

const char* tactic_context_error(const tactic_context* context) {
  return context == nullptr ? "context is null" : context->message.text;
}
