// Quantized numbers to floats and back, by rows (core/quantize.h).
#include "ops/quantize.h"

#include <cstring>

#include "core/quantize.h"
#include "cpu/kernels.h"

namespace kinora::cpu {

Step make_dequantize(const StepSpec& spec) {
  int64_t n = spec.output().shape[0], k = spec.output().shape[1];
  QuantFormat format = quant_format_from_name(spec.node.attrs.text("format"));
  Step step;
  step.run = [=](const StepArgs& args) {
    float scale_2 = is_nvfp4(format) ? *static_cast<const float*>(args.in[2]) : 0;
    QuantizedView view{format, args.in[0], args.in[1], scale_2, k};
    args.pool.run(n,
                  [&](int64_t row, int) { dequantize_row(view, row, 0, k, static_cast<float*>(args.out) + row * k); });
  };
  return step;
}

static Step quantize_nvfp4_rows(const StepSpec& spec, int64_t m, int64_t k) {
  DType type = spec.inputs[0].dtype;
  Nvfp4Rows layout{m, k};
  Workspace ws;
  size_t row_at = ws.add(static_cast<size_t>(k) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    std::memset(args.out, 0, static_cast<size_t>(layout.codes_at()));
    args.pool.run(m, [&](int64_t i, int worker) {
      float* row = ws.at(args, worker, row_at);
      simd().load(type, advance(args.in[0], type, i * k), row, static_cast<size_t>(k));
      quantize_row_nvfp4(row, layout, i, args.out);
    });
  };
  return step;
}

Step make_quantize_rows(const StepSpec& spec) {
  const Shape& shape = spec.inputs[0].shape;
  DType type = spec.inputs[0].dtype;
  int64_t k = shape[-1], m = shape.product(0, shape.rank() - 1);
  QuantFormat format = quant_format_from_name(spec.node.attrs.text("format"));
  if (is_nvfp4(format)) return quantize_nvfp4_rows(spec, m, k);
  Workspace ws;
  size_t row_at = ws.add(static_cast<size_t>(k) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    auto* codes = static_cast<std::byte*>(args.out);
    auto* scales = reinterpret_cast<float*>(codes + m * k);
    args.pool.run(m, [&](int64_t i, int worker) {
      float* row = ws.at(args, worker, row_at);
      simd().load(type, advance(args.in[0], type, i * k), row, static_cast<size_t>(k));
      RowScale scale = row_scale(format, simd().peak(row, static_cast<size_t>(k)));
      scales[i] = scale.scale;
      if (scale.inverse == 0) {
        std::memset(codes + i * k, 0, static_cast<size_t>(k));
      } else {
        simd().quantize(code_type(format), row, scale.inverse, codes + i * k, static_cast<size_t>(k));
      }
    });
  };
  return step;
}

Step make_dequantize_rows(const StepSpec& spec) {
  int64_t m = spec.output().shape[0], k = spec.output().shape[1];
  QuantFormat format = quant_format_from_name(spec.node.attrs.text("format"));
  Step step;
  step.run = [=](const StepArgs& args) {
    const auto* codes = static_cast<const std::byte*>(args.in[0]);
    QuantizedView view{format, codes, codes + m * k, 0, k};
    args.pool.run(m, [&](int64_t i, int) {
      float* out = static_cast<float*>(args.out) + i * k;
      if (is_nvfp4(format)) return dequantize_row_nvfp4(codes, {m, k}, i, out);
      dequantize_row(view, i, 0, k, out);
    });
  };
  return step;
}

}  // namespace kinora::cpu
