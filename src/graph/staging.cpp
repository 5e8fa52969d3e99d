#include "graph/staging.h"

#include <algorithm>
#include <cstring>

namespace kinora {
namespace {

constexpr size_t kPart = Staging::kPart;

size_t part_count(size_t bytes) { return (bytes + kPart - 1) / kPart; }
size_t part_size(size_t part, size_t bytes) { return std::min(kPart, bytes - part * kPart); }

}  // namespace

Staging::Buffer& Staging::Lane::next() {
  Buffer& buffer = *buffers[turn++ % kDepth];
  buffer.finish();
  return buffer;
}

void Staging::share(size_t parts, ThreadPool* pool, const std::function<void(Lane&, std::atomic<size_t>&)>& body) {
  size_t threads = std::min({parts, kMostThreads, pool ? static_cast<size_t>(pool->size()) : size_t{1}});
  while (lanes_.size() < threads) {
    Lane lane;
    for (auto& buffer : lane.buffers) buffer = make_();
    lanes_.push_back(std::move(lane));
  }
  std::atomic<size_t> next{0};
  if (threads == 1) return body(lanes_[0], next);
  pool->run(static_cast<int64_t>(threads), [&](int64_t i, int) { body(lanes_[static_cast<size_t>(i)], next); });
}

void Staging::send(void* device, const void* host, size_t bytes, ThreadPool* pool) {
  size_t parts = part_count(bytes);
  if (parts == 0) return;
  share(parts, pool, [&](Lane& lane, std::atomic<size_t>& next) {
    for (size_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) {
      Buffer& buffer = lane.next();
      std::memcpy(buffer.memory(), static_cast<const std::byte*>(host) + part * kPart, part_size(part, bytes));
      buffer.start(static_cast<std::byte*>(device) + part * kPart, buffer.memory(), part_size(part, bytes));
    }
  });
}

void Staging::receive(void* host, const void* device, size_t bytes, ThreadPool* pool) {
  size_t parts = part_count(bytes);
  if (parts == 0) return;
  share(parts, pool, [&](Lane& lane, std::atomic<size_t>& next) {
    Buffer* before = nullptr;  // whose part, `earlier`, travels while the next one is asked for
    for (size_t earlier = 0;;) {
      size_t part = next.fetch_add(1, std::memory_order_relaxed);
      Buffer* buffer = nullptr;
      if (part < parts) {
        buffer = &lane.next();
        buffer->start(buffer->memory(), static_cast<const std::byte*>(device) + part * kPart, part_size(part, bytes));
      }
      if (before) {
        before->finish();
        std::memcpy(static_cast<std::byte*>(host) + earlier * kPart, before->memory(), part_size(earlier, bytes));
      }
      if (!buffer) return;
      before = buffer;
      earlier = part;
    }
  });
}

}  // namespace kinora
