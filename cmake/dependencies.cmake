# Everything comes from the distribution; ./dev setup installs it. README.md gives the reason for each.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(dnnl REQUIRED)
find_package(OpenMP REQUIRED)
find_package(nlohmann_json 3.9 REQUIRED)
find_package(PNG REQUIRED)
find_package(JPEG REQUIRED)
pkg_check_modules(WEBP REQUIRED IMPORTED_TARGET libwebp libwebpmux libwebpdemux)
find_package(CURL 7.85 REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
pkg_check_modules(YAML REQUIRED IMPORTED_TARGET yaml-cpp)  # its CMake target is named otherwise in 0.7 and 0.8
pkg_check_modules(FFMPEG REQUIRED IMPORTED_TARGET libavformat libavcodec libswscale libavutil)
find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)

set(KINORA_LIBRARIES DNNL::dnnl OpenMP::OpenMP_CXX nlohmann_json::nlohmann_json PNG::PNG JPEG::JPEG PkgConfig::WEBP
                     PkgConfig::YAML PkgConfig::FFMPEG spdlog::spdlog CURL::libcurl OpenSSL::Crypto)
set(KINORA_CLI_LIBRARIES CLI11::CLI11 nlohmann_json::nlohmann_json fmt::fmt)
