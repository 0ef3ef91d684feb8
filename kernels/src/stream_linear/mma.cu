// y[m][n] = sum_k x[m][k] W[n][k]   for many rows, on any GPU that has `mma.sync`, `cp.async` and
// mbarriers: batches of 17 and more, prompts. On sm_90 wgmma.cu does the same faster.
//
// Weights as for stream_linear.cu, dequantised into the registers that are the A operand; x is tiled
// as for wgmma.cu (tiled.cuh), so that 64 k of the rows of a tile of work are one run of memory, and
// `ldmatrix` reads the B operand without bank conflicts.
//   * Eight warps multiply 32 columns each (gate and up for SiLU) with all rows of a tile of work; a
//     fragment of x serves two products, a fragment of weights as many as there are groups of 8 rows.
//   * A stage is 64 k. A lane multiplies exactly the 16-byte words of weights that it loads, so weights
//     go straight into registers, up to four stages ahead. x and scales go through a ring in shared
//     memory, filled by 16-byte copies of all threads.
//   * From 64 rows on, a warp arrives at the barrier in the middle of a stage, for the next one, and a
//     stage's place is refilled one stage late. So warps may be half a stage apart without waiting for
//     each other: one dequantises while another multiplies.
//   * The stages of a chunk are unrolled: which of them starts a chunk or a group is known when this is
//     compiled. Copies have no condition; after the last chunk they bring that chunk again.
//   * A tile of work is 256 columns x 16, 32, 64 or 128 rows. Blocks take whole tiles in waves, rows
//     before columns so that weights are met again in the L2. The tiles of the last, incomplete wave
//     are cut along k into equal runs, one a block; the block that comes last adds up a tile's
//     parts, in block order: the same bits in every run. No block waits for another.
//
// Bytes: W once from memory, and once from the L2 for every tile of rows; x from the L2 for every 256
// columns; parts of shared tiles. FLOPs: 2 m n k.
// Grid: one block of 256 threads an SM. Shared memory: sized by the host (mma.rs), at most 99 KiB.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
// Cutting work evenly over blocks is stream-K (Osama et al., 2023). Measurements: NOTES.md.
#include "eight_rows.cuh"
#include "schedule.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
constexpr int WARP_TILES = 2;  // of 16 columns
constexpr int BLOCK_TILES = WARPS * WARP_TILES;
constexpr int PIECE_K = 64;    // of a stage
constexpr int CHUNK_BYTES = 2048;

// The ring and the registers of a format and N groups of 8 rows. mma.rs counts the same bytes.
template <class F, int N>
struct Ring {
    static constexpr int PER_CHUNK = F::K / PIECE_K;        // stages
    static constexpr int W_TILE = CHUNK_BYTES / PER_CHUNK;  // bytes of a stage of a tile of 16 columns
    static constexpr int WORDS = W_TILE / 512;              // of 16 bytes a lane
    // Stages from the products to the loads and copies. Up to 64 rows memory sets the pace: 32 KiB a
    // block are under way. At 128 rows a stage takes longer than a load, and registers are scarce; one
    // stage instead of two was 3 % slower.
    static constexpr int AHEAD = PER_CHUNK == 1 ? 1 : N == 16 ? 2 : 4;
    // A stage's place is refilled one stage late, and warps arrive for a stage half a stage before it:
    // 6 % faster at 128 rows, 4 % at 64. Below, where products are few, a plain barrier of the block is
    // faster (16 rows: 55 instead of 64 us). 16-bit weights were measured this way only.
    static constexpr bool IS_LATE = N >= 8 || PER_CHUNK == 1;
    static constexpr int STAGES = AHEAD + 1 + IS_LATE;
    static constexpr int X_STAGE = N * 8 * PIECE_K * 2;
    // Scales of the chunk that is multiplied, of one that a late warp may still read, and of those that
    // begin within `AHEAD` stages.
    static constexpr int SLOTS = F::SCALE_BYTES == 0 ? 0 : AHEAD / PER_CHUNK + 2;
    static constexpr int BARRIER = STAGES * X_STAGE + SLOTS * BLOCK_TILES * F::SCALE_BYTES;
    static constexpr int BYTES = BARRIER + 8;
    static_assert(PER_CHUNK % AHEAD == 0 && BYTES <= 99 * 1024);
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
    int32_t shared_bytes;    // of the launch
};

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(uint32_t (&d)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}

DEVICE void copy_16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copy_16(uint32_t to, const void* from, bool is_wanted) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(to), "l"(from),
                 "r"(static_cast<int>(is_wanted))
                 : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most PENDING of this thread's groups of copies still run.
template <int PENDING>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

