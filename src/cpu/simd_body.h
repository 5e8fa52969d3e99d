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

#include "cpu/simd_quantized.h"

void load(DType dtype, const void* src, float* dst, size_t n) {
  if (dtype == DType::f32) {
    if (n) std::memcpy(dst, src, n * sizeof(float));
  } else if (dtype == DType::i8) {
    load_i8(static_cast<const int8_t*>(src), dst, n);
  } else if (dtype == DType::f8_e4m3) {
    load_e4m3(static_cast<const uint8_t*>(src), dst, n);
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

// Sixteen elements of a float type as float32, and back.
Vec load_as(const float* p) { return load_vec(p); }
Vec load_as(const bf16* p) {
  using Halves [[gnu::vector_size(32)]] = uint16_t;
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  Words words = __builtin_convertvector(halves, Words) << 16;
  return std::bit_cast<Vec>(words);
}
Vec load_as(const f16* p) {
  float t[kLanes];
  load(DType::f16, p, t, kLanes);
  return load_vec(t);
}

// Adds the lanes in a fixed tree.
float add_lanes(Vec v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3);
  return v[0] + v[1];
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
  for (; i + kLanes <= n; i += kLanes) t0 += load_vec(a + i) * load_vec(b + i);
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

float softmax_row(float* x, float scale, const float* bias, size_t n) {
  if (bias) {
    for (size_t i = 0; i < n; ++i) x[i] = x[i] * scale + bias[i];
  } else {
    for (size_t i = 0; i < n; ++i) x[i] = x[i] * scale;
  }
  return exp_sum(x, max(x, n), n);
}

void finish_row(const RowFinish& f, float* c, void* y, size_t n) {
  if (f.whole) {
    for (size_t i = 0; i < n; ++i) c[i] = static_cast<float>(std::bit_cast<int32_t>(c[i]));
  }
  if (f.scale) {
    for (size_t i = 0; i < n; ++i) c[i] *= f.scale[i] * f.factor;
  }
  if (f.bias) {
    for (size_t i = 0; i < n; ++i) c[i] += f.bias[i];
  }
  if (f.act) unary(f.unary, c, c, n);
  if (f.gate) {
    for (size_t i = 0; i < n; ++i) c[i] *= f.gate[i];
  }
  if (f.residual && f.type == DType::f32) {
    const auto* r = static_cast<const float*>(f.residual);
    for (size_t i = 0; i < n; ++i) c[i] += r[i];
  } else if (f.residual) {
    constexpr size_t kPart = 128;
    float part[kPart];
    for (size_t at = 0; at < n; at += kPart) {
      size_t m = n - at < kPart ? n - at : kPart;
      load(f.type, static_cast<const char*>(f.residual) + at * dtype_size(f.type), part, m);
      for (size_t i = 0; i < m; ++i) c[at + i] += part[i];
    }
  }
  store(f.type, c, y, n);
}

// Pixels px.. of channels c..c+15, all taps inside the picture, stride 1: each input is loaded once for all of them.
template <class T, size_t kWide, size_t kPixels>
void depthwise_block(const DepthwiseRow& d, size_t px, size_t c, Vec* total) {
  for (size_t p = 0; p < kPixels; ++p) total[p] = d.bias ? load_vec(d.bias + c) : Vec{};
  for (size_t ky = 0; ky < d.kh; ++ky) {
    if (!d.rows[ky]) continue;
    const T* x = static_cast<const T*>(d.rows[ky]) + (px - d.padding) * d.channels + c;
    const float* w = d.weight + ky * kWide * d.channels + c;
#pragma GCC unroll 16
    for (size_t column = 0; column < kWide + kPixels - 1; ++column) {
      Vec value = load_as(x + column * d.channels);
#pragma GCC unroll 16
      for (size_t p = 0; p < kPixels; ++p) {
        if (column >= p && column - p < kWide) total[p] += value * load_vec(w + (column - p) * d.channels);
      }
    }
  }
}

// One pixel anywhere. Calls term(x, w) for every tap inside the picture, in order.
template <class T, class F>
void depthwise_taps(const DepthwiseRow& d, size_t px, size_t c, F term) {
  for (size_t ky = 0; ky < d.kh; ++ky) {
    if (!d.rows[ky]) continue;
    for (size_t kx = 0; kx < d.kw; ++kx) {
      size_t column = px * d.stride + kx;
      if (column < d.padding || column - d.padding >= d.width_in) continue;
      term(static_cast<const T*>(d.rows[ky]) + (column - d.padding) * d.channels + c,
           d.weight + (ky * d.kw + kx) * d.channels + c);
    }
  }
}

template <class T, size_t kPixels>
void depthwise_points(const DepthwiseRow& d, size_t px, size_t c, float* out) {
  Vec total[kPixels];
  if constexpr (kPixels == 1) {
    total[0] = d.bias ? load_vec(d.bias + c) : Vec{};
    depthwise_taps<T>(d, px, c, [&](const T* x, const float* w) { total[0] += load_as(x) * load_vec(w); });
  } else if (d.kw == 3) {
    depthwise_block<T, 3, kPixels>(d, px, c, total);
  } else {
    depthwise_block<T, 5, kPixels>(d, px, c, total);
  }
  std::memcpy(out, total, sizeof total);
}

template <class T>
float depthwise_channel(const DepthwiseRow& d, size_t px, size_t c) {
  float total = d.bias ? d.bias[c] : 0;
  depthwise_taps<T>(d, px, c, [&](const T* x, const float* w) { total += static_cast<float>(*x) * *w; });
  return total;
}

template <class T, size_t kPixels>
void depthwise_pixels(const DepthwiseRow& d, size_t px, T* y) {
  size_t out = d.glu ? d.channels / 2 : d.channels, c = 0;
  float value[kPixels * kLanes], gate[kPixels * kLanes];
  for (; c + kLanes <= out; c += kLanes) {
    depthwise_points<T, kPixels>(d, px, c, value);
    if (d.glu) {
      depthwise_points<T, kPixels>(d, px, c + out, gate);
      for (size_t i = 0; i < kPixels * kLanes; ++i) value[i] *= gate[i] * sigmoid1(gate[i]);
    }
    for (size_t p = 0; p < kPixels; ++p) store(d.type, value + p * kLanes, y + (px + p) * out + c, kLanes);
  }
  for (; c < out; ++c) {
    for (size_t p = 0; p < kPixels; ++p) {
      float v = depthwise_channel<T>(d, px + p, c);
      if (d.glu) {
        float g = depthwise_channel<T>(d, px + p, c + out);
        v *= g * sigmoid1(g);
      }
      store(d.type, &v, y + (px + p) * out + c, 1);
    }
  }
}

template <class T>
void depthwise_line(const DepthwiseRow& d, T* y) {
  constexpr size_t kPixels = 4;
  bool fast = d.stride == 1 && (d.kw == 3 || d.kw == 5);
  for (size_t px = 0; px < d.width;) {
    if (fast && px >= d.padding && px + kPixels + d.kw - 1 <= d.width_in + d.padding && px + kPixels <= d.width) {
      depthwise_pixels<T, kPixels>(d, px, y);
      px += kPixels;
    } else {
      depthwise_pixels<T, 1>(d, px, y);
      ++px;
    }
  }
}

void depthwise_row(const DepthwiseRow& d, void* y) {
  if (d.type == DType::bf16) return depthwise_line(d, static_cast<bf16*>(y));
  if (d.type == DType::f16) return depthwise_line(d, static_cast<f16*>(y));
  depthwise_line(d, static_cast<float*>(y));
}

constexpr size_t kMaxHead = 256;
constexpr size_t kHead = 32;   // the head size of every published Sana and DC-AE
constexpr size_t kBatch = 32;  // tokens that are brought in at a time

void load_relu(DType type, const void* base, size_t row, size_t stride, size_t d, float* out) {
  load(type, static_cast<const char*>(base) + row * stride * dtype_size(type), out, d);
  for (size_t i = 0; i < d; ++i) out[i] = out[i] < 0 ? 0.0f : out[i];
}

// kRows rows of the state stay in registers while all tokens pass.
template <size_t kRows>
void state_rows(const float* k, const float* v, size_t n, float* state) {
  constexpr size_t kVecs = kHead / kLanes;
  Vec total[kRows][kVecs];
  std::memcpy(total, state, sizeof total);
  for (size_t t = 0; t < n; ++t) {
    Vec keys[kVecs];
    std::memcpy(keys, k + t * kHead, sizeof keys);
#pragma GCC unroll 8
    for (size_t i = 0; i < kRows; ++i) {
      for (size_t j = 0; j < kVecs; ++j) total[i][j] += v[t * kHead + i] * keys[j];
    }
  }
  std::memcpy(state, total, sizeof total);
}

void linear_state(DType type, const void* k, const void* v, size_t stride, size_t n, size_t d, float* state) {
  float keys[kBatch * kHead], values[kBatch * kHead], key[kMaxHead], value[kMaxHead];
  for (size_t i = 0; i < (d + 1) * d; ++i) state[i] = 0;
  float* last = state + d * d;
  for (size_t first = 0; d == kHead && first < n; first += kBatch) {
    size_t count = n - first < kBatch ? n - first : kBatch;
    for (size_t t = 0; t < count; ++t) {
      load_relu(type, k, first + t, stride, kHead, keys + t * kHead);
      load(type, static_cast<const char*>(v) + (first + t) * stride * dtype_size(type), values + t * kHead, kHead);
      for (size_t j = 0; j < kHead; ++j) last[j] += keys[t * kHead + j];
    }
    constexpr size_t kRows = 8;
    for (size_t i = 0; i < kHead; i += kRows) state_rows<kRows>(keys, values + i, count, state + i * kHead);
  }
  for (size_t t = 0; d != kHead && t < n; ++t) {
    load_relu(type, k, t, stride, d, key);
    load(type, static_cast<const char*>(v) + t * stride * dtype_size(type), value, d);
    for (size_t i = 0; i < d; ++i) axpy(value[i], key, state + i * d, d);
    for (size_t j = 0; j < d; ++j) last[j] += key[j];
  }
}

// kTokens queries at once, so that each row of the state is read once for all.
template <size_t kTokens>
void apply_tokens(const float* q, const float* state_t, float* y) {
  constexpr size_t kVecs = kHead / kLanes;
  Vec total[kTokens][kVecs]{};
  for (size_t j = 0; j < kHead; ++j) {
    Vec row[kVecs];
    std::memcpy(row, state_t + j * kHead, sizeof row);
#pragma GCC unroll 8
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t i = 0; i < kVecs; ++i) total[t][i] += q[t * kHead + j] * row[i];
    }
  }
  std::memcpy(y, total, sizeof total);
}

