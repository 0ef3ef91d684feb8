// y[m][n] = sum_k x[m][k] W[n][k]   for many rows, of any GPU that has `mma.sync` and bulk copies:
// batches of 17 and more, prompts. On sm_90 wgmma.cu does the same faster.
//
// Weights as for stream_linear.cu, dequantised into the registers that are the A operand; x is tiled
// as for wgmma.cu (tiled.cuh), so that 64 k of the rows of a tile of work are one bulk copy, and
// `ldmatrix` reads the B operand without bank conflicts.
//   * Eight warps multiply 32 columns each (gate and up for SiLU) with all rows of a tile of work; a
//     fragment of x serves two products, a fragment of weights as many as there are groups of 8 rows.
//   * Each warp brings its own weights, half a chunk at a time, as far ahead as its ring allows, and
//     in turn with the others x for all, 64 k at a time. A ninth warp that did so would leave each of
//     the others 168 registers; the sums of 128 rows alone are 128.
//   * A tile of work is 256 columns x 16, 32, 64 or 128 rows. Blocks take whole tiles in waves, rows
//     before columns so that weights are met again in the L2. The tiles of the last, incomplete wave
//     are cut along k into equal runs, one a block; the block that comes last adds up a tile's
//     parts, in block order: the same bits in every run. No block waits for another.
//
// Bytes: W once from memory, and once from the L2 for every tile of rows; x from the L2 for every 256
// columns; parts of shared tiles. FLOPs: 2 m n k.
// Grid: one block of 256 threads an SM. Shared memory: sized by the host (mma.rs), at most 99 KiB.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
// Cutting work evenly over blocks is stream-K (Osama et al., 2023).
#include "eight_rows.cuh"
#include "schedule.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
constexpr int WARP_TILES = 2;                    // of 16 columns
constexpr int BLOCK_TILES = WARPS * WARP_TILES;
constexpr int STEP_K = 64;                       // of a tile of x
constexpr int CHUNK_BYTES = 2048;

// How a format's chunks pass through a warp's ring.
template <class F>
struct Stages {
    static constexpr int CHUNK_STEPS = F::K / STEP_K;
    static constexpr int STEPS = CHUNK_STEPS == 1 ? 1 : 2;      // a stage
    static constexpr int PER_CHUNK = CHUNK_STEPS / STEPS;
    static constexpr int STEP_BYTES = CHUNK_BYTES / CHUNK_STEPS;
    static constexpr int BYTES = STEPS * STEP_BYTES;            // of a tile in a stage
};

struct MmaLinearParams {
    const uint8_t* weights;  // [n_tiles][n_chunks][CHUNK_BYTES]
    const uint8_t* scales;   // [n_tiles][n_chunks][SCALE_BYTES]
    const elem* x;           // tiled, x_rows rows; columns from k to n_chunks * K are zero
    void* out;               // by epilogue
    const elem* bias;        // [n] or null
    float4* parts;           // [blocks][2][WARP_TILES * N][THREADS]
    int32_t* tickets;        // [tiles that are cut], zero before and after
    int32_t m, x_rows;
    int32_t n, n_tiles, n_chunks;
    int32_t out_tile_rows;   // of a tiled SiLU output; 0 for plain rows
    int32_t epilogue;
    int32_t w_stages, x_stages;
    int32_t scale_slots;     // chunks' scales that a warp's ring holds
};

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(uint32_t (&d)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}

// Where the nth chunk of a block's whole work lies; false beyond the last.
DEVICE bool locate(const Schedule& schedule, int nth, int& work, int& chunk) {
    const int n_cut = schedule.last - schedule.first;
    if (nth < n_cut) {
        const int unit = schedule.first + nth;
        work = schedule.whole_tiles + unit / schedule.n_chunks, chunk = unit % schedule.n_chunks;
        return true;
    }
    const int wave = (nth - n_cut) / schedule.n_chunks;
    work = blockIdx.x + wave * gridDim.x, chunk = (nth - n_cut) % schedule.n_chunks;
    return work < schedule.whole_tiles;
}

// What a warp brings into shared memory, and where that lies (shared addresses).
template <class F, int N>
struct Rings {
    const MmaLinearParams& p;
    const Schedule& schedule;
    int n_row_tiles, warp;
    uint32_t x, x_full, x_empty;      // of the block
    uint32_t data, scales, w_full;    // of the warp

