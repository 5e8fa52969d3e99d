#include <algorithm>
#include <cstring>

#include "cuda/backend.h"
#include "cuda/cuda.h"
#include "cuda/tuned.h"
#include "graph/staging.h"

namespace kinora::cuda {

void check(cudaError_t status, std::source_location where) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // what can be cleared is cleared
  std::string file = where.file_name();
  fail(status == cudaErrorMemoryAllocation ? ErrorKind::resource : ErrorKind::internal,
       std::string("CUDA: ") + cudaGetErrorString(status) + " (" + file.substr(file.rfind('/') + 1) + ":" +
           std::to_string(where.line()) + ")");
}

const DeviceLimits& device_limits() {
  static const DeviceLimits limits = [] {
    DeviceLimits l;
    int device = 0, shared = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&l.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    check(cudaDeviceGetAttribute(&l.major, cudaDevAttrComputeCapabilityMajor, device));
    check(cudaDeviceGetAttribute(&l.minor, cudaDevAttrComputeCapabilityMinor, device));
    check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    l.shared_bytes = static_cast<size_t>(shared);
    return l;
  }();
  return limits;
}

namespace {

constexpr size_t kTuningPart = 32;  // of a limit, one part in so many is for measurements

std::string mib(size_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

class CudaRecording : public Device::Recording {
 public:
  CudaRecording(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
    cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    check(status);
  }
  ~CudaRecording() override { cudaGraphExecDestroy(exec_); }
  void enqueue() override { check(cudaGraphLaunch(exec_, stream_)); }

 private:
  cudaGraphExec_t exec_ = nullptr;
  cudaStream_t stream_;
};

class CudaMark : public Device::Mark {
 public:
  explicit CudaMark(cudaStream_t stream) {
    check(cudaEventCreate(&event_));
    check(cudaEventRecord(event_, stream));
  }
  ~CudaMark() override { cudaEventDestroy(event_); }
  void wait() override { check(cudaEventSynchronize(event_)); }
  cudaEvent_t event() const { return event_; }
  void hold(cudaStream_t stream) { check(cudaStreamWaitEvent(stream, event_, 0)); }
  double seconds_after(Mark& earlier) override {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, dynamic_cast<CudaMark&>(earlier).event_, event_));
    return static_cast<double>(milliseconds) / 1000;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Pinned memory, from and to which a stream copies by itself.
class PinnedBuffer : public Staging::Buffer {
 public:
  PinnedBuffer(int device, cudaStream_t stream) : device_(device), stream_(stream) {
    check(cudaMallocHost(&memory_, Staging::kPart));
    constexpr unsigned kAsleep = cudaEventBlockingSync;  // who waits, for other threads may have work
    if (cudaError_t status = cudaEventCreateWithFlags(&done_, cudaEventDisableTiming | kAsleep);
        status != cudaSuccess) {
      cudaFreeHost(memory_);
      check(status);
    }
  }
  ~PinnedBuffer() override {
    cudaEventSynchronize(done_);
    cudaFreeHost(memory_);
    cudaEventDestroy(done_);
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* memory() override { return static_cast<std::byte*>(memory_); }
  void start(void* to, const void* from, size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
    check(cudaEventRecord(done_, stream_));
  }
  void finish() override {
    check(cudaSetDevice(device_));  // of a thread of the pool
    check(cudaEventSynchronize(done_));
  }

 private:
  int device_;
  cudaStream_t stream_;
  void* memory_ = nullptr;
  cudaEvent_t done_ = nullptr;
};

Staging make_staging(int device, cudaStream_t stream) {
  return Staging([=] { return std::make_unique<PinnedBuffer>(device, stream); });
}

// Keeps the stream alive for memory that outlives the device object.
struct Stream {
  cudaStream_t handle = nullptr;
  cudaStream_t aside = nullptr;  // for downloads beside other work; made when first needed
  cudaMemPool_t pool = nullptr;
  size_t held = 0, peak = 0;
  ~Stream() {
    if (!handle) return;
    cudaStreamSynchronize(handle);
    if (aside) cudaStreamDestroy(aside);
    cudaStreamDestroy(handle);
    cudaMemPoolDestroy(pool);
  }
};

cudaStream_t make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}

class CudaCopies : public Device::Copies {
 public:
  explicit CudaCopies(int device) : stream_(make_stream()), staging_(make_staging(device, stream_)) {}
  ~CudaCopies() override {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  CudaCopies(const CudaCopies&) = delete;
  CudaCopies& operator=(const CudaCopies&) = delete;

  void after(Device::Mark& mark) override { dynamic_cast<CudaMark&>(mark).hold(stream_); }
  void send(void* device, const void* host, size_t bytes, ThreadPool& pool) override {
    staging_.send(device, host, bytes, &pool);
  }
  std::unique_ptr<Device::Mark> mark() override { return std::make_unique<CudaMark>(stream_); }

 private:
  cudaStream_t stream_;
  Staging staging_;
};

class CudaDevice : public Device {
 public:
  explicit CudaDevice(int index)
      : index_(index), stream_(open_stream(index)), staging_(make_staging(index, stream_->handle)) {
    cudaMemPoolProps props{};
    props.allocType = cudaMemAllocationTypePinned;
    props.location = {cudaMemLocationTypeDevice, index};
    check(cudaMemPoolCreate(&stream_->pool, &props));
    // Small results come and go at every step; they stay with the pool.
    uint64_t keep = size_t{64} << 20;
    check(cudaMemPoolSetAttribute(stream_->pool, cudaMemPoolAttrReleaseThreshold, &keep));
  }

  std::shared_ptr<void> allocate(size_t bytes) override {
    void* memory = nullptr;
    size_t size = std::max<size_t>(bytes, 1);
    if (limit_ && stream_->held + size > limit_) {
      fail(ErrorKind::resource, mib(bytes) + " more on the GPU would exceed the limit of " + mib(limit_) +
                                    ", of which " + mib(stream_->held) + " are in use (raise --max-memory)");
    }
    auto take = [&] { return cudaMallocFromPoolAsync(&memory, size, stream_->pool, stream_->handle); };
    cudaError_t status = take();
    if (status == cudaErrorMemoryAllocation) {  // the pool may hold what was given back and is still in use
      cudaGetLastError();
      wait();
      check(cudaMemPoolTrimTo(stream_->pool, 0));
      status = take();
    }
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      fail(ErrorKind::resource, "the GPU has " + mib(free) + " of " + mib(total) + " free, but " + mib(bytes) +
                                    " more were needed (use --tile, a smaller --batch or size, or --device cpu)");
    }
    check(status);
    stream_->held += size;
    stream_->peak = std::max(stream_->peak, stream_->held);
    return {memory, [stream = stream_, size](void* p) {
              cudaFreeAsync(p, stream->handle);
              stream->held -= size;
            }};
  }

  void upload(void* device, const void* host, size_t bytes, ThreadPool* pool) override {
    if (bytes == 0) return;
    if (bytes > kSmall) return staging_.send(device, host, bytes, pool);
    check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_->handle));
  }

