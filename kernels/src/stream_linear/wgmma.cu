// y[m][n] = sum_k x[m][k] W[n][k]   for many rows: batches of 17 and more, prompts.
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
#include "ring.cuh"
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
    NextMatrix next;
};

template <class B>
DEVICE void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(B::WARPS * 32) : "memory"); }

// Where the rings and their barriers lie in shared memory:
//   x [x_stages][N][128]   weights [w_stages][TILES][CHUNK_BYTES]
//   scales [S_SLOTS][TILES][SCALE_CHUNKS][SCALE_BYTES]   barriers [2 * (x_stages + w_stages) + S_SLOTS] u64
// The barriers of the weights count the bytes of the scales as well, so scales have no full barriers.
template <class F, class B>
struct Rings {
    static constexpr int C = SCALE_CHUNKS<F>;
    static constexpr int X_STAGE = B::N * X_K * 2, W_STAGE = B::TILES * CHUNK_BYTES, S_SLOT = B::TILES * C * F::SCALE_BYTES;
    uint8_t *x, *w, *s;
    uint32_t x_full, x_empty, w_full, w_empty, s_empty;

    DEVICE Rings(const WgmmaLinearParams& p, uint8_t* smem) {
        x = smem;
        w = x + p.x_stages * X_STAGE;
        s = w + p.w_stages * W_STAGE;
        x_full = shared_address(s + B::S_SLOTS * S_SLOT), x_empty = barrier_of(x_full, p.x_stages);
        w_full = barrier_of(x_empty, p.x_stages), w_empty = barrier_of(w_full, p.w_stages);
        s_empty = barrier_of(w_empty, p.w_stages);
    }
    // By one thread. Every warp that multiplies arrives when it has read a stage.
    DEVICE void init(const WgmmaLinearParams& p) const {
        init_barriers(x_full, p.x_stages, 1), init_barriers(x_empty, p.x_stages, B::WARPS);
        init_barriers(w_full, p.w_stages, 1), init_barriers(w_empty, p.w_stages, B::WARPS);
        init_barriers(s_empty, B::S_SLOTS, B::WARPS);
        barrier_init_fence();
    }
};

