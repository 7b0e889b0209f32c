// bench_study STUDY CAPTURE [every nth layer]: quality of the choice on a model's own queries, keys and values.
#include "bench/study.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace {

struct Study {
  const char* name;
  void (*run)(const tactic::program::Capture& capture, int every);
};
constexpr Study kStudies[] = {{"estimation", tactic::bench::study_estimation}, {"error", tactic::bench::study_error}};

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 3 ? std::atoi(argv[3]) : 1;
  for (const Study& study : kStudies) {
    if (argc < 3 || every < 1 || std::strcmp(argv[1], study.name) != 0) continue;
    try {
      const auto capture = tactic::program::Capture::read(argv[2]);
      const auto& info = capture.info();
      std::printf("%s: %d prompt tokens, %d steps, %d layers (every %d.), %d/%d heads, head dim %d\n", info.model.c_str(),
                  info.prompt_tokens, info.steps, info.layers, every, info.shape.q_heads, info.shape.kv_heads,
                  info.shape.head_dim);
      study.run(capture, every);
      return 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "bench_study: %s\n", error.what());
      return 1;
    }
  }
  std::fprintf(stderr, "usage: %s estimation|error FILE_OF_TACTIC_CAPTURE [every nth layer, 1 ..]\n", argv[0]);
  return 2;
}
