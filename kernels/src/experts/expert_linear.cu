// y[place] = W[expert of the place] x[place]: a projection of the experts that have tokens. The matrices of all
// experts lie one after the other, each packed as for stream_linear.cu; jobs (routing.cu) say which places are whose.
//
// few: up to 8 places a job, for decode steps. The read of the weights is the limit, and which are read is known only
//   when the router has chosen. So blocks are small and many: 8 warps, each with a share of k of two tiles, all words
//   of 4 pieces of 64 k on their way at once, straight into registers. `down` knows its jobs before gate and up have
//   ended, and loads its first weights before griddepcontrol.wait. A warp's sums are added in order of k.
// many: up to 64 places a job, for prompts. As mma.cu: two tiles a warp (gate and up together), words of the next
//   64 k on their way, x gathered by its places into a ring of 4 stages in shared memory.
//
// Weights are dequantised, scale and zero included, and rounded to elements. Same bits in every run: every output is
// computed by one block, in order of k.
// Bytes: the weights of the experts with tokens, once (many: once for 64 places). FLOPs: 2 places n k.
// Grid: (columns / columns of a block, jobs), 256 threads; a block without a job ends at once.
// Shared memory: few 8.5 KiB, many 32 KiB. Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "../stream_linear/epilogue.cuh"

constexpr int WARPS = 8, THREADS = WARPS * 32;
constexpr int PIECE_K = 64;  // k that a lane's words of one load are for
constexpr int FEW_ROWS = 8, MANY_ROWS = 64;  // places of a job

struct ExpertLinearParams {
    const uint8_t* weights;  // [experts][n_tiles][n_chunks][CHUNK_BYTES]
    const uint8_t* scales;   // [experts][n_tiles][n_chunks][SCALE_BYTES]
    const elem* x;           // [.][x_stride]; columns from k to n_chunks * K are zero
    void* out;               // [places][out_stride]: elements of silu(gate) * up, or f32
    const int4* jobs;        // expert, first place, places, 0
    const int32_t* tokens;   // [places]: the row of x; null: the place
    int32_t x_stride, out_stride;
    int32_t n_tiles, n_chunks;  // of an expert; n_tiles is even
    int32_t k_warps;         // few: warps that share the k of two tiles, a power of two up to WARPS
    int32_t is_gated;        // the two tiles are gate and up
};

template <class F>
struct Pieces {
    static constexpr int PER_CHUNK = F::K / PIECE_K;
    static constexpr int BYTES = CHUNK_BYTES / PER_CHUNK;  // of a tile
    static constexpr int WORDS = BYTES / WARP_BYTES;       // of 16 bytes a lane
    static constexpr int AHEAD = 4 / WORDS;                // few: pieces loaded at once
};

