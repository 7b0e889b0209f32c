# Warnings are errors, for our own targets only.
function(tactic_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wcast-qual
                         -Wundef -Werror)
endfunction()
