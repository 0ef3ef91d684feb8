// y[m][n] = sum_k x[m][k] W[n][k]   for many rows: batches of 9 and more, prompts.
//
// Weights are packed as for stream_linear.cu. Bulk copies read them, and warps dequantise them into the
// registers that are the A operand of the warpgroup's matrix instruction. x is the B operand, in shared
// memory. The kernel that writes x tiles it (tiled.cuh), so that 64 k of N rows are one bulk copy.
//   * Two to four warpgroups multiply 64 or 128 columns each (gate and up for SiLU) with N rows; the
//     products of one 32 k run while the weights of the next are dequantised.
//   * One warp loads weights and another loads x, each as far ahead as its ring allows. When all weights are
//     loaded, the first prefetches into the L2 what this block reads first of the next matrix, so that the
//     memory is busy while sums are added up and other kernels run.
//   * A tile of work is some 256 columns x N rows. Blocks take whole tiles in waves, rows before columns, so
//     that weights are still in the L2 when the next rows need them. The tiles of the last, incomplete wave
//     are cut along k into equal runs, one per block. The blocks of such a tile wait for each other's sums
//     and add them up in block order, each for a share of the rows: the same bits in every run.
//
// Bytes: W once from memory, and once from the L2 for every N rows; x from the L2 for every tile of
// columns; parts of shared tiles. FLOPs: 2 m n k.
// Grid: one block of 384 to 640 threads per SM. Shared memory: sized by the host (wgmma.rs).
// Architectures: sm_90a. Elements: f16, bf16.
// Cutting work evenly over blocks is stream-K (Osama et al., 2023); weights
// from registers as in Machete (Neural Magic, 2024).
#include "../cuda/wgmma.cuh"
#include "epilogue.cuh"
#include "split_k.cuh"

constexpr int X_K = 64;  // k of an x stage

// The most bytes of a tile's scales in one copy, and the number of chunks that they belong to. A copy of one
// chunk's scales would be too short to use the memory well.
constexpr int SCALE_COPY_BYTES = 320;
template <class F>
constexpr int SCALE_CHUNKS = F::SCALE_BYTES == 0 ? 1 : SCALE_COPY_BYTES / F::SCALE_BYTES;

// A block: the warpgroups that multiply, and one more, of which two warps load data and two exit at once.
template <int N_, int GROUPS_, int TILES_>
struct Block {
    static constexpr int N = N_;                       // rows of a tile of work
    static constexpr int WARP_TILES = TILES_;          // of 16 columns
    static constexpr int WARPS = GROUPS_ * 4;
    static constexpr int TILES = WARPS * WARP_TILES;   // of 16 columns in a tile of work
    static constexpr int THREADS = WARPS * 32 + 128;
    static constexpr int S_SLOTS = 3;                  // of groups of chunks' scales
    static constexpr int PART = WARP_TILES * N / 8 * WARPS * 32;  // float4 of a part
    // Registers of a thread after the warpgroups have exchanged some; the total is that of the launch.
    static constexpr int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8;
    static constexpr int PRODUCER_REGISTERS = 40;
    static constexpr int CONSUMER_REGISTERS = (LAUNCH_REGISTERS * THREADS - PRODUCER_REGISTERS * 128) / (WARPS * 32) / 8 * 8;
};

// The matrix that the next such launch reads.
struct NextMatrix {
    const uint8_t* weights;  // null: no next matrix is known
    const uint8_t* scales;
    int32_t n_tiles, n_chunks;
    int32_t block_tiles;     // tiles of 16 columns in a tile of work
    int32_t scale_bytes;     // of a chunk
    int32_t wanted_chunks;   // of a block's first tiles
    int32_t padding;
};

