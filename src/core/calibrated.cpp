#include "core/calibrated.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

namespace kinora {
namespace {

constexpr int64_t kTile = 16;  // rows of a weight at a time, which share each read of R
constexpr int64_t kBlock = kNvfp4Block;
constexpr double kDamping = 0.01;  // of the mean moment, as GPTQ has it

using Lanes [[gnu::vector_size(64)]] = float;

Lanes load(const float* x) {
  Lanes lanes;
  std::memcpy(&lanes, x, sizeof lanes);
  return lanes;
}
void store(float* x, Lanes lanes) { std::memcpy(x, &lanes, sizeof lanes); }

// In an order that depends on n alone.
float dot(const float* a, const float* b, int64_t n) {
  Lanes sums{};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) sums += load(a + i) * load(b + i);
  float total = 0;
  for (int lane = 0; lane < 16; ++lane) total += sums[lane];
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

void for_each(ThreadPool* pool, int64_t count, const std::function<void(int64_t index, int worker)>& body) {
  if (pool) return pool->run(count, body);
  for (int64_t i = 0; i < count; ++i) body(i, 0);
}

// The lower triangle of a symmetric matrix becomes L with L·Lᵀ equal to it; false when it is not positive definite.
bool cholesky(float* a, int64_t k, ThreadPool* pool) {
  constexpr int64_t kPanel = 64;
  for (int64_t p = 0; p < k; p += kPanel) {
    int64_t end = std::min(p + kPanel, k);
    for_each(pool, ceil_div(k - p, kTile), [&](int64_t tile, int) {
      for (int64_t i = p + tile * kTile; i < std::min(p + (tile + 1) * kTile, k); ++i) {
        for (int64_t j = p; j < std::min(end, i + 1); ++j) a[i * k + j] -= dot(a + i * k, a + j * k, p);
      }
    });
    auto solve = [&](int64_t i, int64_t j) { a[i * k + j] -= dot(a + i * k + p, a + j * k + p, j - p); };
    for (int64_t j = p; j < end; ++j) {
      solve(j, j);
      if (!(a[j * k + j] > 0) || !std::isfinite(a[j * k + j])) return false;
      a[j * k + j] = std::sqrt(a[j * k + j]);
      for (int64_t i = j + 1; i < end; ++i) {
        solve(i, j);
        a[i * k + j] /= a[j * k + j];
      }
    }
    for_each(pool, ceil_div(k - end, kTile), [&](int64_t tile, int) {
      for (int64_t i = end + tile * kTile; i < std::min(end + (tile + 1) * kTile, k); ++i) {
        for (int64_t j = p; j < end; ++j) {
          solve(i, j);
          a[i * k + j] /= a[j * k + j];
        }
      }
    });
  }
  return true;
}

std::vector<int64_t> order_of(const std::vector<float>& diagonal) {
  auto blocks = diagonal.size() / kBlock;
  std::vector<double> sums(blocks);
  for (size_t i = 0; i < diagonal.size(); ++i) sums[i / kBlock] += diagonal[i];
  std::vector<size_t> by_size(blocks);
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(), [&](size_t a, size_t b) { return sums[a] > sums[b]; });
  std::vector<int64_t> order;
  for (size_t block : by_size) {
    for (size_t i = 0; i < kBlock; ++i) order.push_back(static_cast<int64_t>(block * kBlock + i));
  }
  return order;
}

// R, or undefined when the matrix with this damping is not positive definite. Read backwards, an upper triangular
// factor is a lower one.
Tensor factor_of(const Tensor& moments, const std::vector<int64_t>& order, float damping, ThreadPool* pool) {
  auto k = static_cast<int64_t>(order.size());
  Tensor factor = Tensor::zeros({k, k});
  float* a = factor.data<float>();
  const float* m = moments.data<float>();
  for (int64_t i = 0; i < k; ++i) {
    const float* row = m + order[static_cast<size_t>(k - 1 - i)] * k;
    for (int64_t j = 0; j <= i; ++j) a[i * k + j] = row[order[static_cast<size_t>(k - 1 - j)]];
    a[i * k + i] += damping;
  }
  if (!cholesky(a, k, pool)) return {};
  std::reverse(a, a + k * k);
  return factor;
}

// A weight being rounded. Positions are those of InputMoments::order.
class Rounding {
 public:
  Rounding(const Tensor& weight, QuantFormat format, const InputMoments& inputs, ThreadPool* pool)
      : weight_(weight),
        format_(format),
        inputs_(inputs),
        n_(weight.shape()[0]),
        k_(weight.shape()[1]),
        r_(inputs.factor().data<float>()),
        out_(allocate_quantized(weight.shape(), format)) {
    if (is_nvfp4(format)) set_scale_2(pool);
    memory_.resize(static_cast<size_t>(pool ? pool->size() : 1),
                   std::vector<float>(static_cast<size_t>(3 * kTile * k_)));
    for_each(pool, ceil_div(n_, kTile), [&](int64_t tile, int worker) {
      round_tile(tile * kTile, std::min(kTile, n_ - tile * kTile), memory_[static_cast<size_t>(worker)].data());
    });
  }
  QuantizedMatrix result() const { return out_; }