DEVICE uint4 load_16(const void* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

// Where the rings lie: shared addresses.
struct Places {
    uint32_t x, scales;
};

// A lane's words of one stage.
template <class F, int N>
struct Words {
    uint4 w[WARP_TILES][Ring<F, N>::WORDS];
};

// Where the next stage of the block's work lies: its chunk, to which a stage adds what is known when
// this is compiled. Only a new run costs divisions. All threads of a block are at the same stage.
template <class F, int N>
struct Feed {
    using R = Ring<F, N>;
    const uint8_t* weights;  // of the chunk: this lane's first 16 bytes of the warp's first tile
    const uint8_t* scales;   // this lane's 16 bytes of the two tiles' scales
    const uint8_t* x;        // this thread's first 16 bytes
    int second_tile = 0;     // bytes from the first tile to the second
    int left = 0;            // chunks of this run after this one
    int stage = 0, slot = R::SLOTS - 1;
    int x_stride;            // bytes from a piece of x to the next
    Runs runs;

    DEVICE Feed(const MmaLinearParams& p, const Schedule& schedule) : x_stride(p.x_rows * PIECE_K * 2), runs(schedule) {}

    // The next chunk, or the last again where there are no more: what it brings is not used.
    DEVICE bool next_chunk(const MmaLinearParams& p, const Schedule& schedule, int n_row_tiles) {
        if (left > 0) {
            left--;
            weights += CHUNK_BYTES;
            scales += F::SCALE_BYTES;
            x += static_cast<int64_t>(R::PER_CHUNK) * x_stride;
        } else {
            int work, chunk, n;
            if (!runs.next(schedule, work, chunk, n)) return false;
            left = n - 1;
            start_run(p, work / n_row_tiles, work % n_row_tiles, chunk);
        }
        if (++slot == R::SLOTS) slot = 0;
        return true;
    }
    DEVICE void start_run(const MmaLinearParams& p, int columns, int rows, int chunk) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        // Beyond the last tile the last one again: its products are dropped.
        const int tile = min(columns * BLOCK_TILES + warp * WARP_TILES, p.n_tiles - 1);
        const bool has_second = tile + 1 < p.n_tiles;
        const int64_t index = static_cast<int64_t>(tile) * p.n_chunks + chunk;
        weights = p.weights + index * CHUNK_BYTES + lane * 16;
        second_tile = has_second ? p.n_chunks * CHUNK_BYTES : 0;
        if constexpr (F::SCALE_BYTES > 0) {
            // Copied by as many lanes as there are 16 bytes of scales.
            constexpr int PARTS = F::SCALE_BYTES / 16;
            const int t = lane / PARTS;
            scales = p.scales + (index + (t == 1 && has_second ? p.n_chunks : 0)) * F::SCALE_BYTES + lane % PARTS * 16;
        }
        const int64_t row = static_cast<int64_t>(chunk) * R::PER_CHUNK * p.x_rows + rows * N * 8;
        x = reinterpret_cast<const uint8_t*>(p.x + row * PIECE_K) + threadIdx.x * 16;
    }

    DEVICE void load_words(Words<F, N>& words, int part) const {
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
            for (int i = 0; i < R::WORDS; i++)
                words.w[t][i] = load_16(weights + (t == 0 ? 0 : second_tile) + part * R::W_TILE + i * 512);
    }
    DEVICE void copy_scales(const Places& at, bool is_wanted) const {
        if constexpr (F::SCALE_BYTES > 0) {
            constexpr int PARTS = F::SCALE_BYTES / 16;
            static_assert(PARTS <= 32);
            const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
            const uint32_t to = at.scales + (slot * WARPS + warp) * WARP_TILES * F::SCALE_BYTES + lane * 16;
            if constexpr (WARP_TILES * PARTS <= 32) {
                copy_16(to, scales, is_wanted && lane < WARP_TILES * PARTS);
            } else {
                copy_16(to, scales, is_wanted && lane < PARTS);
                copy_16(to + F::SCALE_BYTES, scales + second_tile / CHUNK_BYTES * F::SCALE_BYTES, is_wanted && lane < PARTS);
            }
        }
    }
    DEVICE void copy_x(const Places& at, int part) const {
        const uint32_t to = at.x + stage * R::X_STAGE + threadIdx.x * 16;
        const uint8_t* from = x + static_cast<int64_t>(part) * x_stride;
        if constexpr (R::X_STAGE < THREADS * 16) {
            copy_16(to, from, threadIdx.x < R::X_STAGE / 16);
        } else {
#pragma unroll
            for (int c = 0; c < R::X_STAGE; c += THREADS * 16) copy_16(to + c, from + c);
        }
    }
    DEVICE void step() {
        if (++stage == R::STAGES) stage = 0;
    }
};

// Of the group that products 2P and 2P + 1 of a chunk's piece belong to.
template <class F>
DEVICE void load_groups(GroupScale (&group)[WARP_TILES], const uint8_t* scales, int piece, int P) {
    if constexpr (F::GROUPS > 0) {
        const int g = (threadIdx.x & 31) >> 2;
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
            F::load_group(scales + t * F::SCALE_BYTES, (2 * piece + P) * F::GROUPS / 8, g, group[t]);
    }
}