struct WgmmaLinearParams {
    const uint8_t* weights;  // [n_tiles][n_chunks][CHUNK_BYTES]
    const uint8_t* scales;   // [n_tiles][n_chunks][SCALE_BYTES]
    const elem* x;           // tiled, x_rows rows; columns from k to n_chunks * K are zero
    void* out;               // by epilogue
    const elem* bias;        // [n] or null
    float4* parts;           // [blocks][2][N / 4][256]
    int32_t* tickets;        // [tiles that are cut][2], zero before and after
    int32_t m, x_rows;
    int32_t n, n_tiles, n_chunks;
    int32_t out_tile_rows;   // of a tiled SiLU output; 0 for plain rows
    int32_t w_stages, x_stages;
    int32_t epilogue, padding;
    NextMatrix next;
};

template <class B>
DEVICE void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(B::WARPS * 32) : "memory"); }

// One warp: loads chunks of weights into the ring. It starts before the previous kernel has ended.
template <class F, class B>
DEVICE void load_weights(const WgmmaLinearParams& p, const Schedule& schedule, int n_row_tiles, uint8_t* w_ring,
                          uint8_t* s_ring, uint32_t w_full, uint32_t w_empty, uint32_t s_empty) {
    constexpr int C = SCALE_CHUNKS<F>;
    const int lane = threadIdx.x & 31;
    const uint64_t policy = evict_first_policy();
    int stage = 0, parity = 1, slot = 0, slot_parity = 1;
    schedule.each([&](int work, int chunk, int end) {
        const int tile = work / n_row_tiles * B::TILES;
        const int tiles = min(B::TILES, p.n_tiles - tile);
        const int64_t row = static_cast<int64_t>(tile + lane) * p.n_chunks;
        for (bool is_first = true; chunk < end; chunk++, is_first = false) {
            const uint32_t full = w_full + stage * 8;
            // With the first chunk of a group, it loads the scales of all chunks of the group.
            const bool with_scales = F::SCALE_BYTES > 0 && (is_first || chunk % C == 0);
            const int scale_bytes = with_scales ? (min(C - chunk % C, p.n_chunks - chunk)) * F::SCALE_BYTES : 0;
            barrier_wait(w_empty + stage * 8, parity);
            if (with_scales) barrier_wait(s_empty + slot * 8, slot_parity);
            if (lane == 0) barrier_expect(full, tiles * (CHUNK_BYTES + scale_bytes));
            __syncwarp();
            if (lane < tiles) {
                const uint32_t to = shared_address(w_ring + (stage * B::TILES + lane) * CHUNK_BYTES);
                const uint8_t* from = p.weights + (row + chunk) * CHUNK_BYTES;
                if (n_row_tiles == 1) bulk_copy(to, from, CHUNK_BYTES, full, policy);
                else bulk_copy(to, from, CHUNK_BYTES, full);
                if (with_scales)
                    bulk_copy(shared_address(s_ring + ((slot * B::TILES + lane) * C + chunk % C) * F::SCALE_BYTES),
                              p.scales + (row + chunk) * F::SCALE_BYTES, scale_bytes, full);
            }
            if (++stage == p.w_stages) stage = 0, parity ^= 1;
            if (with_scales && ++slot == B::S_SLOTS) slot = 0, slot_parity ^= 1;
        }
    });
}

// One warp: prefetches into the L2 the first chunks that this block reads of the next matrix.
DEVICE void prefetch(const NextMatrix& next) {
    if (next.weights == nullptr) return;
    const int lane = threadIdx.x & 31;
    const Schedule schedule((next.n_tiles + next.block_tiles - 1) / next.block_tiles, next.n_chunks);
    int left = next.wanted_chunks;
    schedule.each([&](int work, int chunk, int end) {
        const int n = min(left, end - chunk), tile = work * next.block_tiles + lane;
        left -= n;
        if (n <= 0 || lane >= next.block_tiles || tile >= next.n_tiles) return;
        const int64_t first = static_cast<int64_t>(tile) * next.n_chunks + chunk;
        bulk_prefetch(next.weights + first * CHUNK_BYTES, n * CHUNK_BYTES);
        if (next.scale_bytes > 0) bulk_prefetch(next.scales + first * next.scale_bytes, n * next.scale_bytes);
    });
}

