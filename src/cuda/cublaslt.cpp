#include "cuda/cublaslt.h"

#include <cublasLt.h>

#include "cuda/epilogue.h"
#include "cuda/kernels.h"
#include "cuda/library.h"
#include "cuda/tuned.h"
#include "graph/views.h"

namespace kinora::cuda {
namespace {

constexpr size_t kWorkspaceLimit = size_t{32} << 20;
constexpr uintptr_t kSomewhere = 256;  // stands for device memory that is not known yet

struct Api {
#define KINORA_SYMBOL(name) decltype(&::name) name = cublaslt_library().function<decltype(::name)>(#name)
  KINORA_SYMBOL(cublasLtCreate);
  KINORA_SYMBOL(cublasLtGetStatusString);
  KINORA_SYMBOL(cublasLtGetVersion);
  KINORA_SYMBOL(cublasLtMatmul);
  KINORA_SYMBOL(cublasLtMatmulAlgoGetHeuristic);
  KINORA_SYMBOL(cublasLtMatmulDescCreate);
  KINORA_SYMBOL(cublasLtMatmulDescDestroy);
  KINORA_SYMBOL(cublasLtMatmulDescSetAttribute);
  KINORA_SYMBOL(cublasLtMatmulPreferenceCreate);
  KINORA_SYMBOL(cublasLtMatmulPreferenceDestroy);
  KINORA_SYMBOL(cublasLtMatmulPreferenceSetAttribute);
  KINORA_SYMBOL(cublasLtMatrixLayoutCreate);
  KINORA_SYMBOL(cublasLtMatrixLayoutDestroy);
  KINORA_SYMBOL(cublasLtMatrixLayoutSetAttribute);
#undef KINORA_SYMBOL
  cublasLtHandle_t handle = nullptr;

  Api() { expect(cublasLtCreate(&handle)); }
  void expect(cublasStatus_t status) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    fail(status == CUBLAS_STATUS_ALLOC_FAILED ? ErrorKind::resource : ErrorKind::internal,
         std::string("cuBLASLt: ") + cublasLtGetStatusString(status));
  }
};

const Api& api() {
  static const Api instance;
  return instance;
}

cudaDataType_t cuda_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return CUDA_R_32F;
    case DType::f16: return CUDA_R_16F;
    case DType::i8: return CUDA_R_8I;
    case DType::i32: return CUDA_R_32I;
    case DType::f8_e4m3: return CUDA_R_8F_E4M3;
    default: return CUDA_R_16BF;
  }
}

}  // namespace

size_t cublaslt_version() { return api().cublasLtGetVersion(); }

