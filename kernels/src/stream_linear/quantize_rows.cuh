// Rows of x in 8 bits, as quantize_rows.cu writes them and mma_int8.cu multiplies them.
//
// x of a row and 128 k is q s: q from -127 to 127, s a float of 11 significant bits. Layout: q [k / 128][rows]
// pieces of 128 bytes, s [k / 128][rows]. Within 32 k the value 8j + 4h + e lies at 16h + 4j + (0, 2, 1, 3)[e],
// so that `ldmatrix` gives lane (g, j) the four k of a word of packed weights. Pieces of 16 bytes are swizzled
// by the row, as in wgmma.cuh.
#pragma once
#include "../cuda/device.cuh"

// The bits of 1.5 * 2^23, from which a sum of products starts. An integer i added to them, |i| < 2^22, makes the
// float 1.5 * 2^23 + i. That float times s, minus 1.5 * 2^23 s, is s i with one rounding: 1.5 * 2^23 s is exact,
// since s has 11 bits.
constexpr int32_t SUM_BASE = 0x4b400000;
constexpr float SUM_BASE_FLOAT = 12582912.f;