// One warp: loads pieces of x into the ring, after the previous kernel has written it.
template <class F, class B>
DEVICE void load_x(const WgmmaLinearParams& p, const Schedule& schedule, int n_row_tiles, uint8_t* x_ring, uint32_t x_full,
                    uint32_t x_empty) {
    constexpr int X_STAGE = B::N * X_K * 2, X_STEPS = F::K / X_K;
    wait_for_previous();
    if ((threadIdx.x & 31) != 0) return;
    int stage = 0, parity = 1;
    schedule.each([&](int work, int chunk, int end) {
        const elem* x = p.x + static_cast<int64_t>(work % n_row_tiles) * B::N * X_K;
        for (int step = chunk * X_STEPS; step < end * X_STEPS; step++) {
            const uint32_t full = x_full + stage * 8;
            barrier_wait(x_empty + stage * 8, parity);
            barrier_expect(full, X_STAGE);
            bulk_copy(shared_address(x_ring + stage * X_STAGE), x + static_cast<int64_t>(step) * p.x_rows * X_K, X_STAGE, full);
            if (++stage == p.x_stages) stage = 0, parity ^= 1;
        }
    });
}

// In phases, with the rings in a structure, this function was 1 to 2 % slower (NOTES.md).
//
// Shared memory: x [x_stages][N][128]   weights [w_stages][TILES][CHUNK_BYTES]
//   scales [S_SLOTS][TILES][SCALE_CHUNKS][SCALE_BYTES]   barriers [2 * (x_stages + w_stages) + S_SLOTS] u64
template <class F, class B, Output O>
DEVICE void wgmma_linear(const WgmmaLinearParams& p) {
    extern __shared__ __align__(1024) uint8_t smem[];
    constexpr int N = B::N, T = B::WARP_TILES;
    constexpr int C = SCALE_CHUNKS<F>;
    constexpr int X_STAGE = N * X_K * 2, W_STAGE = B::TILES * CHUNK_BYTES, S_SLOT = B::TILES * C * F::SCALE_BYTES;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;

    uint8_t* x_ring = smem;
    uint8_t* w_ring = x_ring + p.x_stages * X_STAGE;
    uint8_t* s_ring = w_ring + p.w_stages * W_STAGE;
    const uint32_t x_full = shared_address(s_ring + B::S_SLOTS * S_SLOT), x_empty = x_full + p.x_stages * 8;
    const uint32_t w_full = x_empty + p.x_stages * 8, w_empty = w_full + p.w_stages * 8;
    const uint32_t s_empty = w_empty + p.w_stages * 8;
    if (threadIdx.x == 0) {
        for (int s = 0; s < p.x_stages; s++) barrier_init(x_full + s * 8, 1), barrier_init(x_empty + s * 8, B::WARPS);
        for (int s = 0; s < p.w_stages; s++) barrier_init(w_full + s * 8, 1), barrier_init(w_empty + s * 8, B::WARPS);
        for (int s = 0; s < B::S_SLOTS; s++) barrier_init(s_empty + s * 8, B::WARPS);
        barrier_init_fence();
    }
    const int n_row_tiles = (p.m + N - 1) / N;
    const Schedule schedule((p.n_tiles + B::TILES - 1) / B::TILES * n_row_tiles, p.n_chunks);
    launch_dependents();
    __syncthreads();

    if (warp >= B::WARPS) {
        release_registers<B::PRODUCER_REGISTERS>();
        if (warp == B::WARPS) {
            load_weights<F, B>(p, schedule, n_row_tiles, w_ring, s_ring, w_full, w_empty, s_empty);
            prefetch(p.next);
        }
        if (warp == B::WARPS + 1) load_x<F, B>(p, schedule, n_row_tiles, x_ring, x_full, x_empty);
        return;
    }
    claim_registers<B::CONSUMER_REGISTERS>();

    auto place_of = [&](int work) {
        return Place{work % n_row_tiles * N, work / n_row_tiles * B::TILES + warp * T, lane >> 2, lane & 3};
    };
    auto part_of = [&](const SharedTile& shared, int block) {
        // A block's run begins in the tile (its second part) or before it (its first part).
        const bool begins_here = schedule.units * block / schedule.blocks >= shared.start;
        return p.parts + (static_cast<int64_t>(block) * 2 + begins_here) * B::PART + threadIdx.x;
    };
    int pending[2] = {-1, -1};  // shared tiles whose parts are still to be added up
    int w_stage = 0, w_parity = 0, x_stage = 0, x_parity = 0, slot = 0;
    schedule.each([&](int work, int chunk, int end) {
        const bool is_shared = end - chunk < p.n_chunks;
        float acc[T][N / 8][4] = {};
        int running_x = -1;  // the x stage that the products still running read
        for (; chunk < end; chunk++) {
            barrier_wait(w_full + w_stage * 8, w_parity);
            const uint8_t* data = w_ring + w_stage * W_STAGE + warp * T * CHUNK_BYTES;
            const uint8_t* scales = s_ring + slot * S_SLOT + (warp * T * C + chunk % C) * F::SCALE_BYTES;
            uint4 words[T];
            typename F::Group group[T];
            uint32_t a[2][T][2][4];  // [which 32 k mod 2][tile][product]
            uint64_t x_operand;
            unrolled<0, F::PAIRS>([&]<int P>() {
#pragma unroll
                for (int t = 0; t < T; t++)
                    F::template dequantised<P>(data + t * CHUNK_BYTES, scales + t * C * F::SCALE_BYTES, lane, words[t], group[t],
                                               a[P % 2][t]);
                if constexpr (P % 2 == 0) {
                    barrier_wait(x_full + x_stage * 8, x_parity);
                    x_operand = wgmma_operand(shared_address(x_ring + x_stage * X_STAGE));
                }
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int t = 0; t < T; t++) wgmma(acc[t], a[P % 2][t][i], x_operand + (P % 2 * 2 + i) * 2);
                wgmma_commit();
                wgmma_wait<1>();
                if constexpr (P % 2 == 0) {
                    if (running_x >= 0 && lane == 0) barrier_arrive(x_empty + running_x * 8);
                    running_x = x_stage;
                    if (++x_stage == p.x_stages) x_stage = 0, x_parity ^= 1;
                }
            });
            __syncwarp();
            if (lane == 0) barrier_arrive(w_empty + w_stage * 8);
            if (F::SCALE_BYTES > 0 && (chunk % C == C - 1 || chunk + 1 == end)) {
                if (lane == 0) barrier_arrive(s_empty + slot * 8);
                if (++slot == B::S_SLOTS) slot = 0;
            }
            if (++w_stage == p.w_stages) w_stage = 0, w_parity ^= 1;
        }
        wgmma_wait<0>();
        if (lane == 0) barrier_arrive(x_empty + running_x * 8);

        wait_for_previous();
        if (is_shared) {
            const SharedTile shared(schedule, work);
            float4* mine = part_of(shared, blockIdx.x);
#pragma unroll
            for (int t = 0; t < T; t++)
#pragma unroll
                for (int r = 0; r < N / 8; r++)
                    __stcg(mine + (t * (N / 8) + r) * (B::WARPS * 32), make_float4(acc[t][r][0], acc[t][r][1], acc[t][r][2], acc[t][r][3]));
            consumers_sync<B>();
            if (threadIdx.x == 0) add_release(p.tickets + 2 * (work - schedule.whole_tiles), 1);
            (pending[0] < 0 ? pending[0] : pending[1]) = work;
            return;
        }
        const Writer<O, T, WgmmaLinearParams> writer(p, place_of(work));
        constexpr int AT_ONCE = N % 16 == 0 ? 2 : 3;
#pragma unroll
        for (int r0 = 0; r0 < N / 8; r0 += AT_ONCE) write_rows<AT_ONCE>(writer, acc, r0);
    });

    // Shared tiles, when the other blocks' parts are in memory as well, or nearly: each block adds up its share
    // of the rows. All blocks of the grid must be on the GPU at the same time.
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int work = pending[i];
        if (work < 0) break;
        const SharedTile shared(schedule, work);
        int32_t* tickets = p.tickets + 2 * (work - schedule.whole_tiles);
        const int rank = blockIdx.x - shared.first_block;
        const int r0 = N / 8 * rank / shared.n_blocks, r1 = N / 8 * (rank + 1) / shared.n_blocks;
        if (threadIdx.x == 0) wait_for_blocks(tickets, shared.n_blocks);
        consumers_sync<B>();
        const Writer<O, T, WgmmaLinearParams> writer(p, place_of(work));
        for (int r = r0; r < r1; r++) {
            constexpr int AT_ONCE = 8 / T;
            float before[T][4];
            writer.load(before, r);
            float4 v[T] = {};
            for (int b0 = 0; b0 < shared.n_blocks; b0 += AT_ONCE) {
                float4 w[AT_ONCE][T];
#pragma unroll
                for (int b = 0; b < AT_ONCE; b++)
#pragma unroll
                    for (int t = 0; t < T; t++)
                        w[b][t] = b0 + b < shared.n_blocks
                                      ? __ldcg(part_of(shared, shared.first_block + b0 + b) + (t * (N / 8) + r) * (B::WARPS * 32))
                                      : float4{};
#pragma unroll
                for (int b = 0; b < AT_ONCE; b++)
#pragma unroll
                    for (int t = 0; t < T; t++)
                        v[t].x += w[b][t].x, v[t].y += w[b][t].y, v[t].z += w[b][t].z, v[t].w += w[b][t].w;
            }
            writer.store(v, before, r);
        }
        // The last block resets the tickets.
        if (threadIdx.x == 0 && atomicAdd(tickets + 1, 1) == shared.n_blocks - 1) tickets[0] = tickets[1] = 0;
    }
}

