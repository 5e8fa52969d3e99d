// The one text of the inner loops. Included by simd_generic.cpp, simd_avx2.cpp and simd_avx512.cpp, each with its own
// compiler flags and KINORA_SIMD set to the table to define; everything here is local to the including file.

#include <bit>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "cpu/simd.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace kinora::cpu {
namespace {

constexpr size_t kLanes = 16;
using Vec [[gnu::vector_size(64)]] = float;

Vec load_vec(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Adds the lanes in a fixed tree.
float add_lanes(Vec v) {
  float t[kLanes];
  std::memcpy(t, &v, sizeof t);
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) t[i] += t[i + half];
  }
  return t[0];
}

// Cephes' expf: x = n·ln2 + r, a polynomial in r, then the exponent is put in.
inline float exp1(float x) {
  x = x > 88.72f ? 89.0f : x;
  x = x < -87.33f ? -89.0f : x;
  float shifted = x * 1.44269504f + 12582912.0f;
  float n = shifted - 12582912.0f;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t e = std::bit_cast<int32_t>(shifted) - 0x4b400000;
  // In two halves, so that 2^128 does not overflow before its product with p < 1.
  int32_t half = e >> 1;
  float low = std::bit_cast<float>((half + 127) << 23), high = std::bit_cast<float>((e - half + 127) << 23);
  float y = p * low * high;
  return x == -89.0f ? 0.0f : y;
}

inline float sigmoid1(float x) { return 1.0f / (1.0f + exp1(-x)); }

inline float tanh1(float x) {
  float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  float small = p * z * x + x;
  float a = x < 0 ? -x : x;
  float large = 1.0f - 2.0f / (exp1(2.0f * a) + 1.0f);
  large = x < 0 ? -large : large;
  return a < 0.625f ? small : large;
}

// x·P(x²)/Q(x²), fitted to erf for |x| < 3.92, beyond which it is 1 in float32; off by less than 3e-7.
inline float erf1(float x) {
  x = x > 3.92f ? 3.92f : x;
  x = x < -3.92f ? -3.92f : x;
  float z = x * x;
  float p = 2.050061993941199e-06f;
  p = p * z + 2.848650619853288e-04f;
  p = p * z + 3.765164176002145e-03f;
  p = p * z + 5.274729430675507e-02f;
  p = p * z + 1.903969794511795e-01f;
  p = p * z + 1.128379106521606e+00f;
  float q = 3.809052941505797e-05f;
  q = q * z + 1.162411877885461e-03f;
  q = q * z + 1.496831234544516e-02f;
  q = q * z + 1.141050308942795e-01f;
  q = q * z + 5.020676851272583e-01f;
  q = q * z + 1.0f;
  float y = x * p / q;
  y = y > 1.0f ? 1.0f : y;
  return y < -1.0f ? -1.0f : y;
}

inline float gelu_tanh1(float x) {
  float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanh1(inner));
}

