# The CUDA backend. The runtime is linked statically, cuBLASLt and cuDNN are opened at run time, so the program starts on
# machines that have neither a driver nor a toolkit. KINORA_CUDA_ARCHITECTURES is what a build holds code for: a release
# all of them, a developer's build the one at hand.
set(KINORA_CUDA_ARCHITECTURES "90a" CACHE STRING "sm numbers, as 80;86;89;90a;100;120")
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
set(CMAKE_CUDA_ARCHITECTURES ${KINORA_CUDA_ARCHITECTURES})
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know nvcc's C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit REQUIRED)