// Measured on an H100: see NOTES.md; wgmma.rs has the host's copy. Gate and up are in one warp, so SiLU
// needs two tiles per warp.
template <int N, bool IS_SILU>
using BlockFor = Block<N, N == 128 ? 2 : IS_SILU ? 3 : 4, N == 128 || IS_SILU ? 2 : 1>;

#define WGMMA_LINEAR(name, format, rows, output)                                                                \
    extern "C" __global__ void __launch_bounds__(BlockFor<rows, Output::output == Output::SiluMul>::THREADS, 1) \
        name##_##rows(const __grid_constant__ WgmmaLinearParams p) {                                            \
        wgmma_linear<format, BlockFor<rows, Output::output == Output::SiluMul>, Output::output>(p);             \
    }
#define WGMMA_LINEAR_ROWS(name, format, output) \
    WGMMA_LINEAR(name, format, 24, output)      \
    WGMMA_LINEAR(name, format, 32, output)      \
    WGMMA_LINEAR(name, format, 64, output)      \
    WGMMA_LINEAR(name, format, 128, output)
#define WGMMA_LINEAR_FORMAT(prefix, format)               \
    WGMMA_LINEAR_ROWS(prefix##_store, format, Elements)   \
    WGMMA_LINEAR_ROWS(prefix##_silu_mul, format, SiluMul) \
    WGMMA_LINEAR_ROWS(prefix##_store_f32, format, Floats)

#ifndef ONLY_G128
WGMMA_LINEAR_FORMAT(wgmma_awq_g64, AwqFormat<2>)
WGMMA_LINEAR_FORMAT(wgmma_awq_g32, AwqFormat<4>)
WGMMA_LINEAR_FORMAT(wgmma_half, HalfFormat)
#endif
WGMMA_LINEAR_FORMAT(wgmma_awq_g128, AwqFormat<1>)