DEVICE uint4 load_weights(const uint8_t* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

// Two neighbouring tiles of an expert.
template <class F>
struct TilePair {
    const uint8_t* weights;
    const uint8_t* scales;
    int second_weights, second_scales;  // bytes from the first tile to the second

    DEVICE TilePair(const ExpertLinearParams& p, int expert, int tile) {
        const int64_t chunk = (static_cast<int64_t>(expert) * p.n_tiles + tile) * p.n_chunks;
        weights = p.weights + chunk * CHUNK_BYTES + (threadIdx.x & 31) * LANE_BYTES;
        scales = p.scales + chunk * F::SCALE_BYTES;
        second_weights = p.n_chunks * CHUNK_BYTES;
        second_scales = p.n_chunks * F::SCALE_BYTES;
    }
    DEVICE void load(uint4 (&words)[2][Pieces<F>::WORDS], int piece) const {
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int i = 0; i < Pieces<F>::WORDS; i++)
                words[t][i] = load_weights(weights + t * second_weights + piece * Pieces<F>::BYTES + i * WARP_BYTES);
    }
    // Brings the scales of a piece's chunk into the L1, where `operands` finds them when the words have arrived: lanes
    // touch the 32-byte sectors of both tiles.
    DEVICE void touch_scales(int piece) const {
        if constexpr (F::GROUPS > 0) {
            static_assert(F::SCALE_BYTES <= 16 * 32);
            const int lane = threadIdx.x & 31;
            const int at = min(lane % 16 * 32, F::SCALE_BYTES - 4);
            const uint8_t* of_chunk = scales + lane / 16 * second_scales + piece / Pieces<F>::PER_CHUNK * F::SCALE_BYTES;
            uint32_t touched;
            asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(touched) : "l"(of_chunk + at));
        }
    }
    // The A operands of 32 k of a tile, dequantised.
    template <int P>
    DEVICE void operands(const uint4 (&words)[2][Pieces<F>::WORDS], int piece, int t, uint32_t (&a)[2][4]) const {
        F::template operands<P>(words[t], a);
        if constexpr (F::GROUPS > 0) {
            const uint8_t* of_chunk = scales + t * second_scales + piece / Pieces<F>::PER_CHUNK * F::SCALE_BYTES;
            const int index = (piece % Pieces<F>::PER_CHUNK * 2 + P) * F::GROUPS / F::PAIRS;
            typename F::Group group;
            F::load_group(of_chunk, index, (threadIdx.x & 31) >> 2, group);
            F::scale_operands(a, group);
        }
    }
};

