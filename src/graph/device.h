// Where an executable's memory lies and its steps run, when that is not the host. One queue: what is enqueued runs in
// order, and the calls below return before it is done unless they say so.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "core/tensor.h"
#include "core/threads.h"

namespace kinora {

class Device {
 public:
  // Work recorded once, to be enqueued as a whole.
  class Recording {
   public:
    virtual ~Recording() = default;
    virtual void enqueue() = 0;
  };

  // A point in the queue.
  class Mark {
   public:
    virtual ~Mark() = default;
    virtual void wait() = 0;                          // until everything enqueued before it is done
    virtual double seconds_after(Mark& earlier) = 0;  // both of one device, and done
  };

  // A second queue, for copies to the device that are made beside the steps.
  class Copies {
   public:
    virtual ~Copies() = default;
    virtual void after(Mark& mark) = 0;  // what is sent from here on waits for a mark of either queue
    // The host bytes may change after it returns; it may use the pool to read them.
    virtual void send(void* device, const void* host, size_t bytes, ThreadPool& pool) = 0;
    virtual std::unique_ptr<Mark> mark() = 0;
  };

  virtual ~Device() = default;

  // Uninitialised, 256-byte aligned. What is enqueued before the memory is given back may still use it. Throws
  // Error(resource) saying how much was asked for and how much was there.
  virtual std::shared_ptr<void> allocate(size_t bytes) = 0;
  // The host bytes may change after it returns. The threads of `pool`, if any, help with the host's side of large
  // copies, here and below.
  virtual void upload(void* device, const void* host, size_t bytes, ThreadPool* pool = nullptr) = 0;
  virtual void download(void* host, const void* device, size_t bytes, ThreadPool* pool = nullptr) = 0;  // waits
  // As download, but waits only for what was enqueued before `mark`, and goes on beside what was enqueued after it.
  virtual void download_after(Mark& mark, void* host, const void* device, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void clear(void* memory, size_t bytes) = 0;
  virtual void wait() = 0;
  virtual std::unique_ptr<Mark> mark() = 0;
  virtual void after(Mark& mark) = 0;           // what is enqueued from here on waits for a mark of either queue
  virtual Copies* copies() { return nullptr; }  // the device's own; null when it has none
  virtual void limit(size_t bytes) = 0;         // allocate() gives out no more than that at a time; 0: all there is
  virtual void* queue() = 0;                    // StepArgs::queue
  // Null when this device cannot, or is told not to.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& enqueue) = 0;

  // The bytes that `make` fills, shared by everyone who asks with the same key while someone holds them.
  std::shared_ptr<void> shared(const std::string& key, size_t bytes, const std::function<void(void*)>& make);

  Tensor to_device(const Tensor& host);  // itself when it is there already
  Tensor to_host(const Tensor& tensor);  // likewise
  // concat_rows on the device, of tensors here or there.
  Tensor concat_rows(std::span<const Tensor> parts);
  Tensor to_host_after(Mark& mark, const Tensor& tensor);

 private:
  std::map<std::string, std::weak_ptr<void>> shared_;
};

}  // namespace kinora
