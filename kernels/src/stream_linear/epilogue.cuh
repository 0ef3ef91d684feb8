// The epilogue: what a warp does with the sums of the matrix instruction before it stores them. A tile is 16
// columns by 8 rows; value i of a lane is column g + 8 (i / 2), row 2j + i % 2 (g = lane / 4, j = lane % 4).
// Shared by wgmma.cu, mma.cu and mma_int8.cu; `Params` has out, bias, m, n, out_tile_rows and epilogue.
#pragma once
#include "../cuda/tiled.cuh"
#include "packed_weights.cuh"

// What is compiled. Floats are added to the residual or not, as the launch says: the code is unrolled over all
// rows of a tile, and twice as much of it took a fifth of the compiler's time.
enum class Output { Elements, SiluMul, Floats };

DEVICE uint32_t transposed(uint32_t matrix) {  // 8 x 8 elements
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(matrix));
    return r;
}

// Both functions below work on eight rows from `row` on and 16 columns from `column` on. This one loads what is
// in memory already, the residual: early, to hide its latency.
template <Output O, class Params>
DEVICE void load_eight_rows(const Params& p, float (&before)[4], int row, int column, int g, int j) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = row + 2 * j + i % 2, c = column + g + 8 * (i / 2);
        const bool is_residual = O == Output::Floats && static_cast<Epilogue>(p.epilogue) == Epilogue::AddResidual;
        const bool is_needed = is_residual && r < p.m && c < p.n;
        before[i] = is_needed ? static_cast<const float*>(p.out)[static_cast<int64_t>(r) * p.n + c] : 0.f;
    }
}

template <Output O, class Params>
DEVICE void store_eight_rows(const Params& p, float4 v, float4 up, const float (&before)[4], int row, int column,
                             int g, int j) {
    const float sums[4] = {v.x, v.y, v.z, v.w}, ups[4] = {up.x, up.y, up.z, up.w};
    if constexpr (O == Output::Floats) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = row + 2 * j + i % 2, c = column + g + 8 * (i / 2);
            if (r >= p.m || c >= p.n) continue;
            const float y = sums[i] + (p.bias == nullptr ? 0.f : elem_to_float(p.bias[c]));
            static_cast<float*>(p.out)[static_cast<int64_t>(r) * p.n + c] = before[i] + y;
        }
    } else {
        elem* out = static_cast<elem*>(p.out);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float y[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float s = sums[2 * h + i];
                if constexpr (O == Output::SiluMul) {
                    y[i] = silu(s) * ups[2 * h + i];
                } else {
                    const int c = column + g + 8 * h;
                    y[i] = s + (p.bias == nullptr || c >= p.n ? 0.f : elem_to_float(p.bias[c]));
                }
            }
            // Now a lane has row g and columns 2j, 2j + 1.
            const uint32_t pair = transposed(elem2_bits(floats_to_elem2(y[0], y[1])));
            const int r = row + g, c = column + 8 * h + 2 * j;
            if (r >= p.m || c >= p.n) continue;
            elem* to = out + activation_at(r, c, p.n, O == Output::SiluMul ? p.out_tile_rows : 0);
            if (p.n % 2 == 0) {
                *reinterpret_cast<uint32_t*>(to) = pair;
            } else {
                to[0] = bits_elem2(pair).x;
                if (c + 1 < p.n) to[1] = bits_elem2(pair).y;
            }
        }
    }
}

// Where a warp's sums lie in the output: its first row and its first tile of 16 columns.
struct Place {
    int row, w_tile, g, j;
};

// Group r of eight rows of a warp's T tiles.
template <Output O, int T, class Params>
DEVICE void load_rows(const Params& p, float (&before)[T][4], const Place& at, int r) {
#pragma unroll
    for (int t = 0; t < T; t++) load_eight_rows<O>(p, before[t], at.row + r * 8, (at.w_tile + t) * TILE_COLUMNS, at.g, at.j);
}
template <Output O, int T, class Params>
DEVICE void store_rows(const Params& p, const float4 (&v)[T], const float (&before)[T][4], const Place& at, int r) {
    if constexpr (O == Output::SiluMul) {
        static_assert(T == 2);
        store_eight_rows<O>(p, v[0], v[1], before[0], at.row + r * 8, at.w_tile / 2 * TILE_COLUMNS, at.g, at.j);
    } else {
#pragma unroll
        for (int t = 0; t < T; t++)
            store_eight_rows<O>(p, v[t], v[t], before[t], at.row + r * 8, (at.w_tile + t) * TILE_COLUMNS, at.g, at.j);
    }
}

// AT_ONCE groups of eight rows of a warp's sums, from group r0 on.
template <Output O, int AT_ONCE, int T, int R, class Params>
DEVICE void write_rows(const Params& p, const float (&acc)[T][R][4], const Place& at, int r0) {
    float before[AT_ONCE][T][4];
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) load_rows<O>(p, before[r], at, r0 + r);
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) {
        float4 v[T];
#pragma unroll
        for (int t = 0; t < T; t++) {
            const float(&a)[4] = acc[t][r0 + r];
            v[t] = make_float4(a[0], a[1], a[2], a[3]);
        }
        store_rows<O>(p, v, before[r], at, r0 + r);
    }
}
