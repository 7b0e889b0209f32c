# Third-party headers and libraries, from the system or from TACTIC_DEPS (where scripts/ unpacks pinned packages).
set(TACTIC_DEPS "" CACHE PATH "Prefix with usr/include and usr/lib of the pinned packages; empty: the system's")

# tactic_dep_<name>; asking again is free.
function(tactic_header_library name header)
  if(TARGET tactic_dep_${name})
    return()
  endif()
  find_path(TACTIC_${name}_INCLUDE ${header} HINTS ${TACTIC_DEPS}/usr/include NO_CMAKE_FIND_ROOT_PATH)
  if(NOT TACTIC_${name}_INCLUDE)
    message(FATAL_ERROR "${header} not found: run scripts/setup, or install the package and name its prefix in TACTIC_DEPS")
  endif()
  add_library(tactic_dep_${name} INTERFACE)
  target_include_directories(tactic_dep_${name} SYSTEM INTERFACE ${TACTIC_${name}_INCLUDE})
endfunction()

tactic_header_library(hwy hwy/highway.h)
target_compile_definitions(tactic_dep_hwy INTERFACE HWY_DISABLED_TARGETS=HWY_AVX3_DL|HWY_SSE4|HWY_SSSE3)
