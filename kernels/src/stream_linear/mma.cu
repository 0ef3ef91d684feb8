// y[m][n] = sum_k x[m][k] W[n][k]   for many rows, on any GPU that has `mma.sync`, `cp.async` and
// mbarriers: batches of 9 and more, prompts. On sm_90 wgmma.cu does the same faster.
//
// Weights are packed as for stream_linear.cu and dequantised into the registers that are the A operand. x is
// tiled as for wgmma.cu (tiled.cuh), so that 64 k of the rows of a tile of work are contiguous in memory, and
// `ldmatrix` reads the B operand without bank conflicts.
//   * Eight warps multiply 32 columns each (gate and up for SiLU) with all rows of a tile of work; a
//     fragment of x serves two products, a fragment of weights as many as there are groups of 8 rows.
//   * A stage is 64 k. A lane multiplies exactly the 16-byte words of weights that it loads, so weights
//     go straight into registers, up to four stages ahead. x and scales go through a ring in shared
//     memory, filled by 16-byte copies of all threads.
//   * From 64 rows on, a warp arrives at the barrier in the middle of a stage, for the next one, and a
//     stage is refilled one stage late. So warps may be half a stage apart without waiting for each
//     other: one dequantises while another multiplies.
//   * The stages of a chunk are unrolled, so the compiler knows which of them starts a chunk or a group.
//     Copies have no condition; after the last chunk they copy that chunk again.
//   * A tile of work is 256 columns x 16, 24, 32, 64 or 128 rows. Blocks take whole tiles in waves, rows
//     before columns, so that weights are still in the L2 when the next rows need them. The tiles of the
//     last, incomplete wave are cut along k into equal runs, one per block. The block that finishes last
//     adds up a tile's parts, in block order: the same bits in every run. No block waits for another.
//
// Bytes: W once from memory, and once from the L2 for every tile of rows; x from the L2 for every 256
// columns; parts of shared tiles. FLOPs: 2 m n k.
// Grid: one block of 256 threads per SM; up to 32 rows two, if each has enough to do (mma.rs). Shared
// memory: sized by the host (mma.rs), at most 99 KiB.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
// Cutting work evenly over blocks is stream-K (Osama et al., 2023). Measurements: NOTES.md.
constexpr int WARPS = 8;
#include "mma_block.cuh"

constexpr int PIECE_K = 64;  // of a stage

// Who arrives at the barrier: one lane for its warp, after `__syncwarp`. racecheck does not see that this orders
// the other lanes' copies as well, so in a build with JITTER every lane arrives.
#ifdef JITTER
constexpr int ARRIVING_LANES = 32;
#else
constexpr int ARRIVING_LANES = 1;
#endif