    // Starts the copies of the warp's weights of stage `i` of the block's whole work. By one lane.
    DEVICE void bring_weights(int i) const {
        using S = Stages<F>;
        const int nth = i / S::PER_CHUNK, part = i % S::PER_CHUNK;
        int work, chunk;
        if (!locate(schedule, nth, work, chunk)) return;
        const int stage = i % p.w_stages;
        const bool with_scales = F::SCALE_BYTES > 0 && part == 0;
        const uint32_t bar = w_full + stage * 8;
        barrier_expect(bar, WARP_TILES * (S::BYTES + (with_scales ? F::SCALE_BYTES : 0)));
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++) {
            // Beyond the last tile the last one again: its products are dropped.
            const int tile = min(work / n_row_tiles * BLOCK_TILES + warp * WARP_TILES + t, p.n_tiles - 1);
            const int64_t index = static_cast<int64_t>(tile) * p.n_chunks + chunk;
            const uint8_t* from = p.weights + index * CHUNK_BYTES + part * S::BYTES;
            const uint32_t to = data + (stage * WARP_TILES + t) * S::BYTES;
            // Other tiles of rows will want these weights again.
            if (n_row_tiles == 1) bulk_copy(to, from, S::BYTES, bar, evict_first_policy());
            else bulk_copy(to, from, S::BYTES, bar);
            if (with_scales)
                bulk_copy(scales + (nth % p.scale_slots * WARP_TILES + t) * F::SCALE_BYTES,
                          p.scales + index * F::SCALE_BYTES, F::SCALE_BYTES, bar);
        }
    }
    // The same for the x of step `i`, for all warps. By one lane of the block.
    DEVICE void bring_x(int i) const {
        constexpr int BYTES = N * 8 * STEP_K * 2, STEPS = Stages<F>::CHUNK_STEPS;
        int work, chunk;
        if (!locate(schedule, i / STEPS, work, chunk)) return;
        const int64_t row = static_cast<int64_t>(chunk * STEPS + i % STEPS) * p.x_rows + work % n_row_tiles * N * 8;
        const int stage = i % p.x_stages;
        barrier_expect(x_full + stage * 8, BYTES);
        bulk_copy(x + stage * BYTES, p.x + row * STEP_K, BYTES, x_full + stage * 8);
    }
};

// 64 k of a warp's columns times all rows. `row_at`: this lane's row and piece of x, for ldmatrix.
template <class F, int N>
DEVICE void multiply_step(float (&acc)[WARP_TILES][N][4], const uint8_t* data, const uint8_t* scales, int step,
                          uint32_t row_at, int lane) {
    uint4 words[WARP_TILES];
    GroupScale group[WARP_TILES];
    unrolled<0, 2>([&]<int P>() {  // 32 k each
        uint32_t a[WARP_TILES][2][4];
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++) {
            if constexpr (F::GROUPS > 0 && (P == 0 || F::GROUPS == 8))
                F::load_group(scales + t * F::SCALE_BYTES, (2 * step + P) * F::GROUPS / 8, lane >> 2, group[t]);
            F::template weights<P>(data + t * Stages<F>::BYTES, lane, words[t], a[t]);
            F::scale_operands(a[t], group[t]);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t at = row_at ^ (P * 4 + i * 2) << 4;
#pragma unroll
            for (int r = 0; r < N; r += 2) {
                uint32_t b[4];
                load_matrices(b, at + r * 8 * STEP_K * 2);
#pragma unroll
                for (int h = 0; h < 2; h++)
#pragma unroll
                    for (int t = 0; t < WARP_TILES; t++) mma_16816(acc[t][r + h], a[t][i], b[2 * h], b[2 * h + 1]);
            }
        }
    });
}

template <Epilogue E, int N>
DEVICE void store_tile(const MmaLinearParams& p, const float (&acc)[WARP_TILES][N][4], int row, int w_tile, int lane) {
    const int g = lane >> 2, j = lane & 3;
    constexpr int AT_ONCE = 2;
#pragma unroll
    for (int r0 = 0; r0 < N; r0 += AT_ONCE) {
        if (row + r0 * 8 >= p.m) return;
        float before[AT_ONCE][WARP_TILES][4];
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++)
#pragma unroll
            for (int t = 0; t < WARP_TILES; t++)
                load_eight_rows<E>(p, before[r][t], row + (r0 + r) * 8, (w_tile + t) * 16, g, j);
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            float4 v[WARP_TILES];
#pragma unroll
            for (int t = 0; t < WARP_TILES; t++) {
                const float(&a)[4] = acc[t][r0 + r];
                v[t] = make_float4(a[0], a[1], a[2], a[3]);
            }
            if constexpr (E == Epilogue::SiluMul) {
                store_eight_rows<E>(p, v[0], v[1], before[r][0], row + (r0 + r) * 8, w_tile / 2 * 16, g, j);
            } else {
#pragma unroll
                for (int t = 0; t < WARP_TILES; t++)
                    store_eight_rows<E>(p, v[t], v[t], before[r][t], row + (r0 + r) * 8, (w_tile + t) * 16, g, j);
            }
        }
    }
}

