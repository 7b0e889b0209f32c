# What `cmake --install` lays down: libtactic, its headers, find_package(tactic) and pkg-config files.
include(CMakePackageConfigHelpers)

function(tactic_install)
  install(TARGETS tactic_shared EXPORT tacticTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/tactic DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
          FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")

  set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/tactic)
  install(EXPORT tacticTargets NAMESPACE tactic:: DESTINATION ${package_folder})
  configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/tacticConfig.cmake.in ${PROJECT_BINARY_DIR}/tacticConfig.cmake
                                INSTALL_DESTINATION ${package_folder})
  # Before 1.0 a minor version may break the interface.
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/tacticConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/tacticConfig.cmake ${PROJECT_BINARY_DIR}/tacticConfigVersion.cmake
          DESTINATION ${package_folder})

  # relative, so that the installed tree can be moved
  file(RELATIVE_PATH TACTIC_PC_TO_INCLUDE /${CMAKE_INSTALL_LIBDIR}/pkgconfig /${CMAKE_INSTALL_INCLUDEDIR})
  configure_file(${PROJECT_SOURCE_DIR}/cmake/tactic.pc.in ${PROJECT_BINARY_DIR}/tactic.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/tactic.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()
