// y[m][n] = sum_k x[m][k] W[n][k]   for many rows, x in 8 bits, 4-bit weights in groups of 128: W4A8.
//
// The products are integers and exact: q - z of a weight is from -15 to 15, x from -127 to 127, so the sum over
// a group of 128 k is below 2^18. Nothing is lost but what rounding x to 8 bits loses (quantize_rows.cu).
//   * One mask leaves four weights of a word as bytes, 4 q each (packed_weights.cuh). 4 (q - z) takes two more
//     instructions for four weights.
//   * A sum starts from the bits of 1.5 * 2^23, so that the result is a float without conversion. That float
//     times s_x minus 1.5 * 2^23 s_x is one exact multiply-add (quantize_rows.cuh); a second one adds it,
//     times the weights' scale, to y.
//   * A stage is 128 k, one group. A warp dequantises its 32 columns of the stage once, into 32 registers, and
//     then loops over the rows, 16 at a time: sixteen products of 32 k in four chains. The sums of 16 rows are
//     added to y while the next 16 rows are multiplied.
//   * Weights go through shared memory. Each lane copies the words that it reads itself, so they need no
//     barrier. All threads copy x and scales, two or three stages ahead.
//   * Two blocks of four warps share an SM: one adds or waits while the other multiplies.
//   * Tiles of work, cut tiles and output are those of mma.cu.
//
// Bytes: as mma.cu, with half as many for x. Operations: 2 m n k.
// Grid: two blocks of 128 threads per SM. Shared memory: sized by the host (mma.rs), at most 49 KiB.
// Architectures: sm_90, sm_120. Elements: f16, bf16. Measurements: NOTES.md.
constexpr int WARPS = 4;
#include "mma_block.cuh"
#include "quantize_rows.cuh"

constexpr int GROUP_K = 128;
using Format = AwqFormat<1>;

template <int N>  // N: groups of 8 rows
struct Ring {
    static constexpr int ROWS = N * 8, X_STAGE = ROWS * X_ROW_BYTES, X_SCALE_BYTES = 4;
    static constexpr int PER_CHUNK = Format::K / GROUP_K;   // stages
    static constexpr int W_TILE = CHUNK_BYTES / PER_CHUNK;  // bytes of a stage of a tile
    static constexpr int WORDS = W_TILE / WARP_BYTES;       // of 16 bytes a lane
    // How many stages the copies are ahead of the products. Weights have that many stages in the ring: those
    // of the current stage are in registers before their place is refilled.
    static constexpr int AHEAD = N == 8 ? 2 : 3;
    static constexpr int STAGES = AHEAD + 1;
    static constexpr int W_STAGE = BLOCK_TILES * W_TILE;
    static constexpr int SLOTS = 2;  // for a warp's own scales: of this chunk and of the next
    static constexpr int WEIGHTS = STAGES * X_STAGE;
    static constexpr int SCALES = WEIGHTS + AHEAD * W_STAGE;
    static constexpr int X_SCALES = SCALES + SLOTS * BLOCK_TILES * Format::SCALE_BYTES;
    static constexpr int BYTES = X_SCALES + STAGES * ROWS * X_SCALE_BYTES;
    static_assert(BYTES <= 49 * 1024);
};