// cuBLASLt is column-major, so it is given Cᵀ = op(B)ᵀ · op(A)ᵀ: its A is our B, its rows are our columns.
struct Product::Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulHeuristicResult_t choice{};
  bool found = false, residual = false, bias = false, integers = false, scales = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    for (cublasLtMatrixLayout_t layout : {a, b, c}) {
      if (layout) api().cublasLtMatrixLayoutDestroy(layout);
    }
    if (desc) api().cublasLtMatmulDescDestroy(desc);
  }

  template <class V>
  void set(cublasLtMatmulDescAttributes_t attribute, V value) const {
    api().expect(api().cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value));
  }
  struct Matrix {
    int64_t rows, columns, stride;
    bool transposed = false;
    int64_t leading = 0;  // from column to column; 0: columns follow each other
  };
  static cublasLtMatrixLayout_t layout(cudaDataType_t type, int64_t batch, Matrix m) {
    cublasLtMatrixLayout_t result = nullptr;
    auto r = static_cast<uint64_t>(m.transposed ? m.columns : m.rows);
    auto c = static_cast<uint64_t>(m.transposed ? m.rows : m.columns);
    int64_t leading = m.leading ? m.leading : static_cast<int64_t>(r);
    api().expect(api().cublasLtMatrixLayoutCreate(&result, type, r, c, leading));
    auto count = static_cast<int32_t>(batch);
    api().expect(
        api().cublasLtMatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    api().expect(api().cublasLtMatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &m.stride,
                                                        sizeof m.stride));
    return result;
  }

  // False when the library is too old to know of them. The addresses are only to be there when it looks for a plan.
  bool describe_scales(bool nvfp4) const {
    auto mode = static_cast<int32_t>(nvfp4 ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3
                                           : CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    for (auto attribute : {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE}) {
      if (api().cublasLtMatmulDescSetAttribute(desc, attribute, &mode, sizeof mode) != CUBLAS_STATUS_SUCCESS)
        return false;
    }
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, kSomewhere);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, kSomewhere);
    return true;
  }

  void describe(const ProductShape& s) {
    DType operands = s.operands.value_or(s.dtype);
    integers = s.dtype == DType::i32;
    api().expect(api().cublasLtMatmulDescCreate(&desc, integers ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                                integers ? CUDA_R_32I : CUDA_R_32F));
    set(CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    cublasLtEpilogue_t epilogue = s.gelu ? (s.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU)
                                         : (s.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (s.bias) set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, cuda_type(s.dtype));
    if (s.bias && s.operands) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, kSomewhere);
    // A rounding of the running sums that is far below that of the operands, and which the 16 bits of C hide.
    if (operands == DType::f8_e4m3 && s.dtype != DType::f32) set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
    cudaDataType_t type = s.nvfp4 ? CUDA_R_4F_E2M1 : cuda_type(operands);
    a = layout(type, s.batch, {s.n, s.k, s.shared_b ? 0 : s.n * s.k, s.transpose_b});
    b = layout(type, s.batch, {s.k, s.m, s.k * s.m, s.transpose_a});
    c = layout(cuda_type(s.wide ? DType::f32 : s.dtype), s.batch, {s.n, s.m, s.n * s.m, false, s.row});
    residual = s.residual;
    bias = s.bias;
    scales = s.scales;
  }

  // The library suggests the same on every run; with sums in one pass, unless they may be split, so that no result
  // depends on how the work was.
  void choose(int suggestion, bool split) {
    cublasLtMatmulPreference_t preference = nullptr;
    api().expect(api().cublasLtMatmulPreferenceCreate(&preference));
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
    api().cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceLimit,
                                               sizeof kWorkspaceLimit);
    if (!split) {
      api().cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                                 sizeof schemes);
    }
    int count = 0;
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(suggestion) + 1);
    cublasStatus_t status = api().cublasLtMatmulAlgoGetHeuristic(
        api().handle, desc, a, b, c, c, preference, static_cast<int>(results.size()), results.data(), &count);
    api().cublasLtMatmulPreferenceDestroy(preference);
    choice = results.back();
    found = status == CUBLAS_STATUS_SUCCESS && count > suggestion && choice.state == CUBLAS_STATUS_SUCCESS;
  }
};

Product::Product(const ProductShape& shape) : Product(shape, tuned_suggestion(shape)) {}

Product::Product(const ProductShape& shape, int suggestion) : plan_(std::make_shared<Plan>()) {
  plan_->describe(shape);
  if (!shape.scales || plan_->describe_scales(shape.nvfp4)) plan_->choose(suggestion, shape.split);
}

bool Product::available() const { return plan_->found; }
size_t Product::workspace_bytes() const { return plan_->choice.workspaceSize; }

void Product::run(const void* a, const void* b, const void* bias, const void* residual, void* c, void* workspace,
                  cudaStream_t stream, ProductScales scales) const {
  const float one = 1, zero = 0;
  const int32_t integer_one = 1, integer_zero = 0;
  const void* alpha = plan_->integers ? static_cast<const void*>(&integer_one) : &one;
  const void* nothing = plan_->integers ? static_cast<const void*>(&integer_zero) : &zero;
  if (plan_->bias) plan_->set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  if (plan_->scales) {
    plan_->set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.columns);
    plan_->set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.rows);
  }
  api().expect(api().cublasLtMatmul(api().handle, plan_->desc, alpha, b, plan_->a, a, plan_->b,
                                    plan_->residual ? alpha : nothing, plan_->residual ? residual : c, plan_->c, c,
                                    plan_->c, &plan_->choice.algo, workspace, plan_->choice.workspaceSize, stream));
}

namespace {

void expect_available(const Product& product) {
  if (!product.available()) fail(ErrorKind::internal, "cuBLASLt has no product of this shape");
}

Step zero_step(const StepSpec& spec) {
  size_t bytes = spec.output().bytes();
  Step step;
  step.run = [bytes](const StepArgs& args) {
    if (bytes) check(cudaMemsetAsync(args.out, 0, bytes, stream_of(args)));
  };
  return step;
}

bool same_types(const StepSpec& spec, size_t from, DType dtype) {
  for (size_t i = from; i < spec.inputs.size(); ++i) {
    if (spec.inputs[i].dtype != dtype) return false;
  }
  return true;
}

// `x`: which input is x; the weight follows it.
ProductShape linear_shape(const StepSpec& spec, size_t x) {
  const Shape& weight = spec.inputs[x + 1].shape;
  ProductShape s{.m = spec.inputs[x].shape.numel() / weight[1],
                 .n = weight[0],
                 .k = weight[1],
                 .transpose_b = true,
                 .dtype = spec.inputs[x].dtype};
  Ints rows = reshaped_strides(spec.output().shape, spec.out_strides, {s.m, s.n});
  if (s.m > 1 && !rows.empty() && rows[0] > s.n) s.row = rows[0];
  return s;
}

}  // namespace

