// x[r][c] = h[row(r)][c] * rsqrt(mean(h^2) + eps) * weight[c]
//
// h: [.][n] f32, the residual stream; x: [m][x_stride] elements, or tiled (tiled.cuh). One block per row. Each
// thread keeps its part of the row in registers, so h is read once. `rows` picks rows (the last token of each
// sequence before lm_head); null takes them in order. The kernel may begin a chain of norms that are fused
// into projections (deferred.cuh).
// Bytes: 4 n read, 2 n written per row. Grid: m blocks of 512 threads, n at most 16,384.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "deferred.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32;

struct RmsNormParams {
    const float* h;
    const elem* weight;
    const int32_t* rows;
    elem* x;
    float eps;
    int32_t n, x_stride;
    int32_t h_rows;  // of h; a row index outside is clamped
    int32_t x_tile_rows;  // of a tiled x; 0 for plain rows
    int32_t padding;
    NormState next;       // null: no norm follows
};

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(const __grid_constant__ RmsNormParams p) {
    constexpr int VECTORS = 8;  // of 4 values, the most that a thread has
    launch_dependents();
    const int n_vectors = p.n / 4;
    uint2 weight[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int v = i * THREADS + threadIdx.x;
        if (v < n_vectors) weight[i] = reinterpret_cast<const uint2*>(p.weight)[v];
    }
    wait_for_previous();
    const uint32_t asked = p.rows == nullptr ? blockIdx.x : p.rows[blockIdx.x];
    const int64_t row = min(asked, static_cast<uint32_t>(p.h_rows - 1));
    const float4* h = reinterpret_cast<const float4*>(p.h + row * p.n);
    float4 value[VECTORS];
    float square = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int v = i * THREADS + threadIdx.x;
        value[i] = v < n_vectors ? h[v] : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int i = 0; i < VECTORS; i++)
        square += value[i].x * value[i].x + value[i].y * value[i].y + value[i].z * value[i].z + value[i].w * value[i].w;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) square += __shfl_xor_sync(~0u, square, d);
    __shared__ float sums[WARPS];
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = square;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) total += sums[i];
    // A row whose sum of squares overflows f32 becomes NaN, not zero.
    const float r = total < INFINITY ? rsqrtf(total / p.n + p.eps) : NAN;
    if (p.next.scale != nullptr && threadIdx.x == 0) begin_norm(p.next, blockIdx.x, r);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int v = i * THREADS + threadIdx.x;
        if (v >= n_vectors) continue;
        const float2 w0 = elem2_to_float2(bits_elem2(weight[i].x)), w1 = elem2_to_float2(bits_elem2(weight[i].y));
        const uint2 pairs = make_uint2(elem2_bits(floats_to_elem2(value[i].x * r * w0.x, value[i].y * r * w0.y)),
                                       elem2_bits(floats_to_elem2(value[i].z * r * w1.x, value[i].w * r * w1.y)));
        if (p.x_tile_rows == 0) {
            *reinterpret_cast<uint2*>(p.x + static_cast<int64_t>(blockIdx.x) * p.x_stride + 4 * v) = pairs;
        } else {
            *reinterpret_cast<uint32_t*>(p.x + activation_at(blockIdx.x, 4 * v, 0, p.x_tile_rows)) = pairs.x;
            *reinterpret_cast<uint32_t*>(p.x + activation_at(blockIdx.x, 4 * v + 2, 0, p.x_tile_rows)) = pairs.y;
        }
    }
}