void linear_apply(DType type, const void* q, void* y, size_t stride, size_t n, size_t d, const float* state_t,
                  float eps) {
  constexpr size_t kTokens = 4;
  float in[kTokens * kMaxHead], out[kTokens * kMaxHead];
  for (size_t first = 0; first < n; first += kTokens) {
    size_t count = n - first < kTokens ? n - first : kTokens;
    for (size_t t = 0; t < count; ++t) load_relu(type, q, first + t, stride, d, in + t * d);
    if (d == kHead && count == kTokens) {
      apply_tokens<kTokens>(in, state_t, out);
    } else {
      for (size_t i = 0; i < count * d; ++i) out[i] = 0;
      for (size_t t = 0; t < count; ++t) {
        for (size_t j = 0; j < d; ++j) axpy(in[t * d + j], state_t + j * d, out + t * d, d);
      }
    }
    for (size_t t = 0; t < count; ++t) {
      float divisor = dot(in + t * d, state_t + d * d, d) + eps;
      for (size_t i = 0; i < d; ++i) out[t * d + i] /= divisor;
      store(type, out + t * d, static_cast<char*>(y) + (first + t) * stride * dtype_size(type), d);
    }
  }
}

}  // namespace

const Simd KINORA_SIMD{KINORA_SIMD_NAME,
                       load,
                       store,
                       unary,
                       binary,
                       affine,
                       clamp,
                       sum,
                       max,
                       dot,
                       sum_square_diff,
                       axpy,
                       normalize,
                       exp_sum,
                       finish_row,
                       softmax_row,
                       depthwise_row,
                       linear_state,
                       linear_apply,
                       load_fp4,
                       peak,
                       quantize};

}  // namespace kinora::cpu
