// y[m][n] = sum_k x[m][k] W[n][k]   for many rows, of any GPU that has `mma.sync` and bulk copies:
// batches of 17 and more, prompts. On sm_90 wgmma.cu does the same faster.
//
// Weights as for stream_linear.cu, dequantised into the registers that are the A operand; x is tiled
// as for wgmma.cu (tiled.cuh), so that 64 k of the rows of a tile of work are one run of memory, and
// `ldmatrix` reads the B operand without bank conflicts.
//   * Eight warps multiply 32 columns each (gate and up for SiLU) with all rows of a tile of work; a
//     fragment of x serves two products, a fragment of weights as many as there are groups of 8 rows.
//   * A ring of stages, each 64 or 128 k of x and of the block's weights, filled by 16-byte copies of all
//     threads: one barrier of the block a stage, and nothing that a single lane does for others. (Bulk
//     copies that a lane issues cost more; see NOTES.md.) A lane's copies of weights are the words that it
//     multiplies itself, so it reads the next stage's before that stage's barrier.
//   * The next 32 k of weights are dequantised among the products of the 32 k before.
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
#ifdef BURST
#define COPY_PLACE(c) 0
#else
#define COPY_PLACE(c) ((2 * c + 1) * GROUPS / (2 * COPIES))
#endif
constexpr int PIECE_K = 64;                      // of a tile of x
constexpr int CHUNK_BYTES = 2048;

// A block's shared memory, by format and groups of 8 rows: at most 99 KiB.
template <class F, int N>
struct Ring {
    static constexpr int CHUNK_PIECES = F::K / PIECE_K;
#ifndef PIECES_2
#define PIECES_2 2
#define PIECES_4 2
#define PIECES_8 1
#endif
    static constexpr int PIECES = CHUNK_PIECES == 1 || N == 16 ? 1 : N == 2 ? PIECES_2 : N == 4 ? PIECES_4 : PIECES_8;
    static constexpr int PER_CHUNK = CHUNK_PIECES / PIECES;            // stages
    static constexpr int W_PIECE = CHUNK_BYTES / CHUNK_PIECES;         // bytes of a tile of 16 columns
    static constexpr int W_TILE = PIECES * W_PIECE;
    static constexpr int W_STAGE = BLOCK_TILES * W_TILE;
    static constexpr int X_PIECE = N * 8 * PIECE_K * 2;
    static constexpr int X_STAGE = PIECES * X_PIECE;
    static constexpr int SLOTS = F::SCALE_BYTES == 0 ? 0 : N == 16 ? 2 : 3;  // of chunks' scales
    static constexpr int SCALES = SLOTS * BLOCK_TILES * F::SCALE_BYTES;
    static constexpr int FITTING = (101376 - SCALES) / (W_STAGE + X_STAGE);
    // A chunk's scales are overwritten when its last stage is done, not before.
    static constexpr int ALLOWED = SLOTS == 0 ? 8 : (SLOTS - 1) * PER_CHUNK + 1;
    static constexpr int STAGES = FITTING < ALLOWED ? FITTING : ALLOWED;
    static constexpr int BYTES = STAGES * (W_STAGE + X_STAGE) + SCALES;
    static_assert(STAGES >= 2);
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

// Without a branch: branches would keep the compiler from mixing copies with products.
DEVICE void copy_16(uint32_t to, const void* from, bool is_wanted) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(to), "l"(from),
                 "r"(static_cast<int>(is_wanted))
                 : "memory");
}
DEVICE void copy_16(uint32_t to, const void* from, bool is_wanted, uint64_t policy) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %3; }" ::"r"(to),
                 "l"(from), "r"(static_cast<int>(is_wanted)), "l"(policy)
                 : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most PENDING of this thread's groups of copies still run.
template <int PENDING>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// As without a policy: other tiles of rows will want the same weights.
DEVICE uint64_t keep_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Where the rings lie: shared addresses.
struct Places {
    uint32_t x, weights, scales;
    uint64_t policy;  // of the weights in the L2
};