 private:
  float root(int64_t c) const { return inputs_.full() ? r_[c * k_ + c] : r_[c]; }

  void set_scale_2(ThreadPool* pool) {
    std::vector<float> peaks(static_cast<size_t>(n_));
    for_each(pool, n_, [&](int64_t i, int) { peaks[static_cast<size_t>(i)] = peak_of(row(i)); });
    scale_2_ = weight_scale_2(*std::max_element(peaks.begin(), peaks.end()));
    out_.scale_2.data<float>()[0] = scale_2_;
  }

  std::vector<float> row(int64_t i) const {
    std::vector<float> values(static_cast<size_t>(k_));
    to_float(weight_.dtype(), weight_.rows(i, i + 1).raw(), values.data(), values.size());
    return values;
  }
  static float peak_of(const std::vector<float>& values) {
    float peak = 0;
    for (float v : values) peak = std::max(peak, std::isfinite(v) ? std::abs(v) : INFINITY);
    expect_finite_weight(peak);
    return peak;
  }

  // Sums e·R of the columns to come are kept, and errors of a block of columns added to all behind it at once.
  void round_tile(int64_t first, int64_t count, float* memory) {
    float *w = memory, *errors = w + kTile * k_, *sums = errors + kTile * k_;
    std::fill(sums, sums + kTile * k_, 0.0f);
    std::array<RowScale, kTile> scales{};
    for (int64_t t = 0; t < count; ++t) {
      std::vector<float> values = row(first + t);
      for (int64_t c = 0; c < k_; ++c)
        w[t * k_ + c] = values[static_cast<size_t>(inputs_.order()[static_cast<size_t>(c)])];
      if (is_nvfp4(format_)) continue;
      scales[static_cast<size_t>(t)] = best_row_scale(w + t * k_, peak_of(values));
      out_.scale.data<float>()[first + t] = scales[static_cast<size_t>(t)].scale;
    }
    for (int64_t c = 0; c < k_; c += kBlock) {
      for (int64_t t = 0; t < count; ++t) {
        Part part{first + t, c, w + t * k_ + c, sums + t * k_ + c, errors + t * k_ + c};
        if (is_nvfp4(format_)) {
          round_block(part, best_block_scale(part));
        } else {
          round_codes(part, scales[static_cast<size_t>(t)]);
        }
      }
      if (inputs_.full()) add_errors(c, count, errors, sums);
    }
  }

  // Sixteen weights of a row, from position c on, with the sums of their columns; their errors are to be found.
  struct Part {
    int64_t row, c;
    const float *w, *sums;
    float* errors;
  };

  void add_errors(int64_t c, int64_t count, const float* errors, float* sums) const {
    for (int64_t l = c + kBlock; l < k_; l += kBlock) {
      for (int64_t t = 0; t < count; ++t) {
        Lanes sum = load(sums + t * k_ + l);
        for (int64_t i = c; i < c + kBlock; ++i) sum += errors[t * k_ + i] * load(r_ + i * k_ + l);
        store(sums + t * k_ + l, sum);
      }
    }
  }

  // Calls round(target) -> value for each weight in turn.
  template <class Round>
  void round_in_turn(const Part& part, const Round& round) const {
    Lanes sums = load(part.sums);
    for (int64_t i = 0; i < kBlock; ++i) {
      float target = part.w[i] + sums[i] / root(part.c + i);
      part.errors[i] = part.w[i] - round(i, target);
      if (inputs_.full()) sums += part.errors[i] * load(r_ + (part.c + i) * k_ + part.c);
    }
  }

  void round_codes(const Part& part, RowScale scale) {
    int64_t at = part.row * k_ + inputs_.order()[static_cast<size_t>(part.c)];
    round_in_turn(part, [&](int64_t i, float target) { return encode(target, scale, at + i); });
  }

