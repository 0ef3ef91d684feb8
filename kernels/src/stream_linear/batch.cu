// y[m][n] = sum_k x[m][k] W[n][k]   for 17 <= m <= 64: larger decode batches and pieces of prompts.
//
// Weights as for stream_linear.cu. With this many rows the products weigh as much as the bytes, and
// x no longer fits beside the weights, so here
//   * a warp multiplies two tiles (32 columns; gate and up for SiLU) with all rows, and keeps the
//     sums in registers: a fragment of x read from shared memory serves two products;
//   * x comes through a ring of tiles [rows][chunk of k] that the block's warps share; weights come
//     through rings of each warp;
//   * the work, (group of 256 columns) x (chunk of k), is cut into as many equal runs as there are
//     blocks, whatever the shape. A group that several blocks share is summed by the block that
//     comes last, over the parts in block order: the same bits in every run.
//
// Bytes: W once; x from the L2 once a group of columns; parts of shared groups. FLOPs: 2 m n k.
// Grid: one or two blocks of 256 threads an SM. Shared memory: sized by the host (batch.rs).
// Architectures: sm_90, sm_120. Elements: f16, bf16.
// Cutting work evenly over blocks is stream-K (Osama et al., 2023).
#include "packed_weights.cuh"

constexpr int WARPS = 8;
constexpr int GROUP_TILES = 2 * WARPS;

struct BatchLinearParams {
    const uint8_t* weights;  // [n_tiles][n_chunks][2048]
    const uint8_t* scales;   // [n_tiles][n_chunks][SCALE_BYTES]
    const elem* x;           // [m][x_stride]; columns from k to n_chunks * K are zero
    void* out;               // by epilogue
    const elem* bias;        // [n] or null
    float4* parts;           // [blocks][2][4 N][256] float4
    int32_t* tickets;        // [groups], zero before and after
    int32_t m;
    int32_t x_stride;
    int32_t n;
    int32_t n_tiles;
    int32_t n_chunks;
    int32_t w_stages;
    int32_t x_stages;
};