// d[16x8] = c + a[16x32] b[32x8], whole numbers.
DEVICE void mma_16832(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&c)[4]) {
    asm(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

DEVICE uint4 load_shared_16(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
    return v;
}

// What a group has for columns g and g + 8 of a tile.
struct Group {
    float scale[2];    // a quarter of the weights' scale
    uint32_t zero[2];  // 4 z in every byte
};
DEVICE Group load_group(const uint8_t* scales, int index, int g) {
    const float2 s = __half22float2(*reinterpret_cast<const __half2*>(scales + index * GROUP_SCALE_BYTES + g * 4));
    const uint32_t z = scales[Format::GROUPS * GROUP_SCALE_BYTES + index * GROUP_ZERO_BYTES + g];
    return {{s.x * 0.25f, s.y * 0.25f}, {(z & 15) * 0x04040404u, (z >> 4) * 0x04040404u}};
}

// Four weights as signed bytes 4 (q - z). With 128 added no byte borrows from the next.
DEVICE uint32_t levels(uint32_t word, uint32_t zero) { return (and_or<0x3c3c3c3c, 0x80808080>(word) - zero) ^ 0x80808080; }

// The A operands of 32 k: word 0 has k 0 to 3 of every 8, word 1 has 4 to 7.
DEVICE void dequantise(uint32_t (&a)[4], uint32_t word0, uint32_t word1, const Group& group) {
    a[0] = levels(word0, group.zero[0]);
    a[1] = levels(__funnelshift_r(word0, word0, 4), group.zero[1]);
    a[2] = levels(word1, group.zero[0]);
    a[3] = levels(__funnelshift_r(word1, word1, 4), group.zero[1]);
}

// 128 k of 16 rows: their operands, and the sums of the warp's columns.
constexpr int AT_ONCE = 2;  // groups of 8 rows
struct Rows {
    uint32_t b[AT_ONCE][2][4];
    float scale[AT_ONCE][2];  // of rows 2j and 2j + 1
    int32_t sum[AT_ONCE][WARP_TILES][4];

    // `at`: this lane's row and 16 bytes of the first 64 k and of the second; `scales_at`: of its two rows.
    DEVICE void load(const uint32_t (&at)[2], uint32_t scales_at, int r) {
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++)
#pragma unroll
            for (int half = 0; half < 2; half++) load_matrices(b[q][half], at[half] + (r + q) * 8 * X_ROW_BYTES);
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++)
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                         : "=f"(scale[q][0]), "=f"(scale[q][1])
                         : "r"(scales_at + (r + q) * 8 * 4)
                         : "memory");
    }
    DEVICE void multiply(const uint32_t (&a)[WARP_TILES][4][4]) {
        const int32_t begin[4] = {SUM_BASE, SUM_BASE, SUM_BASE, SUM_BASE};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int q = 0; q < AT_ONCE; q++)
#pragma unroll
                for (int t = 0; t < WARP_TILES; t++) {
                    const uint32_t(&x)[4] = b[q][i / 2];
                    if (i == 0)
                        mma_16832(sum[q][t], a[t][i], x[0], x[1], begin);
                    else
                        mma_16832(sum[q][t], a[t][i], x[i % 2 * 2], x[i % 2 * 2 + 1], sum[q][t]);
                }
    }
    template <int N>
    DEVICE void add_to(float (&acc)[WARP_TILES][N][4], int r, const Group (&group)[WARP_TILES]) const {
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++) {
            const float base[2] = {-SUM_BASE_FLOAT * scale[q][0], -SUM_BASE_FLOAT * scale[q][1]};
#pragma unroll
            for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float y = fmaf(__int_as_float(sum[q][t][i]), scale[q][i % 2], base[i % 2]);
                    acc[t][r + q][i] = fmaf(y, group[t].scale[i / 2], acc[t][r + q][i]);
                }
        }
    }
};