  float encode(float target, RowScale scale, int64_t at) {
    if (code_type(format_) == DType::f8_e4m3) {
      f8_e4m3 code(target * scale.inverse);
      out_.codes.data<f8_e4m3>()[at] = code;
      return static_cast<float>(code) * scale.scale;
    }
    float code = std::nearbyint(std::clamp(target * scale.inverse, -127.0f, 127.0f));
    out_.codes.data<int8_t>()[at] = static_cast<int8_t>(code);
    return code * scale.scale;
  }

  // Of a few that map less than the peak to the largest code, the one that costs least.
  RowScale best_row_scale(const float* w, float peak) const {
    constexpr int kTried = 10;
    RowScale best = row_scale(format_, peak);
    double least = INFINITY;
    for (int i = 0; i < kTried && best.scale > 0; ++i) {
      RowScale scale = row_scale(format_, peak * (1 - 0.03f * static_cast<float>(i)));
      double cost = 0;
      for (int64_t c = 0; c < k_; ++c) {
        float v = w[c] * scale.inverse;
        bool fp8 = code_type(format_) == DType::f8_e4m3;
        float code = fp8 ? static_cast<float>(f8_e4m3(v)) : std::nearbyint(std::clamp(v, -127.0f, 127.0f));
        float error = (w[c] - code * scale.scale) * root(c);
        cost += double{error} * error;
      }
      if (cost >= least) continue;
      least = cost;
      best = scale;
    }
    return best;
  }

  // All sixteen scales about the one that the largest value asks for, a lane each, with the rounding that each leads
  // to.
  f8_e4m3 best_block_scale(const Part& part) const {
    constexpr int kBelow = 6;
    float peak = 0;
    for (int64_t i = 0; i < kBlock; ++i) peak = std::max(peak, std::abs(part.w[i] + part.sums[i] / root(part.c + i)));
    int wanted = f8_e4m3(peak / 6 / scale_2_).bits;
    std::array<f8_e4m3, 16> codes;
    Lanes scale, inverse, cost{};
    for (int lane = 0; lane < 16; ++lane) {
      codes[static_cast<size_t>(lane)].bits = static_cast<uint8_t>(std::clamp(wanted - kBelow + lane, 0, 0x7e));
      scale[lane] = static_cast<float>(codes[static_cast<size_t>(lane)]) * scale_2_;
      inverse[lane] = scale[lane] > 0 ? 1 / scale[lane] : 0;
    }
    std::array<Lanes, kBlock> sums;
    for (size_t i = 0; i < kBlock; ++i) sums[i] = Lanes{} + part.sums[i];
    for (size_t i = 0; i < kBlock; ++i) {
      int64_t c = part.c + static_cast<int64_t>(i);
      Lanes error = part.w[i] - rounded(part.w[i] + sums[i] / root(c), scale, inverse);
      Lanes column = sums[i] + error * root(c);
      cost += column * column;
      if (!inputs_.full()) continue;
      const float* r = r_ + c * k_ + part.c;
      for (size_t l = i + 1; l < kBlock; ++l) sums[l] += error * r[l];
    }
    int best = kBelow;  // what was asked for, if nothing is better
    for (int lane = 0; lane < 16; ++lane) best = cost[lane] < cost[best] ? lane : best;
    return codes[static_cast<size_t>(best)];
  }

  // To values of E2M1 times the scale, as f4_e2m1 rounds.
  static Lanes rounded(Lanes x, Lanes scale, Lanes inverse) {
    constexpr float kRound = 12582912.0f;  // 1.5·2^23: adding it and taking it away rounds to a whole number
    Lanes v = x * inverse, half = Lanes{} + 0.5f, one = Lanes{} + 1.0f, two = Lanes{} + 2.0f, six = Lanes{} + 6.0f;
    v = v > 6.0f ? six : v < -6.0f ? -six : v;
    Lanes size = v < 0.0f ? -v : v;
    Lanes step = size < 2.0f ? half : size < 4.0f ? one : two, steps = size < 2.0f ? two : size < 4.0f ? one : half;
    return (v * steps + kRound - kRound) * step * scale;
  }

  void round_block(const Part& part, f8_e4m3 code) {
    float scale = static_cast<float>(code) * scale_2_, inverse = scale > 0 ? 1 / scale : 0;
    int64_t at = part.row * k_ + inputs_.order()[static_cast<size_t>(part.c)];
    out_.scale.data<f8_e4m3>()[at / kBlock] = code;
    uint8_t* packed = out_.codes.data<uint8_t>() + at / 2;
    round_in_turn(part, [&](int64_t i, float target) {
      f4_e2m1 value(target * inverse);
      packed[i / 2] = static_cast<uint8_t>(i % 2 ? packed[i / 2] | value.bits << 4 : value.bits);
      return static_cast<float>(value) * scale;
    });
  }