  void download(void* host, const void* device, size_t bytes, ThreadPool* pool) override {
    if (bytes > kSmall) return staging_.receive(host, device, bytes, pool);
    if (bytes) check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_->handle));
    wait();
  }

  void download_after(Mark& mark, void* host, const void* device, size_t bytes) override {
    cudaStream_t& aside = stream_->aside;
    if (!aside) aside = make_stream();
    check(cudaStreamWaitEvent(aside, dynamic_cast<CudaMark&>(mark).event(), 0));
    if (bytes) check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, aside));
    check(cudaStreamSynchronize(aside));
  }

  void copy(void* to, const void* from, size_t bytes) override {
    if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_->handle));
  }

  void clear(void* memory, size_t bytes) override {
    if (bytes) check(cudaMemsetAsync(memory, 0, bytes, stream_->handle));
  }

  void wait() override { check(cudaStreamSynchronize(stream_->handle)); }
  std::unique_ptr<Mark> mark() override { return std::make_unique<CudaMark>(stream_->handle); }
  void after(Mark& mark) override { dynamic_cast<CudaMark&>(mark).hold(stream_->handle); }
  Copies* copies() override {
    if (!copies_) copies_ = std::make_unique<CudaCopies>(index_);
    return copies_.get();
  }
  void limit(size_t bytes) override {
    limit_ = bytes;
    limit_tuning(bytes / kTuningPart);
  }
  void* queue() override { return stream_->handle; }

  std::unique_ptr<Recording> record(const std::function<void()>& enqueue) override {
    const char* off = std::getenv("KINORA_CUDA_GRAPHS");
    if (off && *off == '0') return nullptr;
    check(cudaStreamBeginCapture(stream_->handle, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      cudaStreamEndCapture(stream_->handle, &graph);
      if (graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check(cudaStreamEndCapture(stream_->handle, &graph));
    return std::make_unique<CudaRecording>(graph, stream_->handle);
  }

  MemoryUse use() const {
    MemoryUse use;
    use.peak = stream_->peak;
    check(cudaMemGetInfo(&use.free, &use.total));
    return use;
  }

 private:
  static std::shared_ptr<Stream> open_stream(int index) {
    check(cudaSetDevice(index));
    auto stream = std::make_shared<Stream>();
    stream->handle = make_stream();
    return stream;
  }

  static constexpr size_t kSmall = size_t{64} << 10;
  int index_;
  std::shared_ptr<Stream> stream_;
  Staging staging_;
  std::unique_ptr<CudaCopies> copies_;
  size_t limit_ = 0;
};

}  // namespace

std::string why_unavailable() {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return "";
  cudaGetLastError();
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return "no NVIDIA driver was found (libcuda.so.1); install it, or use --device cpu";
    return "the NVIDIA driver is too old: it supports CUDA " + std::to_string(driver / 1000) + "." +
           std::to_string(driver % 1000 / 10) + ", but " + std::to_string(runtime / 1000) + "." +
           std::to_string(runtime % 1000 / 10) + " is needed; update it, or use --device cpu";
  }
  if (status == cudaErrorNoDevice || count == 0) return "no NVIDIA GPU was found; use --device cpu";
  return std::string("the GPU cannot be used: ") + cudaGetErrorString(status);
}

std::shared_ptr<Device> open_device(int index) {
  if (std::string why = why_unavailable(); !why.empty()) fail(ErrorKind::resource, why);
  int count = 0;
  check(cudaGetDeviceCount(&count));
  if (index < 0 || index >= count) {
    fail(ErrorKind::usage, "there is no GPU " + std::to_string(index) + "; this machine has " + std::to_string(count));
  }
  return std::make_shared<CudaDevice>(index);
}

MemoryUse memory_use(Device& device) { return dynamic_cast<CudaDevice&>(device).use(); }

std::string description(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index));
  int driver = 0;
  check(cudaDriverGetVersion(&driver));
  return std::string(properties.name) + ", compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ", driver CUDA " + std::to_string(driver / 1000) + "." +
         std::to_string(driver % 1000 / 10);
}

}  // namespace kinora::cuda
