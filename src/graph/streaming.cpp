#include "graph/streaming.h"

#include <algorithm>

#include "graph/memory_plan.h"

namespace kinora {
namespace {

// A parameter that is read by nodes farther apart stays.
constexpr NodeId kLongestLife = 256;
constexpr size_t kSmallestChunk = size_t{4} << 20;

size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

// By first reader; those with the same one are not parted.
std::vector<StreamPlan::Chunk> cut(std::vector<ReadParameter> parameters, size_t limit) {
  std::stable_sort(parameters.begin(), parameters.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<StreamPlan::Chunk> chunks;
  NodeId last_first = -1;
  for (const ReadParameter& p : parameters) {
    bool full = !chunks.empty() && chunks.back().bytes + p.bytes > limit && p.first != last_first;
    if (chunks.empty() || full) {
      chunks.emplace_back();
      chunks.back().first = p.first;
    }
    StreamPlan::Chunk& chunk = chunks.back();
    chunk.parameters.push_back(p.id);
    chunk.offsets.push_back(chunk.bytes);
    chunk.bytes += rounded(p.bytes);
    chunk.last = std::max(chunk.last, p.last);
    last_first = p.first;
  }
  for (size_t k = 1; k < chunks.size(); ++k) chunks[k].begin = chunks[k - 1].first;
  return chunks;
}

// With `staying` of the chunks held for good; `held` is what is held besides.
StreamPlan with_staying(const std::vector<StreamPlan::Chunk>& all, size_t staying, size_t held) {
  StreamPlan plan;
  std::vector<BufferLife> lives;
  plan.held = held;
  for (size_t k = 0; k < all.size(); ++k) {
    if ((k + 1) * staying / all.size() > k * staying / all.size()) {
      plan.held += all[k].bytes;
    } else {
      plan.chunks.push_back(all[k]);
      lives.push_back({all[k].bytes, all[k].begin, all[k].last});
    }
  }
  MemoryPlan memory = plan_memory(lives);
  plan.window = memory.bytes;
  plan.held += memory.bytes;
  for (size_t k = 0; k < plan.chunks.size(); ++k) {
    for (size_t& offset : plan.chunks[k].offsets) offset += memory.offsets[k];
  }
  return plan;
}

}  // namespace

StreamPlan plan_stream(std::vector<ReadParameter> parameters, const StreamOptions& options) {
  size_t total = 0, held = 0;
  for (const ReadParameter& p : parameters) total += rounded(p.bytes);
  if (options.budget == 0 || total <= options.budget) return {.chunks = {}, .window = 0, .held = total};
  std::erase_if(parameters, [&](const ReadParameter& p) {
    bool stays = p.bytes < options.smallest || p.last - p.first > kLongestLife;
    held += stays ? rounded(p.bytes) : 0;
    return stays;
  });
  for (size_t limit = options.chunk;; limit /= 2) {  // large chunks travel better, small ones need less
    std::vector<StreamPlan::Chunk> chunks = cut(parameters, limit);
    StreamPlan plan;
    for (size_t staying = chunks.size() + 1; staying-- > 0;) {
      plan = with_staying(chunks, staying, held);
      if (plan.held <= options.budget) return plan;
    }
    if (limit <= kSmallestChunk) return plan;
  }
}

void StreamRun::bring(const StreamPlan::Chunk& chunk) {
  Device::Copies* copies = device_ ? device_->copies() : nullptr;
  if (copies) copies->after(*device_->mark());  // what used that part of the window is done by then
  for (NodeId id : chunk.parameters) {
    const Tensor& value = graph_.node(id).value;
    void* to = memory_[static_cast<size_t>(id)];
    if (copies) {
      copies->send(to, value.raw(), value.bytes(), pool_);
    } else if (device_) {
      device_->upload(to, value.raw(), value.bytes(), &pool_);
    } else {
      value.ask_for_pages();
    }
  }
  marks_.push_back(copies ? copies->mark() : nullptr);
}

void StreamRun::before(NodeId node) {
  while (brought_ < plan_.chunks.size() && plan_.chunks[brought_].begin <= node) bring(plan_.chunks[brought_++]);
  for (; awaited_ < brought_ && plan_.chunks[awaited_].first <= node; ++awaited_) {
    if (marks_[awaited_]) device_->after(*marks_[awaited_]);
  }
}

void StreamRun::after(NodeId node) {
  if (device_) return;
  for (size_t k = 0; k < brought_; ++k) {
    if (gone_[k] || plan_.chunks[k].last > node) continue;
    for (NodeId id : plan_.chunks[k].parameters) graph_.node(id).value.release_pages();
    gone_[k] = true;
  }
}

}  // namespace kinora
