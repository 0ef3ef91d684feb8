// q[m][k] s[m][k / 128] = x[m][k]   rows of activations in 8 bits (quantize_rows.cuh).
//
// s is max |x| / 127 of 128 k, rounded up to 11 significant bits (why: quantize_rows.cuh). A group with NaN or
// an infinity has the scale NaN, so that a broken row shows.
//   * Eight lanes share a row's 128 k, 16 each: two 16-byte loads, one 16-byte store.
//   * Rows from m to the end of the last tile become zero.
// Bytes: 3 per value. Grid: one warp for 4 rows x 128 k. Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "../cuda/element.cuh"
#include "../cuda/tiled.cuh"
#include "quantize_rows.cuh"

struct QuantizeRowsParams {
    const elem* x;       // tiled, x_rows rows
    uint8_t* q;          // [k / 128][rows] pieces of 128 bytes
    float* scales;       // [k / 128][rows]
    int32_t m, rows;     // rows of x, and rows that are written
    int32_t x_rows;
    int32_t n_pieces;    // of 128 k
};

constexpr int WARPS = 8;

// The four bytes of lane j of a word of weights: k 0, 2, 1, 3.
DEVICE uint32_t pack(int k0, int k1, int k2, int k3) {
    return (k0 & 0xff) | (k2 & 0xff) << 8 | (k1 & 0xff) << 16 | k3 << 24;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) quantize_rows(const __grid_constant__ QuantizeRowsParams p) {
    const int lane = threadIdx.x & 31, part = lane & 7;  // of 16 k
    const int unit = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * 4 + (lane >> 3);
    const int row = unit % p.rows, piece = unit / p.rows;
    launch_dependents();
    wait_for_previous();
    if (piece >= p.n_pieces) return;

    // 16 slots of a piece of 64: k 0, 1 of every j, then k 2, 3 (tiled.cuh).
    uint4 pairs[2] = {};
    if (row < p.m) {
        const int64_t at = (static_cast<int64_t>(piece * 2 + part / 4) * p.x_rows + row) * 64;
#pragma unroll
        for (int i = 0; i < 2; i++)
            pairs[i] = *reinterpret_cast<const uint4*>(p.x + at + (((part % 4 * 2 + i) ^ (row & 7)) << 3));
    }
    const uint32_t* words = &pairs[0].x;
    float x[16];  // [i][j][2]
    float most = 0.f;
    bool is_finite = true;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float2 v = elem2_to_float2(bits_elem2(words[i]));
        x[2 * i] = v.x, x[2 * i + 1] = v.y;
        most = fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y)));
        is_finite = is_finite && fabsf(v.x) < INFINITY && fabsf(v.y) < INFINITY;
    }
#pragma unroll
    for (int step = 1; step < 8; step *= 2) {
        most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
        is_finite = __shfl_xor_sync(~0u, is_finite, step) && is_finite;
    }
    // Rounded up to 11 significant bits; below 2^-100 the group becomes zero.
    const float scale = most < 0x1p-100f ? 0.f : __uint_as_float((__float_as_uint(most / 127.f) + 0x1fff) & ~0x1fffu);
    const float inverse = scale == 0.f ? 0.f : 1.f / scale;
    uint32_t out[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int q[4];
#pragma unroll
        for (int e = 0; e < 4; e++) q[e] = max(-127, min(127, __float2int_rn(x[e / 2 * 8 + j * 2 + e % 2] * inverse)));
        out[j] = pack(q[0], q[1], q[2], q[3]);
    }

    const int64_t home = static_cast<int64_t>(piece) * p.rows + row;
    *reinterpret_cast<uint4*>(p.q + home * 128 + ((part ^ (row & 7)) << 4)) = make_uint4(out[0], out[1], out[2], out[3]);
    if (part == 0) p.scales[home] = is_finite ? scale : NAN;
}
