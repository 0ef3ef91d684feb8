// The two layouts of activations: plain rows, or tiled as wgmma.cu reads them. Tiled means [k / 64][rows]
// pieces of 64 values, in the order of k of the packed weights (repack.cu) and with the 128-byte swizzle of
// wgmma.cuh, so that a plain copy of rows is an operand.
#pragma once
#include "device.cuh"

// Index of value k of a row; the pairs k, k + 1 (k even) stay together. `tile_rows`: rows of the whole matrix,
// a multiple of 8; 0 for plain rows of `stride` values.
DEVICE int64_t activation_at(int row, int k, int stride, int tile_rows) {
    if (tile_rows == 0) return static_cast<int64_t>(row) * stride + k;
    const int slot = (k & 0x21) | (k & 0x18) >> 2 | (k & 4) << 2 | (k & 2) << 2;
    return (static_cast<int64_t>(k / 64) * tile_rows + row) * 64 + (slot ^ (row & 7) << 3);
}