// 32 k of a warp's columns times all rows. `row_at`: this lane's row and half of 16 k, for ldmatrix.
template <int P, int N>
DEVICE void multiply(float (&acc)[WARP_TILES][N][4], const uint32_t (&a)[WARP_TILES][2][4], uint32_t row_at) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t at = row_at ^ (P * 4 + i * 2) << 4;
#pragma unroll
        for (int r = 0; r < N; r += 2) {
            uint32_t b[4];
            load_matrices(b, at + r * 8 * PIECE_K * 2);
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int t = 0; t < WARP_TILES; t++) mma_16816(acc[t][r + h], a[t][i], b[2 * h], b[2 * h + 1]);
        }
    }
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

// Shared memory: x [STAGES][8 N][128]   scales [SLOTS][WARPS][WARP_TILES][SCALE_BYTES]   an mbarrier
template <class F, int N>  // N: groups of 8 rows
DEVICE void mma_linear(const MmaLinearParams& p) {
    extern __shared__ __align__(128) uint8_t smem[];
    using R = Ring<F, N>;
    constexpr int S = R::STAGES, AHEAD = R::AHEAD;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (p.shared_bytes != R::BYTES) __trap();  // mma.rs counts otherwise

    const uint8_t* s_ring = smem + S * R::X_STAGE;
    const int n_row_tiles = (p.m + N * 8 - 1) / (N * 8);
    const Places places{shared_address(smem), shared_address(s_ring)};
    const Schedule schedule((p.n_tiles + BLOCK_TILES - 1) / BLOCK_TILES * n_row_tiles, p.n_chunks);
    launch_dependents();

    const bool has_work = schedule.first < schedule.last || static_cast<int>(blockIdx.x) < schedule.whole_tiles;
    if (!has_work) return wait_for_previous();

    // Weights first: they were there before the previous kernel.
    Feed<F, N> feed(p, schedule);
    Words<F, N> words[AHEAD];
    {
        Feed<F, N> ahead = feed;
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            if (s % R::PER_CHUNK == 0) ahead.copy_scales(places, ahead.next_chunk(p, schedule, n_row_tiles));
            ahead.load_words(words[s], s % R::PER_CHUNK);
            ahead.step();
        }
    }
    const uint32_t barrier = shared_address(smem + R::BARRIER);
    if constexpr (R::IS_LATE) {
        if (threadIdx.x == 0) barrier_init(barrier, WARPS);
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
    // This thread's copies of the next stage are there; it has read all stages before this one.
    auto arrive = [&] {
        copies_wait<AHEAD - 1>();
        __syncwarp();
        if (lane == 0) barrier_arrive(barrier);
    };
    if constexpr (R::IS_LATE) arrive();

    // This lane's row of a pair of 8-row groups and its half of 16 k, with the swizzle (tiled.cuh).
    const uint32_t row_offset = ((lane & 7) + (lane >> 4) * 8) * PIECE_K * 2 + (((lane >> 3 & 1) ^ (lane & 7)) << 4);
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
            GroupScale group[WARP_TILES];
#pragma unroll
            for (int part = 0; part < R::PER_CHUNK; part++) {
                Words<F, N>& own = words[part % AHEAD];
                const int feed_part = (part + AHEAD) % R::PER_CHUNK;
                // All copies of this stage are there, and all warps have read the stage whose place is refilled.
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
                const uint32_t rows_at = places.x + stage * R::X_STAGE + row_offset;
                if (++stage == S) stage = 0;
                if (F::GROUPS != 2 || part % 2 == 0) load_groups<F>(group, scales_at, part, 0);
                uint32_t a[WARP_TILES][2][4];
#pragma unroll
                for (int t = 0; t < WARP_TILES; t++) {
                    F::template operands<0>(own.w[t], a[t]);
                    F::scale_operands(a[t], group[t]);
                }
                multiply<0, N>(acc, a, rows_at);
                if constexpr (F::GROUPS == 8) load_groups<F>(group, scales_at, part, 1);
#pragma unroll
                for (int t = 0; t < WARP_TILES; t++) {
                    F::template operands<1>(own.w[t], a[t]);
                    F::scale_operands(a[t], group[t]);
                }
                feed.load_words(own, feed_part);
                if constexpr (R::IS_LATE) arrive();
                multiply<1, N>(acc, a, rows_at);
            }
        }
        const int row = work % n_row_tiles * N * 8;
        const int w_tile = work / n_row_tiles * BLOCK_TILES + warp * WARP_TILES;
        if (is_shared && !add_parts<N>(p, schedule, work, acc)) return;
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

MMA_LINEAR_FORMAT(mma_awq_g128, AwqFormat<1>)
MMA_LINEAR_FORMAT(mma_awq_g64, AwqFormat<2>)
MMA_LINEAR_FORMAT(mma_awq_g32, AwqFormat<4>)
MMA_LINEAR_FORMAT(mma_half, HalfFormat)
