// Where the parts of a product of codes lie: arithmetic that the kernels and a test on the host share.
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

// The tiles [64 · warpgroups, columns] that the persistent kernel makes, and which of them takes the least time where
// `blocks` with a tile each are at work at once. Reckoned in cycles of an H200: a stage (128 bytes along k) takes the
// tensor cores a cycle for 32 of a tile's elements, and copying its operands a cycle for 54 bytes; finishing a tile
// takes 0.07 of a cycle an element, beginning and ending it some 1500.
struct WgmmaTile {
  int warpgroups, columns;
  constexpr int rows() const { return 64 * warpgroups; }
};
constexpr WgmmaTile kWgmmaTiles[] = {{3, 192}, {2, 256}, {2, 192}, {2, 144}};
constexpr WgmmaTile wgmma_tile(int m, int n, int k, int blocks) {
  WgmmaTile best{};
  double least = 0;
  for (WgmmaTile tile : kWgmmaTiles) {
    int64_t tiles = ((int64_t{m} + tile.rows() - 1) / tile.rows()) * ((int64_t{n} + tile.columns - 1) / tile.columns);
    double elements = tile.rows() * tile.columns, multiply = elements / 32,
           copy = (tile.rows() + tile.columns) * 128 / 54.0;
    double stages = (int64_t{k} + 127) / 128;
    double time = static_cast<double>((tiles + blocks - 1) / blocks) *
                  (stages * (multiply > copy ? multiply : copy) + 0.07 * elements + 1500);
    if (best.columns == 0 || time < least) best = tile, least = time;
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

// A warp passes a block [16, 32] of 16-bit results through shared memory, from lanes that hold pairs as mma's sums lie
// (of columns 8 j on, of row lane / 4 + 8 i) to lanes that hold 8 neighbours (of row lane / 4 + 8 i, too): bytes from
// its start.
constexpr uint32_t kStagedBytes = 16 * 64;
constexpr uint32_t staged_pair(uint32_t lane, uint32_t j, uint32_t i) {
  return swizzled<64>(lane / 4 + 8 * i, j) + lane % 4 * 4;
}
constexpr uint32_t staged_eight(uint32_t lane, uint32_t i) { return swizzled<64>(lane / 4 + 8 * i, lane % 4); }

}  // namespace kinora::cuda