// Shared memory: x [STAGES][8 N][128]   weights [AHEAD][WARPS][WARP_TILES][WORDS][WARP_BYTES]
//                scales [SLOTS][WARPS][WARP_TILES][SCALE_BYTES]   scales of x [STAGES][8 N]
template <int N>
DEVICE void mma_int8_linear(const MmaLinearParams& p) {
    extern __shared__ __align__(128) uint8_t smem[];
    using R = Ring<N>;
    constexpr int AHEAD = R::AHEAD;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, j = lane & 3;
    if (p.shared_bytes != R::BYTES) __trap();  // mma_int8.rs counts other bytes

    const int n_row_tiles = (p.m + R::ROWS - 1) / R::ROWS;
    const Places places{shared_address(smem), shared_address(smem + R::SCALES), shared_address(smem + R::X_SCALES)};
    const Schedule schedule((p.n_tiles + BLOCK_TILES - 1) / BLOCK_TILES * n_row_tiles, p.n_chunks);
    launch_dependents();

    const bool has_work = schedule.first < schedule.last || static_cast<int>(blockIdx.x) < schedule.whole_tiles;
    if (!has_work) return wait_for_previous();

    // Weights first: they do not depend on the previous kernel.
    Feed<Format, R> feed(p, schedule);
    const uint32_t own_words = shared_address(smem + R::WEIGHTS) + warp * WARP_TILES * R::W_TILE + lane * LANE_BYTES;
    {
        Feed<Format, R> ahead = feed;
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            if (s % R::PER_CHUNK == 0) ahead.copy_scales(places, ahead.next_chunk(p, schedule, n_row_tiles));
            ahead.copy_words(own_words + s * R::W_STAGE, s % R::PER_CHUNK);
        }
    }
    wait_for_previous();
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
        if (s % R::PER_CHUNK == 0) feed.next_chunk(p, schedule, n_row_tiles);
        feed.copy_x(places, s % R::PER_CHUNK);
        feed.step();
        copies_commit();
    }

    // This lane's row of eight and its 16 bytes of the first 64 k, with the swizzle.
    const uint32_t row_offset = (lane & 7) * X_ROW_BYTES + (((lane >> 3) ^ (lane & 7)) << 4);
    const uint8_t* own_scales = smem + R::SCALES + warp * WARP_TILES * Format::SCALE_BYTES;

    int stage = 0, slot = 0, w_stage = 0;
    Group group[WARP_TILES];
    uint32_t a[WARP_TILES][4][4];
    // Loads the weights of the next stage, after this warp's copies of them have arrived.
    auto load_weights = [&](int part) {
        copies_wait<AHEAD - 1>();
        __syncwarp();
        const uint32_t words_at = own_words + w_stage * R::W_STAGE;
        if (++w_stage == AHEAD) w_stage = 0;
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++) {
            group[t] = load_group(own_scales + (slot * BLOCK_TILES + t) * Format::SCALE_BYTES, part, g);
#pragma unroll
            for (int i = 0; i < R::WORDS; i++) {
                const uint4 words = load_shared_16(words_at + (t * R::WORDS + i) * WARP_BYTES);
                dequantise(a[t][2 * i], words.x, words.y, group[t]);
                dequantise(a[t][2 * i + 1], words.z, words.w, group[t]);
            }
        }
    };
    load_weights(0);
    Runs runs(schedule);
    for (int work, chunk, n; runs.next(schedule, work, chunk, n);) {
        const bool is_shared = n < p.n_chunks;
        float acc[WARP_TILES][N][4] = {};
#pragma unroll 1
        for (; n > 0; n--) {
#pragma unroll
            for (int part = 0; part < R::PER_CHUNK; part++) {
                const int feed_part = (part + AHEAD) % R::PER_CHUNK, next_part = (part + 1) % R::PER_CHUNK;
                // All threads' copies of this stage have arrived, and all have read the stage that is refilled.
                __syncthreads();
                if (feed_part == 0) feed.copy_scales(places, feed.next_chunk(p, schedule, n_row_tiles));
                feed.copy_x(places, feed_part);
                // They replace this stage's words, which are in registers already.
                feed.copy_words(own_words + (w_stage == 0 ? AHEAD - 1 : w_stage - 1) * R::W_STAGE, feed_part);
                feed.step();
                copies_commit();
                const uint32_t rows_at = places.x + stage * R::X_STAGE + row_offset;
                const uint32_t at[2] = {rows_at, rows_at ^ 4 << 4};
                const uint32_t scales_at = places.x_scales + stage * R::ROWS * R::X_SCALE_BYTES + j * 8;
                if (++stage == R::STAGES) stage = 0;
                if (next_part == 0 && ++slot == R::SLOTS) slot = 0;
                Rows rows[2];
                rows[0].load(at, scales_at, 0);
#pragma unroll
                for (int r = 0; r <= N; r += AT_ONCE) {
                    Rows &now = rows[r / AT_ONCE % 2], &other = rows[(r / AT_ONCE + 1) % 2];
                    if (r < N) now.multiply(a);
                    if (r > 0) other.template add_to<N>(acc, r - AT_ONCE, group);
                    if (r + AT_ONCE < N) other.load(at, scales_at, r + AT_ONCE);
                }
                load_weights(next_part);
            }
        }
        const int row = work % n_row_tiles * R::ROWS;
        const int w_tile = work / n_row_tiles * BLOCK_TILES + warp * WARP_TILES;
        if (is_shared && !add_parts<N>(p, schedule, work, acc)) continue;
        switch (static_cast<Epilogue>(p.epilogue)) {
            case Epilogue::Store: store_tile<Output::Elements, N>(p, acc, row, w_tile, lane); break;
            case Epilogue::SiluMul: store_tile<Output::SiluMul, N>(p, acc, row, w_tile, lane); break;
            case Epilogue::AddResidual:
            case Epilogue::StoreF32: store_tile<Output::Floats, N>(p, acc, row, w_tile, lane); break;
        }
    }
}

#define MMA_INT8(rows)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) mma_int8_##rows(const __grid_constant__ MmaLinearParams p) { \
        mma_int8_linear<rows / 8>(p);                                                                                     \
    }
MMA_INT8(32)
MMA_INT8(64)