// Sizes of the ring and of the registers, for a format and N groups of 8 rows. mma.rs counts the same bytes.
template <class F, int N>
struct Ring {
    static constexpr int PER_CHUNK = F::K / PIECE_K;        // stages
    static constexpr int W_TILE = CHUNK_BYTES / PER_CHUNK;  // bytes of a stage of a tile
    static constexpr int WORDS = W_TILE / WARP_BYTES;       // of 16 bytes a lane
    // How many stages the loads and copies are ahead of the products. At 64 rows the memory is the limit:
    // 32 KiB per block are in flight. At 128 rows a stage takes longer than a load, and registers are
    // scarce; one stage instead of two was 3 % slower. Up to 32 rows two blocks share an SM, and two stages
    // leave them enough registers. 16-bit weights are four times the words: one block.
    // Weights of 8 bits are twice the words: half as many stages are as much under way, and one block. At 128
    // rows two of their stages spill.
    static constexpr int AHEAD = PER_CHUNK == 1 || (PER_CHUNK == 2 && N == 16) ? 1 : PER_CHUNK == 4 && N == 8 ? 4 : 2;
    static constexpr int BLOCKS_PER_SM = PER_CHUNK == 4 && N <= 4 ? 2 : 1;
    // A stage is refilled one stage late, and warps arrive for a stage half a stage before it: 6 % faster
    // at 128 rows, 4 % at 64. With fewer rows there are few products, and a plain barrier of the block is
    // faster (16 rows: 55 instead of 64 us). 16-bit weights were measured this way only.
    static constexpr bool IS_LATE = N >= 8 || PER_CHUNK == 1;
    // Scales go on the sums of a group of 128 k instead of its weights, where those are more. At 32 rows the
    // second set of sums spills.
    static constexpr bool ON_SUMS = F::SUM_GROUPS > 0 && F::SCALE_K == 128 && N <= 3;
    static constexpr int STAGES = AHEAD + 1 + IS_LATE;
    static constexpr int ROWS = N * 8, X_STAGE = ROWS * X_ROW_BYTES, X_SCALE_BYTES = 0;
    // Scales of the chunk that is multiplied, of one that a late warp may still read, and of those that
    // begin within `AHEAD` stages.
    static constexpr int SLOTS = F::SCALE_BYTES == 0 ? 0 : AHEAD / PER_CHUNK + 2;
    static constexpr int BARRIER = STAGES * X_STAGE + SLOTS * BLOCK_TILES * F::SCALE_BYTES;
    static constexpr int BYTES = BARRIER + 8;
    static_assert(PER_CHUNK % AHEAD == 0 && BYTES <= 99 * 1024);
};

// Loads the scales of the group that products 2P and 2P + 1 of a chunk's piece belong to.
template <class F, class G>
DEVICE void load_groups(G (&group)[WARP_TILES], const uint8_t* scales, int piece, int P) {
    if constexpr (F::GROUPS > 0) {
        const int g = (threadIdx.x & 31) >> 2;
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
            F::load_group(scales + t * F::SCALE_BYTES, (2 * piece + P) * F::GROUPS / F::PAIRS, g, group[t]);
    }
}

template <int N>
DEVICE void clear(float (&sums)[WARP_TILES][N][4]) {
#pragma unroll
    for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
        for (int r = 0; r < N; r++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[t][r][i] = 0.f;
}
// Adds a group's sums times its scales.
template <int N>
DEVICE void add_scaled(float (&acc)[WARP_TILES][N][4], const float (&sums)[WARP_TILES][N][4],
                       const GroupSumScale (&group)[WARP_TILES]) {
#pragma unroll
    for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
        for (int r = 0; r < N; r++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[t][r][i] += group[t].scale[i / 2] * sums[t][r][i];
}

// 32 k of a warp's columns times all rows. `row_at`: this lane's row and half of 16 k, for ldmatrix, which reads
// 16 k of 16 rows. Of 8 rows that are left it reads 32 k: `odd_at` is this lane's row and quarter.
template <int P, int N>
DEVICE void multiply(float (&acc)[WARP_TILES][N][4], const uint32_t (&a)[WARP_TILES][2][4], uint32_t row_at,
                     uint32_t odd_at) {
    if constexpr (N % 2 == 1) {
        uint32_t b[4];
        load_matrices(b, (odd_at ^ P * 4 << 4) + (N - 1) * 8 * X_ROW_BYTES);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int t = 0; t < WARP_TILES; t++) mma_16816(acc[t][N - 1], a[t][i], b[2 * i], b[2 * i + 1]);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t at = row_at ^ (P * 4 + i * 2) << 4;
#pragma unroll
        for (int r = 0; r + 1 < N; r += 2) {
            uint32_t b[4];
            load_matrices(b, at + r * 8 * X_ROW_BYTES);
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int t = 0; t < WARP_TILES; t++) mma_16816(acc[t][r + h], a[t][i], b[2 * h], b[2 * h + 1]);
        }
    }
}

