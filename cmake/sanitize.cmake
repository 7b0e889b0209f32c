# Sanitizers over everything we build: -DTACTIC_SANITIZE=address,undefined or thread (presets asan and tsan).
set(TACTIC_SANITIZE "" CACHE STRING "Sanitizers, comma separated; empty: none")
if(TACTIC_SANITIZE)
  add_compile_options(-fsanitize=${TACTIC_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TACTIC_SANITIZE})
endif()
# What libFuzzer steers by.
if(TACTIC_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
