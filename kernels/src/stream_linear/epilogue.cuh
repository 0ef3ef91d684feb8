// What is done with the sums that the matrix instruction leaves in a warp: 16 columns by 8 rows, value i
// of a lane being column g + 8 (i / 2), row 2j + i % 2 (g = lane / 4, j = lane % 4).
// Shared by wgmma.cu and mma.cu; `Params` has out, bias, m, n and out_tile_rows.
#pragma once
#include "../cuda/tiled.cuh"
#include "packed_weights.cuh"

DEVICE uint32_t transposed(uint32_t matrix) {  // 8 x 8 elements
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(matrix));
    return r;
}

// Eight rows from `row` on of 16 columns from `column` on; value i of a lane is column
// g + 8 (i / 2), row 2j + i % 2. First what is there already, read early for its latency.
template <Epilogue E, class Params>
DEVICE void load_eight_rows(const Params& p, float (&before)[4], int row, int column, int g, int j) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = row + 2 * j + i % 2, c = column + g + 8 * (i / 2);
        const bool is_needed = E == Epilogue::AddResidual && r < p.m && c < p.n;
        before[i] = is_needed ? static_cast<const float*>(p.out)[static_cast<int64_t>(r) * p.n + c] : 0.f;
    }
}

template <Epilogue E, class Params>
DEVICE void store_eight_rows(const Params& p, float4 v, float4 up, const float (&before)[4], int row, int column,
                             int g, int j) {
    const float sums[4] = {v.x, v.y, v.z, v.w}, ups[4] = {up.x, up.y, up.z, up.w};
    if constexpr (E == Epilogue::AddResidual || E == Epilogue::StoreF32) {
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
                if constexpr (E == Epilogue::SiluMul) {
                    y[i] = s / (1.f + __expf(-s)) * ups[2 * h + i];
                } else {
                    const int c = column + g + 8 * h;
                    y[i] = s + (p.bias == nullptr || c >= p.n ? 0.f : elem_to_float(p.bias[c]));
                }
            }
            // Now a lane has row g and columns 2j, 2j + 1.
            const uint32_t pair = transposed(elem2_bits(floats_to_elem2(y[0], y[1])));
            const int r = row + g, c = column + 8 * h + 2 * j;
            if (r >= p.m || c >= p.n) continue;
            elem* to = out + activation_at(r, c, p.n, E == Epilogue::SiluMul ? p.out_tile_rows : 0);
            if (p.n % 2 == 0) {
                *reinterpret_cast<uint32_t*>(to) = pair;
            } else {
                to[0] = bits_elem2(pair).x;
                if (c + 1 < p.n) to[1] = bits_elem2(pair).y;
            }
        }
    }
}
