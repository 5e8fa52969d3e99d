// Products with weights of 8 and 4 bits. Formats, layouts and roundings: core/quantize.h.
//
// A model reads a quantized weight through `dequantize` and knows nothing more; `use_quantized_products` then turns
// the linears that read it into `quantized_linear`, which never needs the weight in floats. With the formats int8, fp8
// and nvfp4_both that one quantizes x as well: `share_quantized_rows` makes that a step of its own, once for all
// products that read the same x, which a backend can merge into what computes x.
#pragma once

#include "core/quantize.h"
#include "graph/graph.h"

namespace kinora {

// A weight's parts in a graph; scale_2 of nvfp4 and nvfp4_both alone.
struct QuantizedWeight {
  QuantFormat format = QuantFormat::int8;
  Value codes, scale, scale_2;  // shapes [n, k] or [n, k/2]; [n] or [n, k/16]; []
};

// What happens to a product before it is stored: residual + gate·act(product + bias), rounded once. Shapes as of
// linear_add; undefined members are left out. Gate and residual are of the result's type, bias of any float type.
struct QuantizedFinish {
  Value bias = {};
  std::string act = "none";
  Value gate = {}, residual = {};
};

// The weight as float32 [n, k]. Attrs: "format" (text, quant_format_name).
Value dequantize(const QuantizedWeight& weight);

// x [.., k] (float) -> finish(x·weightᵀ) [.., n] in x's type. Inputs: x, codes, scale, then where there is one scale_2,
// bias, gate, residual. Attrs: "format", "act" (text), "bias", "gate", "residual" (0 or 1). k is a multiple of 16.
Value quantized_linear(Value x, const QuantizedWeight& weight, const QuantizedFinish& finish = {});

// x [.., k] -> u8 [m·(k + 4)], m the product of x's other axes: codes [m, k], then float32 scales [m]; of nvfp4_both
// as Nvfp4Rows (core/quantize.h). Attrs: "format" (one that quantizes rows). A row of x decides its codes and scales
// alone.
Value quantize_rows(Value x, QuantFormat format);
// Back to float32 [m, k]. Attrs: "format", "m", "k".
Value dequantize_rows(Value rows, QuantFormat format, int64_t m, int64_t k);

// The same product for rows that quantize_rows made: (codes·weight codesᵀ)·row scale·weight scale, then the finish.
// Inputs as of quantized_linear with the rows in place of x; further attrs: "rows" (Ints: the result's axes before n)
// and "dtype" of the result. int8 sums are exact integers.
Value quantized_linear_rows(Value rows, const QuantizedWeight& weight, const QuantizedFinish& finish,
                            const Ints& leading, DType dtype);

// The scales [n, blocks] of a weight as nvfp4_both's rows have theirs, for products that take both so: f8_e4m3 [bytes],
// and back. quantized_linear_rows takes such a scale too, then with scale_2 [n].
Value tile_scales(Value scale);
Value untile_scales(Value tiled, int64_t n, int64_t blocks);
bool has_tiled_scales(const Shape& scale, QuantFormat format);

// Where the inputs of a quantized_linear or quantized_linear_rows node stand; 0: not there.
struct QuantizedInputs {
  QuantFormat format;
  size_t codes = 1, scale = 2, scale_2 = 0, bias = 0, gate = 0, residual = 0, count = 3;
  explicit QuantizedInputs(const Attrs& attrs);
};

// linear and linear_add of a dequantized weight -> quantized_linear.
Graph use_quantized_products(const Graph& graph);
// quantized_linear of int8, fp8 and nvfp4_both -> quantize_rows, one for all that read the same x, and
// quantized_linear_rows.
Graph share_quantized_rows(const Graph& graph);
// quantized_linear_rows of nvfp4_both -> the same with tiled scales.
Graph tile_weight_scales(const Graph& graph);

extern const OpDef kDequantize, kQuantizedLinear, kQuantizeRows, kDequantizeRows, kQuantizedLinearRows;

}  // namespace kinora