// Where the next stage of the block's work lies. Within a run a stage is a step from the one
// before; only a new run costs divisions. All threads of a block are at the same stage.
template <class F, int N>
struct Feed {
    using R = Ring<F, N>;
    const uint8_t* weights;  // this lane's first 16 bytes of the warp's first tile
    const uint8_t* scales;   // this lane's first 16 bytes of the two tiles' scales
    const uint8_t* x;        // this thread's first 16 bytes
    int second_tile = 0;     // bytes from the first tile to the second
    int left = 0;            // stages of this run
    int stage = 0, slot = 0;
    Runs runs;

    DEVICE Feed(const Schedule& schedule) : runs(schedule) {}

    DEVICE bool find(const MmaLinearParams& p, const Schedule& schedule, int n_row_tiles) {
        if (left > 0) return true;
        int work, chunk, n;
        if (!runs.next(schedule, work, chunk, n)) return false;
        left = n * R::PER_CHUNK;
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        // Beyond the last tile the last one again: its products are dropped.
        const int tile = min(work / n_row_tiles * BLOCK_TILES + warp * WARP_TILES, p.n_tiles - 1);
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
        const int64_t row = static_cast<int64_t>(chunk) * R::CHUNK_PIECES * p.x_rows + work % n_row_tiles * N * 8;
        x = reinterpret_cast<const uint8_t*>(p.x + row * PIECE_K) + threadIdx.x * 16;
        return true;
    }
    // Copies of a stage by each thread: some of weights, the last of them with the scales, then some of x.
    static constexpr int W_COPIES = WARP_TILES * R::W_TILE / 512;
    static constexpr int X_PIECE_COPIES = (R::X_PIECE + THREADS * 16 - 1) / (THREADS * 16);
    static constexpr int COPIES = W_COPIES + R::PIECES * X_PIECE_COPIES;

    DEVICE void copy(const MmaLinearParams& p, const Places& at, int i, bool is_wanted) const {
        if (i < W_COPIES) copy_weights(at, i, is_wanted);
        else copy_x(p, at, i - W_COPIES, is_wanted);
    }
    DEVICE void copy_weights(const Places& at, int i, bool is_wanted) const {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        constexpr int A_TILE = R::W_TILE / 512;
        const int t = i / A_TILE, offset = i % A_TILE * 512;
        const uint32_t to = at.weights + stage * R::W_STAGE + (warp * WARP_TILES + t) * R::W_TILE + offset + lane * 16;
        copy_16(to, weights + (t == 0 ? 0 : second_tile) + offset, is_wanted, at.policy);
        if constexpr (F::SCALE_BYTES > 0) {
            constexpr int PARTS = F::SCALE_BYTES / 16;
            static_assert(PARTS <= 32);
            if (i + 1 == W_COPIES) {
                const bool is_first = is_wanted && left % R::PER_CHUNK == 0;
                const uint32_t to = at.scales + (slot * WARPS + warp) * WARP_TILES * F::SCALE_BYTES + lane * 16;
                if constexpr (WARP_TILES * PARTS <= 32) {
                    copy_16(to, scales, is_first && lane < WARP_TILES * PARTS);
                } else {
                    copy_16(to, scales, is_first && lane < PARTS);
                    copy_16(to + F::SCALE_BYTES, scales + second_tile / CHUNK_BYTES * F::SCALE_BYTES, is_first && lane < PARTS);
                }
            }
        }
    }
    DEVICE void copy_x(const MmaLinearParams& p, const Places& at, int i, bool is_wanted) const {
        const int piece = i / X_PIECE_COPIES, offset = i % X_PIECE_COPIES * (THREADS * 16);
        const uint32_t to = at.x + stage * R::X_STAGE + piece * R::X_PIECE + offset + threadIdx.x * 16;
        const uint8_t* from = x + static_cast<int64_t>(piece) * p.x_rows * (PIECE_K * 2) + offset;
        copy_16(to, from, is_wanted && (R::X_PIECE >= THREADS * 16 || threadIdx.x * 16 < R::X_PIECE));
    }
    DEVICE void step(const MmaLinearParams& p) {
        if (F::SCALE_BYTES > 0 && left % R::PER_CHUNK == 0) {
            scales += F::SCALE_BYTES;
            if (++slot == R::SLOTS) slot = 0;
        }
        weights += R::W_TILE;
        x += static_cast<int64_t>(R::PIECES) * p.x_rows * (PIECE_K * 2);
        left--;
        if (++stage == R::STAGES) stage = 0;
    }
};