// Shared memory: x [STAGES][8 N][128]   scales [SLOTS][WARPS][WARP_TILES][SCALE_BYTES]   an mbarrier
template <class F, int N>  // N: groups of 8 rows
DEVICE void mma_linear(const MmaLinearParams& p) {
    extern __shared__ __align__(128) uint8_t smem[];
    using R = Ring<F, N>;
    constexpr int S = R::STAGES, AHEAD = R::AHEAD;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (p.shared_bytes != R::BYTES) __trap();  // mma.rs counts other bytes

    const uint8_t* s_ring = smem + S * R::X_STAGE;
    const int n_row_tiles = (p.m + N * 8 - 1) / (N * 8);
    const Places places{shared_address(smem), shared_address(s_ring), 0};
    const Schedule schedule((p.n_tiles + BLOCK_TILES - 1) / BLOCK_TILES * n_row_tiles, p.n_chunks);
    launch_dependents();

    const bool has_work = schedule.first < schedule.last || static_cast<int>(blockIdx.x) < schedule.whole_tiles;
    if (!has_work) return wait_for_previous();

    // Weights first: they do not depend on the previous kernel.
    Feed<F, R> feed(p, schedule);
    Words<R> words[AHEAD];
    {
        Feed<F, R> ahead = feed;
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            if (s % R::PER_CHUNK == 0) ahead.copy_scales(places, ahead.next_chunk(p, schedule, n_row_tiles));
            ahead.load_words(words[s], s % R::PER_CHUNK);
            ahead.step();
        }
    }
    const uint32_t barrier = shared_address(smem + R::BARRIER);
    if constexpr (R::IS_LATE) {
        if (threadIdx.x == 0) barrier_init(barrier, WARPS * ARRIVING_LANES);
        __syncthreads();
    }
    wait_for_previous();
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
        if (s % R::PER_CHUNK == 0) feed.next_chunk(p, schedule, n_row_tiles);
        feed.copy_x(places, s % R::PER_CHUNK);
        feed.step();
        copies_commit();
    }
    // This thread's copies of the next stage have arrived, and it has read all stages before this one.
    auto arrive = [&] {
        copies_wait<AHEAD - 1>();
        __syncwarp();
        if (lane < ARRIVING_LANES) barrier_arrive(barrier);
    };
    if constexpr (R::IS_LATE) arrive();

    // This lane's row of a pair of 8-row groups and its half of 16 k, with the swizzle (tiled.cuh).
    const uint32_t row_offset = ((lane & 7) + (lane >> 4) * 8) * X_ROW_BYTES + (((lane >> 3 & 1) ^ (lane & 7)) << 4);
    // Its row of one group and its quarter of 32 k.
    const uint32_t odd_offset = (lane & 7) * X_ROW_BYTES + ((lane >> 3 ^ (lane & 7)) << 4);
    const uint8_t* own_scales = s_ring + warp * WARP_TILES * F::SCALE_BYTES;

    int stage = 0, slot = 0;
    uint32_t phase = 0;
    schedule.each([&](int work, int chunk, int end) {
        const bool is_shared = end - chunk < p.n_chunks;
        float acc[WARP_TILES][N][4] = {};
#pragma unroll 1
        for (; chunk < end; chunk++) {
            const uint8_t* scales_at = own_scales + slot * BLOCK_TILES * F::SCALE_BYTES;
            if (++slot == R::SLOTS) slot = 0;
            cuda::std::conditional_t<R::ON_SUMS, GroupSumScale, typename F::Group> group[WARP_TILES];
            float of_group[WARP_TILES][N][4];
            float(&sums)[WARP_TILES][N][4] = *(R::ON_SUMS ? &of_group : &acc);
#pragma unroll
            for (int part = 0; part < R::PER_CHUNK; part++) {
                Words<R>& own = words[part % AHEAD];
                const int feed_part = (part + AHEAD) % R::PER_CHUNK;
                // All copies of this stage have arrived, and all warps have read the stage that is refilled.
                if constexpr (R::IS_LATE) {
                    barrier_wait(barrier, phase);
                    phase ^= 1;
                } else {
                    copies_wait<AHEAD - 1>();
                    __syncthreads();
                }
                if (feed_part == 0) feed.copy_scales(places, feed.next_chunk(p, schedule, n_row_tiles));
                feed.copy_x(places, feed_part);
                feed.step();
                copies_commit();
                const uint32_t x_at = places.x + stage * R::X_STAGE;
                const uint32_t rows_at = x_at + row_offset, odd_at = x_at + odd_offset;
                if (++stage == S) stage = 0;
                if (part * PIECE_K % F::SCALE_K == 0) load_groups<F>(group, scales_at, part, 0);
                if (R::ON_SUMS && part % 2 == 0) clear(sums);
                uint32_t a[WARP_TILES][2][4];
#pragma unroll
                for (int t = 0; t < WARP_TILES; t++) {
                    F::template operands<0>(own.w[t], a[t]);
                    F::scale_operands(a[t], group[t]);
                }
                multiply<0, N>(sums, a, rows_at, odd_at);
                if constexpr (F::SCALE_K <= 32) load_groups<F>(group, scales_at, part, 1);
#pragma unroll
                for (int t = 0; t < WARP_TILES; t++) {
                    F::template operands<1>(own.w[t], a[t]);
                    F::scale_operands(a[t], group[t]);
                }
                feed.load_words(own, feed_part);
                if constexpr (R::IS_LATE) arrive();
                multiply<1, N>(sums, a, rows_at, odd_at);
                if constexpr (R::ON_SUMS)
                    if (part % 2 == 1) add_scaled(acc, sums, group);
            }
        }
        const int row = work % n_row_tiles * N * 8;
        const int w_tile = work / n_row_tiles * BLOCK_TILES + warp * WARP_TILES;
        if (is_shared && !add_parts<N>(p, schedule, work, acc)) return;
        switch (static_cast<Epilogue>(p.epilogue)) {
            case Epilogue::Store: return store_tile<Output::Elements, N>(p, acc, row, w_tile, lane);
            case Epilogue::SiluMul: return store_tile<Output::SiluMul, N>(p, acc, row, w_tile, lane);
            case Epilogue::AddResidual:
            case Epilogue::StoreF32: return store_tile<Output::Floats, N>(p, acc, row, w_tile, lane);
        }
    });
}

