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

// Where a warp's sums lie in the output: its first row, a multiple of 8, and its first tile of 16 columns.
struct Place {
    int row, w_tile, g, j;
};

// Writes groups of eight rows of a warp's T tiles. Addresses, biases and which columns exist are found once: a group
// of rows lies `step` after the one before it, in plain rows and in tiles (tiled.cuh: the swizzle repeats).
template <Output O, int T, class Params>
struct Writer {
    static constexpr bool IS_FLOATS = O == Output::Floats;
    static constexpr int TILES = O == Output::SiluMul ? T / 2 : T;  // of the output
    static_assert(O != Output::SiluMul || T == 2);
    using Value = cuda::std::conditional_t<IS_FLOATS, float, elem>;
    // This lane's first values, in the first group of rows: of both halves of a tile, whose distance in tiled rows is
    // not 8; in plain rows the second is not used.
    Value* to[2];
    float bias[TILES][2];
    int columns;   // of the output, from the first value on
    int step;
    int rows;               // of the output, from this lane's first row on
    const Params& p;

    DEVICE Writer(const Params& p, const Place& at) : p(p) {
        const int tile_rows = O == Output::SiluMul ? p.out_tile_rows : 0;
        const int first_row = at.row + (IS_FLOATS ? 2 * at.j : at.g), summed = at.w_tile * TILES / T * TILE_COLUMNS + at.g;
        const int first = IS_FLOATS ? summed : summed - at.g + 2 * at.j;
        step = tile_rows == 0 ? 8 * p.n : 8 * 64;
        rows = p.m - first_row;
        columns = p.n - first;
#pragma unroll
        for (int h = 0; h < 2; h++) to[h] = static_cast<Value*>(p.out) + activation_at(first_row, first + 8 * h, p.n, tile_rows);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int column = summed + t * TILE_COLUMNS + 8 * h;
                const bool has_bias = O != Output::SiluMul && p.bias != nullptr && column < p.n;
                bias[t][h] = has_bias ? elem_to_float(p.bias[column]) : 0.f;
            }
    }

    // What is in memory already, the residual: early, to hide its latency.
    DEVICE void load(float (&before)[T][4], int group) const {
#pragma unroll
        for (int t = 0; t < T; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                before[t][i] = 0.f;
                if constexpr (IS_FLOATS)
                    if (static_cast<Epilogue>(p.epilogue) == Epilogue::AddResidual && is_inside(t, i, group)) before[t][i] = at(t, i / 2, group)[i % 2 * p.n];
            }
    }
    DEVICE void store(const float4 (&v)[T], const float (&before)[T][4], int group) const {
        if constexpr (IS_FLOATS) store_floats(v, before, group);
        else store_elements(v, group);
    }

private:
    DEVICE Value* at(int t, int h, int group) const {
        if constexpr (O == Output::SiluMul) return to[h] + static_cast<int64_t>(group) * step;  // one tile
        else return to[0] + (t * TILE_COLUMNS + 8 * h) + static_cast<int64_t>(group) * step;
    }
    DEVICE bool is_inside(int t, int i, int group) const {
        return group * 8 + i % 2 < rows && t * TILE_COLUMNS + i / 2 * 8 < columns;
    }
    DEVICE void store_floats(const float4 (&v)[T], const float (&before)[T][4], int group) const {
#pragma unroll
        for (int t = 0; t < T; t++) {
            const float sums[4] = {v[t].x, v[t].y, v[t].z, v[t].w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (is_inside(t, i, group))
                    at(t, i / 2, group)[i % 2 * p.n] = before[t][i] + (sums[i] + bias[t][i / 2]);
        }
    }
    DEVICE void store_elements(const float4 (&v)[T], int group) const {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const float4 &a = v[t * T / TILES], &up = v[t * T / TILES + T / TILES - 1];
            const float sums[4] = {a.x, a.y, a.z, a.w}, ups[4] = {up.x, up.y, up.z, up.w};
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float y[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float s = sums[2 * h + i];
                    y[i] = O == Output::SiluMul ? silu(s) * ups[2 * h + i] : s + bias[t][h];
                }
                // Now a lane has row g and columns 2j, 2j + 1.
                const uint32_t pair = transposed(elem2_bits(floats_to_elem2(y[0], y[1])));
                const int left = columns - (t * TILE_COLUMNS + 8 * h);
                if (group * 8 >= rows || left <= 0) continue;
                elem* first = at(t, h, group);
                if (p.n % 2 == 0) {
                    *reinterpret_cast<uint32_t*>(first) = pair;
                } else {
                    first[0] = bits_elem2(pair).x;
                    if (left > 1) first[1] = bits_elem2(pair).y;
                }
            }
        }
    }
};

// AT_ONCE groups of eight rows of a warp's sums, from group r0 on.
template <int AT_ONCE, Output O, int T, int R, class Params>
DEVICE void write_rows(const Writer<O, T, Params>& writer, const float (&acc)[T][R][4], int r0) {
    float before[AT_ONCE][T][4];
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) writer.load(before[r], r0 + r);
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) {
        float4 v[T];
#pragma unroll
        for (int t = 0; t < T; t++) {
            const float(&a)[4] = acc[t][r0 + r];
            v[t] = make_float4(a[0], a[1], a[2], a[3]);
        }
        writer.store(v, before[r], r0 + r);
    }
}