bool supports_linear(const StepSpec& spec) {
  if (spec.node.op->name == "linear" && !is_act(spec.node.attrs.text("act"))) return false;
  size_t weight = spec.node.op->name == "linear" ? 1 : 2;
  return same_types(spec, weight - 1, spec.inputs[weight - 1].dtype) && spec.inputs[weight].shape[1] > 0 &&
         spec.output().shape.numel() > 0;
}

Step make_matmul(const StepSpec& spec) {
  const Shape &a = spec.inputs[0].shape, &b = spec.inputs[1].shape;
  ProductShape s;
  s.transpose_a = spec.node.attrs.integer("transpose_a");
  s.transpose_b = spec.node.attrs.integer("transpose_b");
  s.m = spec.output().shape[-2];
  s.n = spec.output().shape[-1];
  s.k = s.transpose_a ? a[-2] : a[-1];
  s.batch = a.product(0, a.rank() - 2);
  s.shared_b = b.rank() == 2;
  s.dtype = spec.output().dtype;
  if (s.k == 0 || spec.output().shape.numel() == 0) return zero_step(spec);
  Product product(s);
  expect_available(product);
  Step step;
  step.scratch_bytes = product.workspace_bytes();
  step.run = [product](const StepArgs& args) {
    product.run(args.in[0], args.in[1], nullptr, nullptr, args.out, args.scratch, stream_of(args));
  };
  return step;
}

// What the library's epilogue cannot do is done in place by a kernel of ours.
Step make_linear(const StepSpec& spec) {
  const std::string& act = spec.node.attrs.text("act");
  ProductShape s = linear_shape(spec, 0);
  bool biased = spec.inputs.size() == 3;
  s.bias = biased;
  // The epilogue's tanh is approximate: below the rounding of 16 bits, above that of float32.
  s.gelu = s.dtype != DType::f32 && act == "gelu_tanh";
  Product product(s);
  Epilogue rest{s.dtype, s.m, s.n, s.gelu ? Act::none : act_of(act), s.row};
  bool bias_left = biased && !product.available();
  if (!product.available()) {
    s.bias = s.gelu = false;
    product = Product(s);
    expect_available(product);
    rest.act = act_of(act);
  }
  Step step;
  step.scratch_bytes = product.workspace_bytes();
  step.run = [product, rest, biased, bias_left](const StepArgs& args) {
    const void* bias = biased ? args.in[2] : nullptr;
    product.run(args.in[0], args.in[1], bias, nullptr, args.out, args.scratch, stream_of(args));
    if (bias_left || rest.act != Act::none)
      rest.enqueue(stream_of(args), args.out, bias_left ? bias : nullptr, nullptr);
  };
  return step;
}

static ProductShape linear_add_shape(const StepSpec& spec) {
  ProductShape s = linear_shape(spec, 1);
  s.bias = spec.node.attrs.integer("bias");
  s.residual = true;
  s.wide = spec.output().dtype != s.dtype;
  return s;
}

bool supports_linear_add(const StepSpec& spec) {
  if (spec.node.attrs.integer("gate") || !supports_linear(spec)) return false;
  if (spec.output().dtype != spec.inputs[1].dtype && spec.node.attrs.integer("bias")) return false;
  return Product(linear_add_shape(spec)).available();
}

// Inputs: residual, x, weight and perhaps bias; the sum may take the residual's place.
Step make_linear_add(const StepSpec& spec) {
  Product product(linear_add_shape(spec));
  bool biased = spec.node.attrs.integer("bias");
  Step step;
  step.in_place = true;
  step.scratch_bytes = product.workspace_bytes();
  step.run = [product, biased](const StepArgs& args) {
    product.run(args.in[1], args.in[2], biased ? args.in[3] : nullptr, args.in[0], args.out, args.scratch,
                stream_of(args));
  };
  return step;
}

}  // namespace kinora::cuda