// Shared memory: barriers [2 * x_stages + WARPS * w_stages] u64, to a multiple of 128
//   weights [WARPS][w_stages][2][2048]   scales [WARPS][w_stages][2][SCALE_BYTES]
//   x [x_stages][8 N][K * 2 + 64]
template <class F, int N, Epilogue E>  // N: tiles of 8 rows
DEVICE void batch_linear(const BatchLinearParams& p) {
    extern __shared__ __align__(128) uint8_t smem[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int g = lane >> 2, j = lane & 3;
    constexpr int X_ROW = F::K * 2 + 64, X_TILE = 8 * N * X_ROW;

    const int n_groups = (p.n_tiles + GROUP_TILES - 1) / GROUP_TILES;
    const int64_t units = static_cast<int64_t>(n_groups) * p.n_chunks;
    const int blocks = min(static_cast<int64_t>(gridDim.x), units);
    if (blockIdx.x >= blocks) return;
    const int64_t first = units * blockIdx.x / blocks, last = units * (blockIdx.x + 1) / blocks;

    const uint32_t bars = shared_address(smem);
    const uint32_t x_full = bars, x_empty = bars + p.x_stages * 8;
    const uint32_t w_full = bars + 2 * p.x_stages * 8 + warp * p.w_stages * 8;
    uint8_t* w_rings = smem + (2 * p.x_stages * 8 + WARPS * p.w_stages * 8 + 127) / 128 * 128;
    uint8_t* w_ring = w_rings + warp * p.w_stages * 4096;
    uint8_t* s_rings = w_rings + WARPS * p.w_stages * 4096;
    uint8_t* s_ring = s_rings + warp * p.w_stages * 2 * F::SCALE_BYTES;
    uint8_t* x_ring = s_rings + WARPS * p.w_stages * 2 * F::SCALE_BYTES;

    launch_dependents();

    // Every warp brings its own weights; warp 0 brings x as well. Both run ahead of the products.
    const uint64_t policy = evict_first_policy();
    auto produce_weights = [&](int64_t unit, int stage) {  // lane 0
        const int group = unit / p.n_chunks, chunk = unit % p.n_chunks;
        const int tile = group * GROUP_TILES + warp * 2;
        const int tiles = min(2, p.n_tiles - tile);
        if (tiles <= 0) return;
        const uint32_t bar = w_full + stage * 8;
        barrier_expect(bar, tiles * (2048 + F::SCALE_BYTES));
        for (int t = 0; t < tiles; t++) {
            const int64_t index = static_cast<int64_t>(tile + t) * p.n_chunks + chunk;
            bulk_copy(shared_address(w_ring + (stage * 2 + t) * 2048), p.weights + index * 2048, 2048, bar, policy);
            if constexpr (F::SCALE_BYTES > 0)
                bulk_copy(shared_address(s_ring + (stage * 2 + t) * F::SCALE_BYTES), p.scales + index * F::SCALE_BYTES,
                          F::SCALE_BYTES, bar, policy);
        }
    };
    auto produce_x = [&](int64_t unit, int stage) {  // warp 0
        const uint32_t bar = x_full + stage * 8;
        if (lane == 0) barrier_expect(bar, p.m * F::K * 2);
        __syncwarp();
        const elem* from = p.x + unit % p.n_chunks * F::K;
        for (int row = lane; row < p.m; row += 32)
            bulk_copy(shared_address(x_ring + stage * X_TILE + row * X_ROW), from + static_cast<int64_t>(row) * p.x_stride,
                      F::K * 2, bar);
    };
    if (lane == 0) {
        if (warp == 0)
            for (int s = 0; s < p.x_stages; s++) barrier_init(x_full + s * 8, 1), barrier_init(x_empty + s * 8, WARPS);
        for (int s = 0; s < p.w_stages; s++) barrier_init(w_full + s * 8, 1);
        barrier_init_fence();
        for (int s = 0; s < p.w_stages && first + s < last; s++) produce_weights(first + s, s);
    }
    __syncthreads();

    wait_for_previous();
    if (warp == 0)
        for (int s = 0; s < p.x_stages && first + s < last; s++) produce_x(first + s, s);

    int w_stage = 0, w_parity = 0, x_stage = 0, x_parity = 0;
    for (int64_t segment = first; segment < last;) {
        const int group = segment / p.n_chunks;
        const int64_t group_end = min(last, static_cast<int64_t>(group + 1) * p.n_chunks);
        const int tile = group * GROUP_TILES + warp * 2;
        const bool active = tile < p.n_tiles;
        float acc[2][N][4] = {};
        for (int64_t unit = segment; unit < group_end; unit++) {
            barrier_wait(x_full + x_stage * 8, x_parity);
            if (active) {
                barrier_wait(w_full + w_stage * 8, w_parity);
                const uint8_t* data = w_ring + w_stage * 4096;
                const uint8_t* scales = s_ring + w_stage * 2 * F::SCALE_BYTES;
                const uint8_t* x_at = x_ring + x_stage * X_TILE + g * X_ROW + j * 16;
                uint4 words[2];
                GroupScale group[2];
                unrolled<0, F::PAIRS>([&]<int P>() {
                    uint32_t a[2][2][4];
#pragma unroll
                    for (int t = 0; t < 2; t++)
                        F::template dequantised<P>(data + t * 2048, scales + t * F::SCALE_BYTES, lane, words[t], group[t],
                                                   a[t]);
                    // Four row tiles at a time, all their products of one k before those of the next:
                    // no sum waits for itself.
                    constexpr int R = N < 4 ? N : 4;
#pragma unroll
                    for (int r0 = 0; r0 < N; r0 += R) {
                        uint4 x[R];
#pragma unroll
                        for (int r = 0; r < R; r++)
                            x[r] = *reinterpret_cast<const uint4*>(x_at + (r0 + r) * 8 * X_ROW + P * 64);
#pragma unroll
                        for (int r = 0; r < R; r++)
#pragma unroll
                            for (int t = 0; t < 2; t++) mma_16816(acc[t][r0 + r], a[t][0], x[r].x, x[r].y);
#pragma unroll
                        for (int r = 0; r < R; r++)
#pragma unroll
                            for (int t = 0; t < 2; t++) mma_16816(acc[t][r0 + r], a[t][1], x[r].z, x[r].w);
                    }
                });
            }
            __syncwarp();
            if (lane == 0) {
                barrier_arrive(x_empty + x_stage * 8);
                if (unit + p.w_stages < last) produce_weights(unit + p.w_stages, w_stage);
            }
            if (warp == 0 && unit + p.x_stages < last) {
                barrier_wait(x_empty + x_stage * 8, x_parity);
                produce_x(unit + p.x_stages, x_stage);
            }
            // A warp beyond the last tile had no copy to wait for, so its ring stands still.
            if (active && ++w_stage == p.w_stages) w_stage = 0, w_parity ^= 1;
            if (++x_stage == p.x_stages) x_stage = 0, x_parity ^= 1;
        }

        // Who else works on this group? Blocks are contiguous runs of units.
        const int64_t start = static_cast<int64_t>(group) * p.n_chunks, end = start + p.n_chunks;
        const int block0 = static_cast<int>((blocks * (start + 1) - 1) / units);
        const int block1 = static_cast<int>((blocks * end - 1) / units);
        bool finish = true;
        if (block0 != block1) {
            // A block's run begins in the group (its second part) or before it (its first part).
            auto part_of = [&](int block) {
                const bool begins_here = units * block / blocks >= start;
                return p.parts + (static_cast<int64_t>(block) * 2 + begins_here) * 4 * N * 128;
            };
            float4* mine = part_of(blockIdx.x) + threadIdx.x;
            const float4* sums = reinterpret_cast<const float4*>(acc);
#pragma unroll
            for (int i = 0; i < 2 * N; i++) __stcg(mine + i * 256, sums[i]);
            // The barrier orders the block's parts before thread 0, whose addition releases them all; that
            // of the last block acquires the others'.
            __shared__ bool is_last;
            __syncthreads();
            if (threadIdx.x == 0) {
                is_last = add_acquire_release(p.tickets + group, 1) == block1 - block0;
                if (is_last) p.tickets[group] = 0;
            }
            __syncthreads();
            finish = is_last;
            if (finish) {
#pragma unroll
                for (int t = 0; t < 2; t++)
#pragma unroll
                    for (int r = 0; r < N; r++)
#pragma unroll
                        for (int i = 0; i < 4; i++) acc[t][r][i] = 0.f;
                for (int block = block0; block <= block1; block++) {
                    const float4* part = part_of(block) + threadIdx.x;
#pragma unroll
                    for (int t = 0; t < 2; t++)
#pragma unroll
                        for (int r = 0; r < N; r++) {
                            const float4 v = __ldcg(part + (t * N + r) * 256);
                            acc[t][r][0] += v.x, acc[t][r][1] += v.y, acc[t][r][2] += v.z, acc[t][r][3] += v.w;
                        }
                }
            }
        }
        if (finish && active) {
#pragma unroll
            for (int r = 0; r < N; r++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int row = r * 8 + 2 * j + i % 2, lane_column = g + 8 * (i / 2);
                    if (row >= p.m) continue;
                    if constexpr (E == Epilogue::SiluMul) {
                        const int column = tile / 2 * 16 + lane_column;
                        const float gate = acc[0][r][i];
                        if (column < p.n)
                            static_cast<elem*>(p.out)[static_cast<int64_t>(row) * p.n + column] =
                                float_to_elem(gate / (1.f + __expf(-gate)) * acc[1][r][i]);
                    } else {
#pragma unroll
                        for (int t = 0; t < 2; t++) {
                            const int column = (tile + t) * 16 + lane_column;
                            if (column >= p.n) continue;
                            float y = acc[t][r][i];
                            if (p.bias != nullptr) y += elem_to_float(p.bias[column]);
                            const int64_t at = static_cast<int64_t>(row) * p.n + column;
                            if constexpr (E == Epilogue::AddResidual) {
                                static_cast<float*>(p.out)[at] += y;
                            } else if constexpr (E == Epilogue::StoreF32) {
                                static_cast<float*>(p.out)[at] = y;
                            } else {
                                static_cast<elem*>(p.out)[at] = float_to_elem(y);
                            }
                        }
                    }
                }
        }
        segment = group_end;
    }
}

#define BATCH_LINEAR(name, format, rows, epilogue)                                                \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, rows <= 32 ? 2 : 1) name##_##rows(                    \
        const __grid_constant__ BatchLinearParams p) {                                            \
        batch_linear<format, rows / 8, Epilogue::epilogue>(p);                                    \
    }
#define BATCH_LINEAR_ROWS(name, format, epilogue) \
    BATCH_LINEAR(name, format, 32, epilogue)      \
    BATCH_LINEAR(name, format, 64, epilogue)
#define BATCH_LINEAR_FORMAT(prefix, format)                       \
    BATCH_LINEAR_ROWS(prefix##_store, format, Store)              \
    BATCH_LINEAR_ROWS(prefix##_add_residual, format, AddResidual) \
    BATCH_LINEAR_ROWS(prefix##_silu_mul, format, SiluMul)         \
    BATCH_LINEAR_ROWS(prefix##_store_f32, format, StoreF32)

BATCH_LINEAR_FORMAT(batch_awq_g128, AwqFormat<1>)
BATCH_LINEAR_FORMAT(batch_awq_g64, AwqFormat<2>)
BATCH_LINEAR_FORMAT(batch_awq_g32, AwqFormat<4>)
BATCH_LINEAR_FORMAT(batch_half, HalfFormat)