#define MMA_LINEAR(name, format, rows)                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, Ring<format, rows / 8>::BLOCKS_PER_SM) \
        name##_##rows(const __grid_constant__ MmaLinearParams p) {                               \
        mma_linear<format, rows / 8>(p);                                                         \
    }
#define MMA_LINEAR_FORMAT(name, format) \
    MMA_LINEAR(name, format, 16)        \
    MMA_LINEAR(name, format, 24)        \
    MMA_LINEAR(name, format, 32)        \
    MMA_LINEAR(name, format, 64)        \
    MMA_LINEAR(name, format, 128)

// Of GGUF and FP8: fp16, and tiles of three sizes (`FEW_ROWS` in mma.rs).
#define MMA_LINEAR_FEW(name, format) \
    MMA_LINEAR(name, format, 24)     \
    MMA_LINEAR(name, format, 64)     \
    MMA_LINEAR(name, format, 128)

MMA_LINEAR_FORMAT(mma_awq_g128, AwqFormat<1>)
MMA_LINEAR_FORMAT(mma_awq_g64, AwqFormat<2>)
MMA_LINEAR_FORMAT(mma_awq_g32, AwqFormat<4>)
MMA_LINEAR_FORMAT(mma_half, HalfFormat)
#ifndef ELEMENT_BF16
MMA_LINEAR_FEW(mma_min_g32, MinFormat)
MMA_LINEAR_FEW(mma_bytes_g32, BytesG32Format)
MMA_LINEAR_FEW(mma_bytes_g16, BytesG16Format)
MMA_LINEAR_FEW(mma_bytes_min_g16, BytesMinG16Format)
MMA_LINEAR_FEW(mma_fp8, Fp8Format)
#endif