// One warp: loads chunks of weights into the ring. It starts before the previous kernel has ended.
template <class F, class B>
DEVICE void load_weights(const WgmmaLinearParams& p, const Schedule& schedule, int n_row_tiles, const Rings<F, B>& rings) {
    constexpr int C = SCALE_CHUNKS<F>;
    const int lane = threadIdx.x & 31;
    const uint64_t policy = evict_first_policy();
    RingPlace place(RingPlace::WRITER), slot(RingPlace::WRITER);
    schedule.each([&](int work, int chunk, int end) {
        const int tile = work / n_row_tiles * B::TILES;
        const int tiles = min(B::TILES, p.n_tiles - tile);
        const int64_t row = static_cast<int64_t>(tile + lane) * p.n_chunks;
        for (bool is_first = true; chunk < end; chunk++, is_first = false) {
            const uint32_t full = barrier_of(rings.w_full, place.stage);
            // With the first chunk of a group, it loads the scales of all chunks of the group.
            const bool with_scales = F::SCALE_BYTES > 0 && (is_first || chunk % C == 0);
            const int scale_bytes = with_scales ? (min(C - chunk % C, p.n_chunks - chunk)) * F::SCALE_BYTES : 0;
            barrier_wait(barrier_of(rings.w_empty, place.stage), place.parity);
            if (with_scales) barrier_wait(barrier_of(rings.s_empty, slot.stage), slot.parity);
            if (lane == 0) barrier_expect(full, tiles * (CHUNK_BYTES + scale_bytes));
            __syncwarp();
            if (lane < tiles) {
                const uint32_t to = shared_address(rings.w + (place.stage * B::TILES + lane) * CHUNK_BYTES);
                const uint8_t* from = p.weights + (row + chunk) * CHUNK_BYTES;
                if (n_row_tiles == 1) bulk_copy(to, from, CHUNK_BYTES, full, policy);
                else bulk_copy(to, from, CHUNK_BYTES, full);
                if (with_scales)
                    bulk_copy(shared_address(rings.s + ((slot.stage * B::TILES + lane) * C + chunk % C) * F::SCALE_BYTES),
                              p.scales + (row + chunk) * F::SCALE_BYTES, scale_bytes, full);
            }
            place.step(p.w_stages);
            if (with_scales) slot.step(B::S_SLOTS);
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
DEVICE void load_x(const WgmmaLinearParams& p, const Schedule& schedule, int n_row_tiles, const Rings<F, B>& rings) {
    constexpr int X_STAGE = Rings<F, B>::X_STAGE, X_STEPS = F::K / X_K;
    wait_for_previous();
    if ((threadIdx.x & 31) != 0) return;
    RingPlace place(RingPlace::WRITER);
    schedule.each([&](int work, int chunk, int end) {
        const elem* x = p.x + static_cast<int64_t>(work % n_row_tiles) * B::N * X_K;
        for (int step = chunk * X_STEPS; step < end * X_STEPS; step++) {
            const uint32_t full = barrier_of(rings.x_full, place.stage);
            barrier_wait(barrier_of(rings.x_empty, place.stage), place.parity);
            barrier_expect(full, X_STAGE);
            bulk_copy(shared_address(rings.x + place.stage * X_STAGE), x + static_cast<int64_t>(step) * p.x_rows * X_K, X_STAGE,
                      full);
            place.step(p.x_stages);
        }
    });
}

// A thread's sums: T tiles of 16 columns by groups of eight rows.
template <class B>
using Sums = float[B::WARP_TILES][B::N / 8][4];

// Where a warp that multiplies is in the rings.
struct ConsumerPlaces {
    RingPlace w{RingPlace::READER}, x{RingPlace::READER};
    int slot = 0;
};

// Adds the products of one chunk: dequantises 32 k of weights while the products of the previous 32 k run.
// `running_x`: the x stage that the products still running read, -1 if none.
template <class F, class B>
DEVICE void multiply_chunk(Sums<B>& acc, const WgmmaLinearParams& p, const Rings<F, B>& rings, ConsumerPlaces& at, int chunk,
                           int& running_x) {
    using R = Rings<F, B>;
    constexpr int T = B::WARP_TILES, C = SCALE_CHUNKS<F>;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const uint8_t* data = rings.w + at.w.stage * R::W_STAGE + warp * T * CHUNK_BYTES;
    const uint8_t* scales = rings.s + at.slot * R::S_SLOT + (warp * T * C + chunk % C) * F::SCALE_BYTES;
    uint4 words[T];
    GroupScale group[T];
    uint32_t a[2][T][2][4];  // [which 32 k mod 2][tile][product]
    uint64_t x_operand;
    unrolled<0, F::PAIRS>([&]<int P>() {
#pragma unroll
        for (int t = 0; t < T; t++)
            F::template dequantised<P>(data + t * CHUNK_BYTES, scales + t * C * F::SCALE_BYTES, lane, words[t], group[t],
                                       a[P % 2][t]);
        if constexpr (P % 2 == 0) {
            barrier_wait(barrier_of(rings.x_full, at.x.stage), at.x.parity);
            x_operand = wgmma_operand(shared_address(rings.x + at.x.stage * R::X_STAGE));
        }
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int t = 0; t < T; t++) wgmma(acc[t], a[P % 2][t][i], x_operand + (P % 2 * 2 + i) * 2);
        wgmma_commit();
        wgmma_wait<1>();
        if constexpr (P % 2 == 0) {
            if (running_x >= 0 && lane == 0) barrier_arrive(barrier_of(rings.x_empty, running_x));
            running_x = at.x.stage;
            at.x.step(p.x_stages);
        }
    });
}

// The products of a run of chunks of one tile.
template <class F, class B>
DEVICE void multiply(Sums<B>& acc, const WgmmaLinearParams& p, const Rings<F, B>& rings, ConsumerPlaces& at, int chunk,
                     int end) {
    constexpr int C = SCALE_CHUNKS<F>;
    const int lane = threadIdx.x & 31;
    int running_x = -1;
    for (; chunk < end; chunk++) {
        barrier_wait(barrier_of(rings.w_full, at.w.stage), at.w.parity);
        multiply_chunk<F, B>(acc, p, rings, at, chunk, running_x);
        __syncwarp();
        if (lane == 0) barrier_arrive(barrier_of(rings.w_empty, at.w.stage));
        if (F::SCALE_BYTES > 0 && (chunk % C == C - 1 || chunk + 1 == end)) {
            if (lane == 0) barrier_arrive(barrier_of(rings.s_empty, at.slot));
            if (++at.slot == B::S_SLOTS) at.slot = 0;
        }
        at.w.step(p.w_stages);
    }
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(barrier_of(rings.x_empty, running_x));
}

// Writes this block's part of a shared tile to memory, for `add_parts`.
template <class B>
DEVICE void publish_part(const WgmmaLinearParams& p, const Schedule& schedule, int work, const Sums<B>& acc) {
    const SharedTile shared(schedule, work);
    write_part<B::WARPS * 32>(shared.part_of(schedule, p.parts, B::PART, blockIdx.x), acc);
    consumers_sync<B>();
    if (threadIdx.x == 0) add_release(p.tickets + 2 * (work - schedule.whole_tiles), 1);
}

// A shared tile, when the other blocks' parts are in memory as well, or nearly: each block adds up its share of
// the rows. All blocks of the grid must be on the GPU at the same time.
template <class B, Epilogue E>
DEVICE void add_parts(const WgmmaLinearParams& p, const Schedule& schedule, int work, const Place& at) {
    constexpr int N = B::N, T = B::WARP_TILES;
    const SharedTile shared(schedule, work);
    int32_t* tickets = p.tickets + 2 * (work - schedule.whole_tiles);
    const int rank = blockIdx.x - shared.first_block;
    const int r0 = N / 8 * rank / shared.n_blocks, r1 = N / 8 * (rank + 1) / shared.n_blocks;
    if (threadIdx.x == 0) wait_for_blocks(tickets, shared.n_blocks);
    consumers_sync<B>();
    for (int r = r0; r < r1; r++) {
        constexpr int AT_ONCE = 8 / T;
        float before[T][4];
        load_rows<E>(p, before, at, r);
        float4 v[T] = {};
        for (int b0 = 0; b0 < shared.n_blocks; b0 += AT_ONCE) {
            float4 part[AT_ONCE][T];
#pragma unroll
            for (int b = 0; b < AT_ONCE; b++)
#pragma unroll
                for (int t = 0; t < T; t++)
                    part[b][t] = b0 + b < shared.n_blocks
                                     ? __ldcg(shared.part_of(schedule, p.parts, B::PART, shared.first_block + b0 + b) +
                                              (t * (N / 8) + r) * (B::WARPS * 32))
                                     : float4{};
#pragma unroll
            for (int b = 0; b < AT_ONCE; b++)
#pragma unroll
                for (int t = 0; t < T; t++)
                    v[t].x += part[b][t].x, v[t].y += part[b][t].y, v[t].z += part[b][t].z, v[t].w += part[b][t].w;
        }
        store_rows<E>(p, v, before, at, r);
    }
    // The last block resets the tickets.
    if (threadIdx.x == 0 && atomicAdd(tickets + 1, 1) == shared.n_blocks - 1) tickets[0] = tickets[1] = 0;
}

template <class F, class B, Epilogue E>
DEVICE void wgmma_linear(const WgmmaLinearParams& p) {
    extern __shared__ __align__(1024) uint8_t smem[];
    constexpr int N = B::N;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Rings<F, B> rings(p, smem);
    if (threadIdx.x == 0) rings.init(p);
    const int n_row_tiles = (p.m + N - 1) / N;
    const Schedule schedule((p.n_tiles + B::TILES - 1) / B::TILES * n_row_tiles, p.n_chunks);
    launch_dependents();
    __syncthreads();

    if (warp >= B::WARPS) {
        release_registers<B::PRODUCER_REGISTERS>();
        if (warp == B::WARPS) {
            load_weights(p, schedule, n_row_tiles, rings);
            prefetch(p.next);
        }
        if (warp == B::WARPS + 1) load_x(p, schedule, n_row_tiles, rings);
        return;
    }
    claim_registers<B::CONSUMER_REGISTERS>();

    auto place_of = [&](int work) {
        return Place{work % n_row_tiles * N, work / n_row_tiles * B::TILES + warp * B::WARP_TILES, lane >> 2, lane & 3};
    };
    int pending[2] = {-1, -1};  // shared tiles whose parts are still to be added up
    ConsumerPlaces at;
    schedule.each([&](int work, int chunk, int end) {
        const bool is_shared = end - chunk < p.n_chunks;
        Sums<B> acc = {};
        multiply<F, B>(acc, p, rings, at, chunk, end);
        wait_for_previous();
        if (is_shared) {
            publish_part<B>(p, schedule, work, acc);
            (pending[0] < 0 ? pending[0] : pending[1]) = work;
            return;
        }
        constexpr int AT_ONCE = N % 16 == 0 ? 2 : 3;
#pragma unroll
        for (int r0 = 0; r0 < N / 8; r0 += AT_ONCE) write_rows<E, AT_ONCE>(p, acc, place_of(work), r0);
    });
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (pending[i] < 0) break;
        add_parts<B, E>(p, schedule, pending[i], place_of(pending[i]));
    }
}

// Measured on an H100: see NOTES.md; wgmma.rs has the host's copy. Gate and up are in one warp, so SiLU
// needs two tiles per warp.
template <int N, bool IS_SILU>
using BlockFor = Block<N, N == 128 ? 2 : IS_SILU ? 3 : 4, N == 128 || IS_SILU ? 2 : 1>;

#define WGMMA_LINEAR(name, format, rows, epilogue)                                                          \
    extern "C" __global__ void __launch_bounds__(BlockFor<rows, Epilogue::epilogue == Epilogue::SiluMul>::THREADS, 1) \
        name##_##rows(const __grid_constant__ WgmmaLinearParams p) {                                        \
        wgmma_linear<format, BlockFor<rows, Epilogue::epilogue == Epilogue::SiluMul>, Epilogue::epilogue>(p);          \
    }
#define WGMMA_LINEAR_ROWS(name, format, epilogue) \
    WGMMA_LINEAR(name, format, 24, epilogue)      \
    WGMMA_LINEAR(name, format, 32, epilogue)      \
    WGMMA_LINEAR(name, format, 64, epilogue)      \
    WGMMA_LINEAR(name, format, 128, epilogue)
#define WGMMA_LINEAR_FORMAT(prefix, format)                       \
    WGMMA_LINEAR_ROWS(prefix##_store, format, Store)              \
    WGMMA_LINEAR_ROWS(prefix##_add_residual, format, AddResidual) \
    WGMMA_LINEAR_ROWS(prefix##_silu_mul, format, SiluMul)         \
    WGMMA_LINEAR_ROWS(prefix##_store_f32, format, StoreF32)

#ifndef ONLY_G128
WGMMA_LINEAR_FORMAT(wgmma_awq_g64, AwqFormat<2>)
WGMMA_LINEAR_FORMAT(wgmma_awq_g32, AwqFormat<4>)
WGMMA_LINEAR_FORMAT(wgmma_half, HalfFormat)
#endif
WGMMA_LINEAR_FORMAT(wgmma_awq_g128, AwqFormat<1>)
