// The only door to oneDNN; its v2 and v3 interfaces are both behind it. Every primitive here runs on the calling
// thread: the kernels divide the work themselves, by shape, so that results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/dtype.h"

namespace kinora::cpu {

bool has_native_bf16();  // products of bf16 run faster than those of f32 on this machine
bool has_native_int8();  // and those of int8, with sums that are exact

// C[m, n] = A[m, k] · B, f32 result; A and B are f32, bf16 or, with a result of int32, i8 (`dtype`); the rows of A and
// C follow one another. i8 is not packed: B is rows of k, n·k bytes.
class MatmulPrimitive {
 public:
  struct Shape {
    int64_t m, n, k;
    DType dtype = DType::f32;
  };
  // With `alike` it takes B packed as that one does, whose n, k and dtype are the same.
  explicit MatmulPrimitive(const Shape& shape, const MatmulPrimitive* alike = nullptr);

  size_t packed_bytes() const;
  // B as rows of k (`transposed`: element (k, n) at b[n·ldb + k]) or rows of n (at b[k·ldb + n]).
  void pack(const void* b, int64_t ldb, bool transposed, void* packed) const;
  void run(const void* a, const void* packed, void* c, void* workspace) const;
  size_t workspace_bytes() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Rows of one frame of a channels-last convolution: x [frames_in, rows_in, width_in, in], y [rows_out, width_out, out],
// f32 result. A picture is a film of one frame with kernel_t 1.
class ConvPrimitive {
 public:
  struct Shape {
    int64_t in_channels, out_channels;  // of this call
    int64_t x_pixel, y_pixel;           // elements between pixels of x and y (full channel counts)
    int64_t rows_in, width_in, rows_out, width_out;
    int64_t kernel_h, kernel_w, stride;
    int64_t pad_top, pad_bottom, pad_left, pad_right;
    DType dtype = DType::f32;
    int64_t stride_w = 0;                                // 0: as `stride`, which is then that of the rows alone
    int64_t frames_in = 1, kernel_t = 1, pad_front = 0;  // the rest of kernel_t lies behind the film
  };
  explicit ConvPrimitive(const Shape& shape);

  size_t packed_bytes() const;
  void pack(const void* weight, void* packed) const;  // contiguous [out, in, kt, kh, kw] in `dtype`
  void run(const void* x, const void* packed, float* y, void* workspace) const;
  size_t workspace_bytes() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Called by each thread before it runs primitives: keeps oneDNN from starting threads of its own.
void use_one_thread();

}  // namespace kinora::cpu