// A lane's words of one piece of its warp's two tiles.
template <class F>
struct Words {
    static constexpr int N = CHUNK_BYTES / (F::K / PIECE_K) / 512;
    uint4 w[WARP_TILES][N];
    DEVICE void load(const uint8_t* at, int w_tile) {
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
            for (int i = 0; i < N; i++) w[t][i] = *reinterpret_cast<const uint4*>(at + t * w_tile + i * 512);
    }
};

// A operands of 32 k of a warp's two tiles, dequantised: products 2P and 2P + 1 of the piece.
template <class F>
struct Operands {
    uint32_t a[WARP_TILES][2][4];
    template <int P>
    DEVICE void dequantise(int t, const Words<F>& words, const GroupScale (&group)[WARP_TILES]) {
        F::template operands<P>(words.w[t], a[t]);
        F::scale_operands(a[t], group[t]);
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
// `between` is called before each of the N times that products of 16 k and 16 rows follow.
template <int P, int N, class Between>
DEVICE void multiply(float (&acc)[WARP_TILES][N][4], const uint32_t (&a)[WARP_TILES][2][4], uint32_t row_at,
                     Between&& between) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t at = row_at ^ (P * 4 + i * 2) << 4;
#pragma unroll
        for (int r = 0; r < N; r += 2) {
            between(i * (N / 2) + r / 2);
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

// Shared memory: x [STAGES][PIECES][8 N][128]   weights [STAGES][WARPS][WARP_TILES][W_TILE]
//   scales [SLOTS][WARPS][WARP_TILES][SCALE_BYTES]
template <class F, int N>  // N: groups of 8 rows
DEVICE void mma_linear(const MmaLinearParams& p) {
    extern __shared__ __align__(128) uint8_t smem[];
    using R = Ring<F, N>;
    constexpr int S = R::STAGES;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (p.shared_bytes != R::BYTES) __trap();  // mma.rs counts otherwise

    const uint8_t* w_ring = smem + S * R::X_STAGE;
    const uint8_t* s_ring = w_ring + S * R::W_STAGE;
    const int n_row_tiles = (p.m + N * 8 - 1) / (N * 8);
    const Places places{shared_address(smem), shared_address(w_ring), shared_address(s_ring),
                        n_row_tiles == 1 ? evict_first_policy() : keep_policy()};
    const Schedule schedule((p.n_tiles + BLOCK_TILES - 1) / BLOCK_TILES * n_row_tiles, p.n_chunks);
    launch_dependents();

    // Weights first: they were there before the previous kernel.
    Feed<F, N> feed(schedule);
    {
        Feed<F, N> ahead = feed;
        for (int s = 0; s < S - 1 && ahead.find(p, schedule, n_row_tiles); s++) {
#pragma unroll
            for (int i = 0; i < Feed<F, N>::W_COPIES; i++) ahead.copy_weights(places, i, true);
            ahead.step(p);
        }
    }
    wait_for_previous();
    for (int s = 0; s < S - 1; s++) {
        if (feed.find(p, schedule, n_row_tiles)) {
#pragma unroll
            for (int i = 0; i < Feed<F, N>::COPIES - Feed<F, N>::W_COPIES; i++) feed.copy_x(p, places, i, true);
            feed.step(p);
        }
        copies_commit();
    }

    // This lane's row of a pair of 8-row groups and its half of 16 k, with the swizzle (tiled.cuh).
    const uint32_t row_offset = ((lane & 7) + (lane >> 4) * 8) * PIECE_K * 2 + (((lane >> 3 & 1) ^ (lane & 7)) << 4);
    const uint8_t* own_words = w_ring + warp * WARP_TILES * R::W_TILE + lane * 16;
    const uint8_t* own_scales = s_ring + warp * WARP_TILES * F::SCALE_BYTES;
    constexpr int SLOT = BLOCK_TILES * F::SCALE_BYTES;
    Words<F> words;
    GroupScale group[WARP_TILES];
    Operands<F> even, odd;  // of products 0, 1 and 2, 3 of a piece
    // With three stages and more a stage's first operands are made during the one before.
    constexpr bool IS_AHEAD = S >= 3;
    auto first_operands = [&](const uint8_t* words_at, const uint8_t* scales_at) {
        words.load(words_at, R::W_TILE);
        load_groups<F>(group, scales_at, 0, 0);
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++) even.template dequantise<0>(t, words, group);
    };
    if constexpr (IS_AHEAD) {
        copies_wait<S - 2>();
        __syncthreads();
        first_operands(own_words, own_scales);
    }

    int stage = 0, slot = 0;
    schedule.each([&](int work, int chunk, int end) {
        const bool is_shared = end - chunk < p.n_chunks;
        float acc[WARP_TILES][N][4] = {};
        for (; chunk < end; chunk++) {
            const int next_slot = slot + 1 == R::SLOTS ? 0 : slot + 1;
#pragma unroll 1
            for (int part = 0; part < R::PER_CHUNK; part++) {
                // This stage's copies are there, and this thread's of the next; all have read the stage
                // before, so its place is refilled.
                copies_wait<IS_AHEAD ? S - 3 : 0>();
                __syncthreads();
                const bool is_more = feed.find(p, schedule, n_row_tiles);
                // Copies in one place would keep everything else from shared memory: they are spread.
                constexpr int GROUPS = 2 * N * R::PIECES, COPIES = Feed<F, N>::COPIES;
                auto copies = [&](int nth) {
#pragma unroll
                    for (int c = 0; c < COPIES; c++)
                        if (COPY_PLACE(c) == nth) feed.copy(p, places, c, is_more);
                };
                const uint8_t* at = own_words + stage * R::W_STAGE;
                const uint32_t x_rows_at = places.x + stage * R::X_STAGE + row_offset;
                if constexpr (!IS_AHEAD) first_operands(at, own_scales + slot * SLOT);
                if (++stage == S) stage = 0;
#pragma unroll
                for (int i = 0; i < R::PIECES; i++) {
                    const int piece = part * R::PIECES + i;
                    const bool is_last = i + 1 == R::PIECES;
                    multiply<0, N>(acc, even.a, x_rows_at + i * R::X_PIECE, [&](int nth) {
                        copies(2 * N * i + nth);
                        if (nth == 0 && F::GROUPS == 8) load_groups<F>(group, own_scales + slot * SLOT, piece, 1);
#pragma unroll
                        for (int t = 0; t < WARP_TILES; t++)
                            if ((t + 1) * N / 4 == nth) odd.template dequantise<1>(t, words, group);
                    });
                    multiply<1, N>(acc, odd.a, x_rows_at + i * R::X_PIECE, [&](int nth) {
                        copies(2 * N * i + N + nth);
                        if (is_last && !IS_AHEAD) return;
                        if (nth == 0) {
                            words.load(is_last ? own_words + stage * R::W_STAGE : at + (i + 1) * R::W_PIECE, R::W_TILE);
                            const bool ends_chunk = piece + 1 == R::CHUNK_PIECES;
                            load_groups<F>(group, own_scales + (ends_chunk ? next_slot : slot) * SLOT, ends_chunk ? 0 : piece + 1, 0);
                        }
#pragma unroll
                        for (int t = 0; t < WARP_TILES; t++)
                            if ((t + 2) * N / 4 == nth) even.template dequantise<0>(t, words, group);
                    });
                }
                if (is_more) feed.step(p);
                copies_commit();
            }
            slot = next_slot;
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
