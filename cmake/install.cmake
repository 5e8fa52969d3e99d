# `cmake --install` gives a package that find_package(kinora) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS kinora EXPORT kinora-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET kinora_cli)
  install(TARGETS kinora_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY src/ DESTINATION include/kinora FILES_MATCHING PATTERN "*.h")
install(DIRECTORY models/ DESTINATION ${CMAKE_INSTALL_DATADIR}/kinora/models OPTIONAL)
install(DIRECTORY configs/ DESTINATION ${CMAKE_INSTALL_DATADIR}/kinora/configs)
install(EXPORT kinora-targets NAMESPACE kinora:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kinora)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/kinora-config.cmake.in ${CMAKE_BINARY_DIR}/kinora-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kinora)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/kinora-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/kinora-config.cmake ${CMAKE_BINARY_DIR}/kinora-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kinora)