template <class F>
DEVICE void few(const ExpertLinearParams& p) {
    using S = Pieces<F>;
    __shared__ float sums[WARPS][2][FEW_ROWS][TILE_COLUMNS + 1];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, j = lane & 3;
    const int k_warp = warp % p.k_warps, block_pairs = WARPS / p.k_warps;
    const int pair = blockIdx.x * block_pairs + warp / p.k_warps;
    const int n_pieces = p.n_chunks * S::PER_CHUNK;
    const int first = n_pieces * k_warp / p.k_warps, last = n_pieces * (k_warp + 1) / p.k_warps;
    // Jobs are written two launches before `down`: the launch between them has waited before it let this one start.
    const bool knows_jobs = !p.is_gated;
    if (!knows_jobs) wait_for_previous();
    launch_dependents();
    const int4 job = __ldcg(p.jobs + blockIdx.y);
    const TilePair<F> tiles(p, job.x, min(2 * pair, p.n_tiles - 2));
    uint4 words[S::AHEAD][2][S::WORDS];
    // The words and scales of up to AHEAD pieces from `from` on.
    auto load = [&](int from) {
#pragma unroll
        for (int i = 0; i < S::AHEAD; i++)
            if (from + i < last) tiles.load(words[i], from + i);
        tiles.touch_scales(from);
        const int end = min(from + S::AHEAD, last) - 1;
        if (end / S::PER_CHUNK != from / S::PER_CHUNK) tiles.touch_scales(end);
    };
    if (job.z > 0 && first < last) load(first);
    if (knows_jobs) wait_for_previous();
    if (job.z == 0) return;

    const int place = job.y + min(g, job.z - 1);
    const elem* row = p.x + static_cast<int64_t>(p.tokens == nullptr ? place : p.tokens[place]) * p.x_stride + j * 8;
    float acc[2][2][4] = {};  // two chains a tile, for the latency of the products
    for (int from = first; from < last; from += S::AHEAD) {
        uint4 x[S::AHEAD][2];
#pragma unroll
        for (int i = 0; i < S::AHEAD; i++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                x[i][h] = *reinterpret_cast<const uint4*>(row + min(from + i, last - 1) * PIECE_K + h * 32);
#pragma unroll
        for (int i = 0; i < S::AHEAD; i++) {
            if (from + i >= last) break;
            unrolled<0, 2>([&]<int P>() {
#pragma unroll
                for (int t = 0; t < 2; t++) {
                    uint32_t a[2][4];
                    tiles.template operands<P>(words[i], from + i, t, a);
                    mma_16816(acc[t][0], a[0], x[i][P].x, x[i][P].y);
                    mma_16816(acc[t][1], a[1], x[i][P].z, x[i][P].w);
                }
            });
        }
        if (from + S::AHEAD < last) load(from + S::AHEAD);
    }
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[warp][t][2 * j + i % 2][g + 8 * (i / 2)] = acc[t][0][i] + acc[t][1][i];
    __syncthreads();

    const int columns = p.is_gated ? TILE_COLUMNS : 2 * TILE_COLUMNS;  // of the output, of a pair
    for (int i = threadIdx.x; i < block_pairs * columns * job.z; i += THREADS) {
        const int column = i % columns, of_block = i / columns % block_pairs, r = i / columns / block_pairs;
        const int out_pair = blockIdx.x * block_pairs + of_block;
        if (2 * out_pair >= p.n_tiles) continue;
        float y[2] = {};
        for (int k = 0; k < p.k_warps; k++) {
            const auto& of_warp = sums[of_block * p.k_warps + k];
            if (p.is_gated) y[0] += of_warp[0][r][column], y[1] += of_warp[1][r][column];
            else y[0] += of_warp[column / TILE_COLUMNS][r][column % TILE_COLUMNS];
        }
        const int64_t at = static_cast<int64_t>(job.y + r) * p.out_stride + out_pair * columns + column;
        if (p.is_gated) static_cast<elem*>(p.out)[at] = float_to_elem(silu(y[0]) * y[1]);
        else static_cast<float*>(p.out)[at] = y[0];
    }
}

// A ring of x in shared memory: [STAGES][MANY_ROWS][PIECE_K], 16-byte units of odd rows exchanged by halves, so that
// two rows of one unit lie in different banks.
struct GatheredRows {
    static constexpr int STAGES = 4, ROW_BYTES = PIECE_K * sizeof(elem), STAGE_BYTES = MANY_ROWS * ROW_BYTES;
    static constexpr int PER_THREAD = STAGE_BYTES / 16 / THREADS, UNITS = ROW_BYTES / 16;
    const elem* from[PER_THREAD];
    uint32_t to[PER_THREAD];

    DEVICE static int offset(int row, int unit) { return row * ROW_BYTES + (unit ^ (row & 1) << 2) * 16; }
    DEVICE GatheredRows(const ExpertLinearParams& p, const int4& job, uint32_t ring) {
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            const int row = threadIdx.x / UNITS + i * (THREADS / UNITS), unit = threadIdx.x % UNITS;
            const int place = job.y + min(row, job.z - 1);
            from[i] = p.x + static_cast<int64_t>(p.tokens == nullptr ? place : p.tokens[place]) * p.x_stride + unit * 8;
            to[i] = ring + offset(row, unit);
        }
    }
    DEVICE void copy(int piece, bool is_wanted) const {
        const int stage = piece % STAGES;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) copy_16(to[i] + stage * STAGE_BYTES, from[i] + piece * PIECE_K, is_wanted);
        copies_commit();
    }
};