template <class F>
void map(const float* x, float* y, size_t n, F f) {
  for (size_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

void unary(Unary op, const float* x, float* y, size_t n) {
  switch (op) {
    case Unary::exp: return map(x, y, n, [](float v) { return exp1(v); });
    case Unary::log: return map(x, y, n, [](float v) { return std::log(v); });
    case Unary::sqrt: return map(x, y, n, [](float v) { return std::sqrt(v); });
    case Unary::rsqrt: return map(x, y, n, [](float v) { return 1.0f / std::sqrt(v); });
    case Unary::sin: return map(x, y, n, [](float v) { return std::sin(v); });
    case Unary::cos: return map(x, y, n, [](float v) { return std::cos(v); });
    case Unary::tanh: return map(x, y, n, [](float v) { return tanh1(v); });
    case Unary::erf: return map(x, y, n, [](float v) { return erf1(v); });
    case Unary::sigmoid: return map(x, y, n, [](float v) { return sigmoid1(v); });
    case Unary::relu: return map(x, y, n, [](float v) { return v < 0 ? 0.0f : v; });
    case Unary::step: return map(x, y, n, [](float v) { return v > 0 ? 1.0f : 0.0f; });
    case Unary::silu: return map(x, y, n, [](float v) { return v * sigmoid1(v); });
    case Unary::gelu_tanh: return map(x, y, n, [](float v) { return gelu_tanh1(v); });
    case Unary::gelu: return map(x, y, n, [](float v) { return 0.5f * v * (1.0f + erf1(v * 0.70710678f)); });
    case Unary::quick_gelu: return map(x, y, n, [](float v) { return v * sigmoid1(1.702f * v); });
  }
}

template <class F>
void map2(const float* a, size_t sa, const float* b, size_t sb, float* y, size_t n, F f) {
  if (sa && sb) {
    for (size_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
  } else if (sa) {
    float v = *b;
    for (size_t i = 0; i < n; ++i) y[i] = f(a[i], v);
  } else if (sb) {
    float v = *a;
    for (size_t i = 0; i < n; ++i) y[i] = f(v, b[i]);
  } else {
    float v = f(*a, *b);
    for (size_t i = 0; i < n; ++i) y[i] = v;
  }
}

void binary(Binary op, const float* a, size_t sa, const float* b, size_t sb, float* y, size_t n) {
  switch (op) {
    case Binary::add: return map2(a, sa, b, sb, y, n, [](float u, float v) { return u + v; });
    case Binary::sub: return map2(a, sa, b, sb, y, n, [](float u, float v) { return u - v; });
    case Binary::mul: return map2(a, sa, b, sb, y, n, [](float u, float v) { return u * v; });
    case Binary::div: return map2(a, sa, b, sb, y, n, [](float u, float v) { return u / v; });
  }
}

void affine(const float* x, float scale, float shift, float* y, size_t n) {
  map(x, y, n, [=](float v) { return v * scale + shift; });
}

void clamp(const float* x, float low, float high, float* y, size_t n) {
  map(x, y, n, [=](float v) { return v < low ? low : v > high ? high : v; });
}

template <class F>
float reduce(size_t n, F term) {
  Vec total{};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vec t;
    for (size_t k = 0; k < kLanes; ++k) t[k] = term(i + k);
    total += t;
  }
  for (size_t k = 0; i < n; ++i, ++k) total[k] += term(i);
  return add_lanes(total);
}

float sum(const float* x, size_t n) {
  return reduce(n, [=](size_t i) { return x[i]; });
}
float dot(const float* a, const float* b, size_t n) {
  Vec t0{}, t1{}, t2{}, t3{};
  size_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    t0 += load_vec(a + i) * load_vec(b + i);
    t1 += load_vec(a + i + kLanes) * load_vec(b + i + kLanes);
    t2 += load_vec(a + i + 2 * kLanes) * load_vec(b + i + 2 * kLanes);
    t3 += load_vec(a + i + 3 * kLanes) * load_vec(b + i + 3 * kLanes);
  }
  t0 = (t0 + t1) + (t2 + t3);
  for (size_t k = 0; i < n; ++i, k = (k + 1) % kLanes) t0[k] += a[i] * b[i];
  return add_lanes(t0);
}
float sum_square_diff(const float* x, float centre, size_t n) {
  Vec total{};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vec d = load_vec(x + i) - centre;
    total += d * d;
  }
  for (size_t k = 0; i < n; ++i, ++k) total[k] += (x[i] - centre) * (x[i] - centre);
  return add_lanes(total);
}
float max(const float* x, size_t n) {
  float best = x[0];
  size_t i = 0;
  if (n >= kLanes) {
    Vec m = load_vec(x);
    for (i = kLanes; i + kLanes <= n; i += kLanes) {
      Vec v = load_vec(x + i);
      m = v > m ? v : m;
    }
    for (size_t k = 0; k < kLanes; ++k) best = m[k] > best ? m[k] : best;
  }
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

void axpy(float a, const float* x, float* y, size_t n) {
  for (size_t i = 0; i < n; ++i) y[i] += a * x[i];
}

void normalize(const float* x, float centre, float factor, const float* weight, float offset, const float* bias,
               float* y, size_t n) {
  if (weight && bias) {
    for (size_t i = 0; i < n; ++i) y[i] = (x[i] - centre) * factor * (offset + weight[i]) + bias[i];
  } else if (weight) {
    for (size_t i = 0; i < n; ++i) y[i] = (x[i] - centre) * factor * (offset + weight[i]);
  } else {
    for (size_t i = 0; i < n; ++i) y[i] = (x[i] - centre) * factor;
  }
}

float exp_sum(float* x, float highest, size_t n) {
  map(x, x, n, [=](float v) { return exp1(v - highest); });
  return sum(x, n);
}

// Adds one tap over a block of channels kept in registers.
template <size_t kBlock>
void depthwise_pixel(const float* const* rows, size_t at, const float* weight, const float* bias, float* y,
                     size_t channels, size_t c, size_t kh, size_t kw) {
  Vec total[kBlock];
  for (size_t b = 0; b < kBlock; ++b) total[b] = bias ? load_vec(bias + c + b * kLanes) : Vec{};
  for (size_t ky = 0; ky < kh; ++ky) {
    for (size_t kx = 0; kx < kw; ++kx) {
      const float* x = rows[ky] + (at + kx) * channels + c;
      const float* w = weight + (ky * kw + kx) * channels + c;
      for (size_t b = 0; b < kBlock; ++b) total[b] += load_vec(x + b * kLanes) * load_vec(w + b * kLanes);
    }
  }
  for (size_t b = 0; b < kBlock; ++b) std::memcpy(y + c + b * kLanes, &total[b], sizeof(Vec));
}

void depthwise_row(const float* const* rows, const float* weight, const float* bias, float* y, size_t width,
                   size_t channels, size_t kh, size_t kw, size_t stride) {
  for (size_t px = 0; px < width; ++px, y += channels) {
    size_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
      depthwise_pixel<4>(rows, px * stride, weight, bias, y, channels, c, kh, kw);
    }
    for (; c + kLanes <= channels; c += kLanes) {
      depthwise_pixel<1>(rows, px * stride, weight, bias, y, channels, c, kh, kw);
    }
    for (; c < channels; ++c) {
      float total = bias ? bias[c] : 0;
      for (size_t t = 0; t < kh * kw; ++t) {
        total += rows[t / kw][(px * stride + t % kw) * channels + c] * weight[t * channels + c];
      }
      y[c] = total;
    }
  }
}