// Leaves this block's part of a shared tile in memory. True for the block that comes last: then `acc` is
// the sum of all parts, in block order.
template <int N>
DEVICE bool add_parts(const MmaLinearParams& p, const Schedule& schedule, int work, float (&acc)[WARP_TILES][N][4]) {
    const SharedTile shared(schedule, work);
    auto part_of = [&](int block) {
        // A block's run begins in the tile (its second part) or before it (its first part).
        const bool begins_here = schedule.units * block / schedule.blocks >= shared.start;
        return p.parts + (static_cast<int64_t>(block) * 2 + begins_here) * WARP_TILES * N * THREADS + threadIdx.x;
    };
    float4* mine = part_of(blockIdx.x);
#pragma unroll
    for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
        for (int r = 0; r < N; r++)
            __stcg(mine + (t * N + r) * THREADS, make_float4(acc[t][r][0], acc[t][r][1], acc[t][r][2], acc[t][r][3]));
    __syncthreads();
    bool is_last = false;
    if (threadIdx.x == 0) {
        int32_t* ticket = p.tickets + (work - schedule.whole_tiles);
        __threadfence();
        is_last = atomicAdd(ticket, 1) == shared.n_blocks - 1;
        __threadfence();
        if (is_last) *ticket = 0;
    }
    if (!__syncthreads_or(is_last)) return false;
#pragma unroll
    for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
        for (int r = 0; r < N; r++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[t][r][i] = 0.f;
    for (int block = shared.first_block; block < shared.first_block + shared.n_blocks; block++) {
        const float4* part = part_of(block);
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
            for (int r = 0; r < N; r++) {
                const float4 v = __ldcg(part + (t * N + r) * THREADS);
                acc[t][r][0] += v.x, acc[t][r][1] += v.y, acc[t][r][2] += v.z, acc[t][r][3] += v.w;
            }
    }
    return true;
}

// Shared memory: x [x_stages][8 N][128]   weights [WARPS][w_stages][WARP_TILES][Stages::BYTES]
//   scales [WARPS][scale_slots][WARP_TILES][SCALE_BYTES]   barriers [2 * x_stages + WARPS * w_stages] u64
template <class F, int N>  // N: groups of 8 rows
DEVICE void mma_linear(const MmaLinearParams& p) {
    extern __shared__ __align__(128) uint8_t smem[];
    using S = Stages<F>;
    constexpr int X_BYTES = N * 8 * STEP_K * 2;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;

    uint8_t* w_rings = smem + p.x_stages * X_BYTES;
    uint8_t* s_rings = w_rings + WARPS * p.w_stages * WARP_TILES * S::BYTES;
    const uint8_t* w_ring = w_rings + warp * p.w_stages * WARP_TILES * S::BYTES;
    const uint8_t* s_ring = s_rings + warp * p.scale_slots * WARP_TILES * F::SCALE_BYTES;
    const uint32_t x_ring = shared_address(smem);
    const uint32_t x_full = shared_address(s_rings + WARPS * p.scale_slots * WARP_TILES * F::SCALE_BYTES);
    const uint32_t x_empty = x_full + p.x_stages * 8, w_full = x_empty + p.x_stages * 8 + warp * p.w_stages * 8;
    const int n_row_tiles = (p.m + N * 8 - 1) / (N * 8);
    const Schedule schedule((p.n_tiles + BLOCK_TILES - 1) / BLOCK_TILES * n_row_tiles, p.n_chunks);
    const Rings<F, N> rings{p, schedule, n_row_tiles, warp, x_ring, x_full, x_empty,
                            shared_address(w_ring), shared_address(s_ring), w_full};
    launch_dependents();
    if (lane == 0) {
        if (warp == 0)
            for (int s = 0; s < p.x_stages; s++) barrier_init(x_full + s * 8, 1), barrier_init(x_empty + s * 8, WARPS);
        for (int s = 0; s < p.w_stages; s++) barrier_init(w_full + s * 8, 1);
        barrier_init_fence();
        for (int s = 0; s < p.w_stages; s++) rings.bring_weights(s);
    }
    __syncthreads();
    wait_for_previous();
    if (threadIdx.x == 0)
        for (int s = 0; s < p.x_stages; s++) rings.bring_x(s);

    // This lane's row of a pair of 8-row groups and its half of 16 k, with the swizzle (tiled.cuh).
    const uint32_t row_offset = ((lane & 7) + (lane >> 4) * 8) * STEP_K * 2 + (((lane >> 3 & 1) ^ (lane & 7)) << 4);
    int w_stage = 0, w_parity = 0, x_stage = 0, x_parity = 0, slot = 0;
    int n_steps = 0, n_stages = 0;            // of the block's whole work, that are done
    int before_stage = 0, before_parity = 0;  // of x, a step ago
    schedule.each([&](int work, int chunk, int end) {
        const bool is_shared = end - chunk < p.n_chunks;
        float acc[WARP_TILES][N][4] = {};
        for (; chunk < end; chunk++) {
            const uint8_t* scales = s_ring + slot * WARP_TILES * F::SCALE_BYTES;
#pragma unroll 1
            for (int step = 0; step < S::CHUNK_STEPS; step++) {
                if (step % S::STEPS == 0) barrier_wait(w_full + w_stage * 8, w_parity);
                barrier_wait(x_full + x_stage * 8, x_parity);
                const uint8_t* data = w_ring + w_stage * WARP_TILES * S::BYTES + step % S::STEPS * S::STEP_BYTES;
                multiply_step<F, N>(acc, data, scales, step, x_ring + x_stage * X_BYTES + row_offset, lane);
                __syncwarp();
                if (lane == 0) {
                    barrier_arrive(x_empty + x_stage * 8);
                    if (step % S::STEPS == S::STEPS - 1) rings.bring_weights(n_stages + p.w_stages);
                    // What was read a step ago the other warps are through with, or nearly.
                    if (n_steps % WARPS == warp && n_steps > 0) {
                        barrier_wait(x_empty + before_stage * 8, before_parity);
                        rings.bring_x(n_steps - 1 + p.x_stages);
                    }
                }
                __syncwarp();
                n_steps++, before_stage = x_stage, before_parity = x_parity;
                if (++x_stage == p.x_stages) x_stage = 0, x_parity ^= 1;
                if (step % S::STEPS == S::STEPS - 1) {
                    n_stages++;
                    if (++w_stage == p.w_stages) w_stage = 0, w_parity ^= 1;
                }
            }
            if (++slot == p.scale_slots) slot = 0;
        }
        if (is_shared && !add_parts<N>(p, schedule, work, acc)) return;
        const int row = work % n_row_tiles * N * 8;
        const int w_tile = work / n_row_tiles * BLOCK_TILES + warp * WARP_TILES;
        switch (static_cast<Epilogue>(p.epilogue)) {
            case Epilogue::Store: return store_tile<Epilogue::Store, N>(p, acc, row, w_tile, lane);
            case Epilogue::AddResidual: return store_tile<Epilogue::AddResidual, N>(p, acc, row, w_tile, lane);
            case Epilogue::SiluMul: return store_tile<Epilogue::SiluMul, N>(p, acc, row, w_tile, lane);
            case Epilogue::StoreF32: return store_tile<Epilogue::StoreF32, N>(p, acc, row, w_tile, lane);
        }
    });
}

#define MMA_LINEAR(name, format, rows)                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) name##_##rows(          \
        const __grid_constant__ MmaLinearParams p) {                                 \
        mma_linear<format, rows / 8>(p);                                             \
    }
#define MMA_LINEAR_FORMAT(name, format) \
    MMA_LINEAR(name, format, 16)        \
    MMA_LINEAR(name, format, 32)        \
    MMA_LINEAR(name, format, 64)        \
    MMA_LINEAR(name, format, 128)

#ifndef ONLY_G128
MMA_LINEAR_FORMAT(mma_awq_g64, AwqFormat<2>)
MMA_LINEAR_FORMAT(mma_awq_g32, AwqFormat<4>)
MMA_LINEAR_FORMAT(mma_half, HalfFormat)
#endif
MMA_LINEAR_FORMAT(mma_awq_g128, AwqFormat<1>)
