# Warnings are errors, for our own targets only; not where a sanitizer's instrumentation makes GCC see things.
function(tactic_warnings target)
  target_compile_options(${target} PRIVATE
                         $<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wcast-qual;-Wundef>
                         $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor;-Wold-style-cast>)
  if(NOT TACTIC_SANITIZE)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C,CXX>:-Werror>)
  endif()
endfunction()