void linear_state(const float* k, const float* v, size_t stride, size_t n, size_t d, float* state) {
  float relu_k[256];
  for (size_t t = 0; t < n; ++t, k += stride, v += stride) {
    for (size_t j = 0; j < d; ++j) relu_k[j] = k[j] < 0 ? 0.0f : k[j];
    for (size_t i = 0; i < d; ++i) {
      float vi = v[i];
      float* row = state + i * d;
      for (size_t j = 0; j < d; ++j) row[j] += vi * relu_k[j];
    }
    float* last = state + d * d;
    for (size_t j = 0; j < d; ++j) last[j] += relu_k[j];
  }
}

// state_t is the transposed state [d x (d + 1)], so that each row of it is scaled by one element of q.
void linear_apply(const float* q, float* y, size_t stride_q, size_t stride_y, size_t n, size_t d, const float* state_t,
                  float eps) {
  float out[257];
  for (size_t t = 0; t < n; ++t, q += stride_q, y += stride_y) {
    for (size_t i = 0; i <= d; ++i) out[i] = 0;
    for (size_t j = 0; j < d; ++j) {
      float qj = q[j] < 0 ? 0.0f : q[j];
      const float* row = state_t + j * (d + 1);
      for (size_t i = 0; i <= d; ++i) out[i] += qj * row[i];
    }
    float divisor = out[d] + eps;
    for (size_t i = 0; i < d; ++i) y[i] = out[i] / divisor;
  }
}

void load(DType dtype, const void* src, float* dst, size_t n) {
  if (dtype == DType::f32) {
    if (n) std::memcpy(dst, src, n * sizeof(float));
  } else if (dtype == DType::bf16) {
    const auto* bits = static_cast<const uint16_t*>(src);
    for (size_t i = 0; i < n; ++i) dst[i] = std::bit_cast<float>(static_cast<uint32_t>(bits[i]) << 16);
  } else {
    size_t i = 0;
#if defined(__F16C__)
    const auto* halves = static_cast<const uint16_t*>(src);
    for (; dtype == DType::f16 && i + 8 <= n; i += 8) {
      __m128i raw;
      std::memcpy(&raw, halves + i, sizeof raw);
      _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(raw));
    }
#endif
    to_float(dtype, static_cast<const char*>(src) + i * dtype_size(dtype), dst + i, n - i);
  }
}

void store(DType dtype, const float* src, void* dst, size_t n) {
  if (dtype == DType::f32) {
    if (n && src != dst) std::memcpy(dst, src, n * sizeof(float));
  } else if (dtype == DType::bf16) {
    auto* bits = static_cast<uint16_t*>(dst);
    for (size_t i = 0; i < n; ++i) {
      uint32_t u = std::bit_cast<uint32_t>(src[i]);
      uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
      bits[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
  } else {
    size_t i = 0;
#if defined(__F16C__)
    auto* halves = static_cast<uint16_t*>(dst);
    for (; dtype == DType::f16 && i + 8 <= n; i += 8) {
      __m128i raw = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      std::memcpy(halves + i, &raw, sizeof raw);
    }
#endif
    from_float(dtype, src + i, static_cast<char*>(dst) + i * dtype_size(dtype), n - i);
  }
}

}  // namespace

const Simd KINORA_SIMD{
    KINORA_SIMD_NAME, load, store,     unary,   binary,        affine,       clamp,       sum, max, dot,
    sum_square_diff,  axpy, normalize, exp_sum, depthwise_row, linear_state, linear_apply};

}  // namespace kinora::cpu