  const Tensor& weight_;
  QuantFormat format_;
  const InputMoments& inputs_;
  int64_t n_, k_;
  const float* r_;
  float scale_2_ = 0;
  QuantizedMatrix out_;
  std::vector<std::vector<float>> memory_;
};

// e·M·eᵀ.
double cost_of(const std::vector<float>& e, const InputMoments& inputs) {
  int64_t k = inputs.length();
  const float* m = inputs.moments().data<float>();
  double total = 0;
  for (int64_t i = 0; i < k; ++i) {
    double value = e[static_cast<size_t>(i)];
    total += inputs.full() ? value * dot(m + i * k, e.data(), k) : value * value * m[i];
  }
  return std::max(total, 0.0);
}

}  // namespace

InputMoments::InputMoments(Tensor moments, ThreadPool* pool) : moments_(std::move(moments)) {
  const Shape& shape = moments_.shape();
  check(shape[0] % kQuantizedRowMultiple == 0 && (shape.rank() == 1 || shape == Shape{shape[0], shape[0]}),
        "InputMoments: the shape does not fit");
  int64_t k = shape[0];
  std::vector<float> diagonal;
  for (int64_t i = 0; i < k; ++i) diagonal.push_back(moments_.data<float>()[full() ? i * k + i : i]);
  double mean = 0;
  for (float v : diagonal) mean += v / static_cast<double>(k);
  bool finite = std::all_of(moments_.values<float>().begin(), moments_.values<float>().end(),
                            [](float v) { return std::isfinite(v); });
  if (!finite || mean < 0) fail(ErrorKind::model, "the moments of its inputs are not finite");
  order_ = order_of(diagonal);
  if (mean == 0) return;
  if (!full()) {
    factor_ = Tensor({k}, DType::f32);
    for (int64_t i = 0; i < k; ++i) {
      double moment = diagonal[static_cast<size_t>(order_[static_cast<size_t>(i)])];
      factor_.data<float>()[i] = static_cast<float>(std::sqrt(std::max(moment, 0.0) + kDamping * mean));
    }
    return;
  }
  // Rounding may leave inputs that hang together without a positive definite matrix.
  for (double damping = kDamping; damping < 10 && !factor_.defined(); damping *= 10)
    factor_ = factor_of(moments_, order_, static_cast<float>(damping * mean), pool);
  if (!factor_.defined()) fail(ErrorKind::model, "the moments of its inputs are those of no numbers");
}

QuantizedMatrix quantize_matrix(const Tensor& weight, QuantFormat format, const InputMoments& inputs,
                                ThreadPool* pool) {
  const Shape& shape = weight.shape();
  check(shape.rank() >= 2 && shape[1] == inputs.length() && shape.product(2, shape.rank()) == 1,
        "quantize_matrix: the shape does not fit");
  if (inputs.all_zero() || shape[0] == 0) return quantize_matrix(weight, format, pool);
  return Rounding(weight, format, inputs, pool).result();
}

double product_error(const Tensor& weight, const QuantizedMatrix& q, QuantFormat format, const InputMoments& inputs,
                     ThreadPool* pool) {
  constexpr int64_t kMost = 128;
  int64_t n = weight.shape()[0], k = weight.shape()[1], count = std::min(n, kMost);
  float scale_2 = q.scale_2.defined() ? q.scale_2.data<float>()[0] : 0;
  QuantizedView view{format, q.codes.raw(), q.scale.raw(), scale_2, k};
  std::vector<double> errors(static_cast<size_t>(count)), totals(static_cast<size_t>(count));
  for_each(pool, count, [&](int64_t i, int) {
    int64_t row = i * n / count;
    std::vector<float> exact(static_cast<size_t>(k)), decoded(static_cast<size_t>(k));
    to_float(weight.dtype(), weight.rows(row, row + 1).raw(), exact.data(), exact.size());
    dequantize_row(view, row, 0, k, decoded.data());
    for (size_t j = 0; j < decoded.size(); ++j) decoded[j] = exact[j] - decoded[j];
    errors[static_cast<size_t>(i)] = cost_of(decoded, inputs);
    totals[static_cast<size_t>(i)] = cost_of(exact, inputs);
  });
  double error = std::accumulate(errors.begin(), errors.end(), 0.0);
  double total = std::accumulate(totals.begin(), totals.end(), 0.0);
  return total > 0 ? std::sqrt(error / total) : 0;
}

}  // namespace kinora