template <class F>
DEVICE void many(const ExpertLinearParams& p) {
    using S = Pieces<F>;
    constexpr int N = MANY_ROWS / 8;
    __shared__ __align__(128) uint8_t ring[GatheredRows::STAGES * GatheredRows::STAGE_BYTES];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, j = lane & 3;
    const int pair = blockIdx.x * WARPS + warp, n_pieces = p.n_chunks * S::PER_CHUNK;
    if (p.is_gated) wait_for_previous();
    launch_dependents();
    const int4 job = __ldcg(p.jobs + blockIdx.y);
    const TilePair<F> tiles(p, job.x, min(2 * pair, p.n_tiles - 2));
    uint4 words[2][2][S::WORDS];
    if (job.z > 0) tiles.load(words[0], 0), tiles.touch_scales(0);
    if (!p.is_gated) wait_for_previous();
    if (job.z == 0) return;

    const GatheredRows rows(p, job, shared_address(ring));
    for (int s = 0; s < GatheredRows::STAGES - 1; s++) rows.copy(s, s < n_pieces);
    const int n_groups = (job.z + 7) / 8;  // of 8 rows
    float acc[2][N][4] = {};
    auto multiply = [&](const uint4 (&now)[2][S::WORDS], uint4 (&next)[2][S::WORDS], int piece) {
        if (piece + 1 < n_pieces) {
            tiles.load(next, piece + 1);
            if ((piece + 1) % S::PER_CHUNK == 0) tiles.touch_scales(piece + 1);
        }
        copies_wait<GatheredRows::STAGES - 2>();
        __syncthreads();  // the stage is there, and the one before it may be overwritten
        rows.copy(piece + GatheredRows::STAGES - 1, piece + GatheredRows::STAGES - 1 < n_pieces);
        const uint8_t* stage = ring + piece % GatheredRows::STAGES * GatheredRows::STAGE_BYTES;
        unrolled<0, 2>([&]<int P>() {
            uint32_t a[2][2][4];
#pragma unroll
            for (int t = 0; t < 2; t++) tiles.template operands<P>(now, piece, t, a[t]);
#pragma unroll
            for (int r = 0; r < N; r++) {
                if (r >= n_groups) break;
                const uint4 x = *reinterpret_cast<const uint4*>(stage + GatheredRows::offset(r * 8 + g, P * 4 + j));
#pragma unroll
                for (int t = 0; t < 2; t++) {
                    mma_16816(acc[t][r], a[t][0], x.x, x.y);
                    mma_16816(acc[t][r], a[t][1], x.z, x.w);
                }
            }
        });
    };
    for (int piece = 0; piece < n_pieces; piece += 2) {
        multiply(words[0], words[1], piece);
        if (piece + 1 < n_pieces) multiply(words[1], words[0], piece + 1);
    }

    if (2 * pair >= p.n_tiles) return;
#pragma unroll
    for (int r = 0; r < N; r++) {
        if (r >= n_groups) break;
        if (p.is_gated) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float y[2];
#pragma unroll
                for (int i = 0; i < 2; i++) y[i] = silu(acc[0][r][2 * h + i]) * acc[1][r][2 * h + i];
                // Now a lane has row g and columns 2j, 2j + 1.
                const uint32_t values = transposed(elem2_bits(floats_to_elem2(y[0], y[1])));
                elem* to = static_cast<elem*>(p.out) + static_cast<int64_t>(job.y + r * 8 + g) * p.out_stride;
                if (r * 8 + g < job.z)
                    *reinterpret_cast<uint32_t*>(to + pair * TILE_COLUMNS + 8 * h + 2 * j) = values;
            }
        } else {
#pragma unroll
            for (int t = 0; t < 2; t++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int row = r * 8 + 2 * j + i % 2, column = (2 * pair + t) * TILE_COLUMNS + g + 8 * (i / 2);
                    float* to = static_cast<float*>(p.out) + static_cast<int64_t>(job.y + row) * p.out_stride;
                    if (row < job.z) to[column] = acc[t][r][i];
                }
        }
    }
}

#define EXPERT_LINEAR(name, format)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) few_##name(const __grid_constant__ ExpertLinearParams p) {  \
        few<format>(p);                                                                                           \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, Pieces<format>::WORDS == 1 ? 2 : 1) many_##name(const __grid_constant__ ExpertLinearParams p) { \
        many<format>(p);                                                                                          \
    }

EXPERT_LINEAR(awq_g128, AwqFormat<1>)
EXPERT_LINEAR(awq_g64, AwqFormat<2>)
EXPERT_LINEAR(awq_g32, AwqFormat<4>)
#ifndef ELEMENT_BF16
EXPERT_LINEAR(min_g32, MinFormat)
EXPERT_LINEAR(bytes_g32, BytesG32Format)
EXPERT_LINEAR(bytes_g16, BytesG16Format)
EXPERT_LINEAR(bytes_min_g16, BytesMinG16Format)
EXPERT_LINEAR(fp8, Fp8Format)
#endif
EXPERT_LINEAR(half, HalfFormat)
