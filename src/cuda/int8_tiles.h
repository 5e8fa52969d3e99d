// Where the parts of an INT8 product lie: arithmetic that the kernels and a test on the host share.
#pragma once

#include <cstdint>

namespace kinora::cuda {

// Tiles of the result are taken in bands of kBand rows of tiles, a band column by column, so that the blocks at work at
// one time read few operands, which stay in the second-level cache.
constexpr int kBand = 16;
struct TileAt {
  int row, column;
};
constexpr TileAt tile_at(int index, int rows, int columns) {
  int first = index / (kBand * columns) * kBand, inside = index - first * columns;
  int height = rows - first < kBand ? rows - first : kBand;
  return {first + inside % height, inside / height};
}

// How wide the tiles [128, width] of a persistent kernel are, where `blocks` with a tile each are at work at once: the
// width whose waves of tiles take the least time. A tile takes as long as it is wide and somewhat more (reckoned, not
// measured).
constexpr int kWgmmaColumns[] = {256, 208, 176, 144};
constexpr int wgmma_columns(int m, int n, int blocks) {
  constexpr int kOverhead = 112;
  int best = 0;
  int64_t least = 0;
  for (int width : kWgmmaColumns) {
    int64_t tiles = ((int64_t{m} + 127) / 128) * ((int64_t{n} + width - 1) / width);
    int64_t time = (tiles + blocks - 1) / blocks * (width + kOverhead);
    if (best == 0 || time < least) best = width, least = time;
  }
  return best;
}

// Bytes from the start of a tile in shared memory, of rows of kRow bytes (64 or 128), to a unit of 16 bytes. Units are
// permuted so that the same unit of eight neighbouring rows lies in all banks; with rows of 128 bytes this is the
// 128-byte swizzle of tensor maps and of wgmma.
template <uint32_t kRow>
constexpr uint32_t swizzled(uint32_t row, uint32_t unit) {
  return row * kRow + (unit ^ row * kRow / 128 % (kRow / 16)) * 16;
}

// Which row and unit (of 16 bytes along k) of a fragment a lane names for ldmatrix: A [16, 32] in the order of mma's
// registers; B [16 columns, 32], two fragments of 8 columns, two registers each.
struct FragmentAt {
  uint32_t row, unit;
};
constexpr FragmentAt a_fragment(uint32_t lane) { return {lane % 16, lane / 16}; }
constexpr FragmentAt b_fragment(uint32_t lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2}; }

// A warp passes a block of sums [16, 32] through shared memory, from lanes that hold pairs of mma's result (pair i of 8
// columns `eighth` is of row lane / 4 + 8 i) to lanes that hold 8 neighbours (of row lane / 4 + 8 i, too) as two halves
// of 16 bytes. Words from its start. Units of 16 bytes are permuted, and odd rows are read with their second half
// first, so that lanes keep out of each other's banks.
constexpr uint32_t kStagedWords = 16 * 32;
constexpr uint32_t staged(uint32_t row, uint32_t column) {
  return row * 32 + ((column / 4) ^ (row % 4 * 2)) * 4 + column % 4;
}
constexpr uint32_t staged_pair(uint32_t lane, uint32_t eighth, uint32_t i) {
  return staged(lane / 4 + 8 * i, 8 * eighth + lane % 4 * 2);
}
constexpr uint32_t staged_half(uint32_t lane, uint32_t i, uint32_t half) {
  return staged(lane / 4 + 8 * i, lane % 4 * 8 + half * 4);
}

}  // namespace kinora::cuda
