// y[place] = W[expert of the place] x[place]: a projection of the experts that have tokens. The matrices of all
// experts lie one after the other, each packed as for stream_linear.cu; jobs (routing.cu) say which places are whose.
//
// few: up to 8 places a job, for decode steps. The read of the weights is the limit, and which are read is known only
//   when the router has chosen. Blocks stay and take pairs of tiles of all jobs in turn; 8 warps share the k of a pair,
//   and the words of the next pair are in flight to shared memory while this one is multiplied. `down` knows its
//   jobs before gate and up have ended, and loads its first weights before griddepcontrol.wait. A pair's sums are
//   added in order of k.
// many: up to 64 places a job, for prompts. As mma.cu: two tiles a warp (gate and up together), words of the next
//   64 k in flight, x gathered by its places into a ring of 4 stages in shared memory.
//
// many dequantises weights and rounds them to elements, few where scales are not applied to sums. Same bits in every
// run: every output is computed by one block, in order of k.
// Bytes: the weights of the experts with tokens, once (many: once for 64 places). FLOPs: 2 places n k.
// Grid: few, as many blocks of 256 threads as fit; many, (columns / columns of a block, jobs), where a block without a
// job ends at once. Shared memory: few 72 KiB, many 32 KiB. Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "../stream_linear/epilogue.cuh"

constexpr int WARPS = 8, THREADS = WARPS * 32, WARP_SHIFT = 3;  // WARPS is two to WARP_SHIFT
constexpr int PIECE_K = 64;  // k that a lane's words of one load are for
constexpr int FEW_ROWS = 8, MANY_ROWS = 64;  // places of a job
// Blocks of `few` on a multiprocessor: as many as the registers of the format leave room for.
template <class F>
constexpr int FEW_BLOCKS = F::SUM_GROUPS > 4 ? 2 : 3;

struct ExpertLinearParams {
    const uint8_t* weights;  // [experts][n_tiles][n_chunks][CHUNK_BYTES]
    const uint8_t* scales;   // [experts][n_tiles][n_chunks][SCALE_BYTES]
    const elem* x;           // [.][x_stride]; columns from k to n_chunks * K are zero
    void* out;               // [places][out_stride]: elements of silu(gate) * up, or f32
    const int4* jobs;        // how many there are; then of each expert, first place, places, 0
    const int32_t* tokens;   // [places]: the row of x; null: the place
    int32_t x_stride, out_stride;
    int32_t n_tiles, n_chunks;  // of an expert; n_tiles is even
    int32_t k_shift;         // few: two to this many warps share the k of two tiles
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
    // The same into shared memory, this lane's WARP_BYTES apart.
    DEVICE void copy(uint32_t to, int piece) const {
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int i = 0; i < Pieces<F>::WORDS; i++)
                copy_16(to + (t * Pieces<F>::WORDS + i) * WARP_BYTES,
                        weights + t * second_weights + piece * Pieces<F>::BYTES + i * WARP_BYTES);
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
            // A group of 64 k and more is that of the whole piece.
            const int index = (piece % Pieces<F>::PER_CHUNK * 2 + (F::SCALE_K < PIECE_K ? P : 0)) * F::GROUPS / F::PAIRS;
            typename F::Group group;
            F::load_group(of_chunk, index, (threadIdx.x & 31) >> 2, group);
            F::scale_operands(a, group);
        }
    }

    // Adds the products of 64 k with 8 rows: x has this lane's 8 k of each 32. Where a format says how, scales and zeros
    // are applied to the sums, which takes a third of the instructions.
    DEVICE void multiply(float (&acc)[2][4], const uint4 (&words)[2][Pieces<F>::WORDS], const uint4 (&x)[2], int piece) const {
        if constexpr (F::SUM_GROUPS > 0) multiply_sums(acc, words, x, piece);
        else multiply_weights(acc, words, x, piece);
    }

private:
    DEVICE const uint8_t* scales_of(int piece, int t) const {
        return scales + t * second_scales + piece / Pieces<F>::PER_CHUNK * F::SCALE_BYTES;
    }
    DEVICE void multiply_sums(float (&acc)[2][4], const uint4 (&words)[2][Pieces<F>::WORDS], const uint4 (&x)[2], int piece) const {
        const uint32_t ones[4] = {ELEM2_ONES, ELEM2_ONES, ELEM2_ONES, ELEM2_ONES};
        constexpr int GROUP_PARTS = F::SCALE_K < PIECE_K ? 2 : 1;  // of a piece, which have scales of their own
        float part[2][2][4] = {}, of_x[2][4] = {};  // two chains each, for the latency of the products
        unrolled<0, 2>([&]<int P>() {
            mma_16816(of_x[0], ones, x[P].x, x[P].y);
            mma_16816(of_x[1], ones, x[P].z, x[P].w);
#pragma unroll
            for (int t = 0; t < 2; t++) {
                uint32_t a[2][4];
                F::template plus_sixteen<P>(words[t][0], a);
                mma_16816(part[t][0], a[0], x[P].x, x[P].y);
                mma_16816(part[t][1], a[1], x[P].z, x[P].w);
            }
            if constexpr ((P + 1) * GROUP_PARTS % 2 == 0) {
                const float2 sum = make_float2(of_x[0][0] + of_x[1][0], of_x[0][1] + of_x[1][1]);
                const int index = (piece % Pieces<F>::PER_CHUNK * 2 + P) * F::GROUPS / F::PAIRS;
#pragma unroll
                for (int t = 0; t < 2; t++) {
                    float of_group[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        of_group[i] = part[t][0][i] + part[t][1][i];
                        part[t][0][i] = part[t][1][i] = of_x[t][i] = 0.f;
                    }
                    F::group_of_sums(scales_of(piece, t), index, (threadIdx.x & 31) >> 2).add(acc[t], of_group, sum);
                }
            }
        });
    }
    DEVICE void multiply_weights(float (&acc)[2][4], const uint4 (&words)[2][Pieces<F>::WORDS], const uint4 (&x)[2], int piece) const {
        float part[2][2][4] = {};
        unrolled<0, 2>([&]<int P>() {
#pragma unroll
            for (int t = 0; t < 2; t++) {
                uint32_t a[2][4];
                operands<P>(words, piece, t, a);
                mma_16816(part[t][0], a[0], x[P].x, x[P].y);
                mma_16816(part[t][1], a[1], x[P].z, x[P].w);
            }
        });
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[t][i] += part[t][0][i] + part[t][1][i];
    }
};

// What a block of `few` does, step by step: up to AHEAD pieces of its share of k, of one job and one group of pairs of
// tiles after the other. A block's units are neighbours, so most are of one job, whose x stays in the L1.
struct Steps {
    int column, from;  // of this step: group of pairs, first piece
    int4 job;
    int units, n_columns, first, last, ahead;  // units: those left
    const int4* jobs;  // after this one

    DEVICE Steps(const ExpertLinearParams& p, int n_columns, int first, int last, int ahead)
        : from(first), n_columns(n_columns), first(first), last(last), ahead(ahead) {
        const int blocks = gridDim.x, block = blockIdx.x, all = __ldcg(p.jobs).x * n_columns;
        const int per_block = all / blocks, more = all % blocks;  // the first ones have one more
        const int begin = per_block * block + min(block, more);
        units = per_block + (block < more);
        jobs = p.jobs + 1 + begin / n_columns;
        column = begin % n_columns;
        to_job();
    }
    DEVICE bool is_there() const { return units > 0; }
    DEVICE bool is_last_of_unit() const { return from + ahead >= last; }
    DEVICE void next() {
        if ((from += ahead) < last) return;
        from = first, units--;
        if (++column < n_columns) return;
        column = 0;
        to_job();
    }

private:
    DEVICE void to_job() { job = is_there() ? __ldcg(jobs++) : make_int4(0, 0, 1, 0); }
};

// Adds the warps' sums of a unit in order of k, and stores them.
DEVICE void write_sums(const ExpertLinearParams& p, const float (&sums)[WARPS][2][FEW_ROWS][TILE_COLUMNS + 1],
                       const Steps& step) {
    constexpr int TILE_SHIFT = 4;
    static_assert(TILE_COLUMNS == 1 << TILE_SHIFT);
    const int shift = p.is_gated ? TILE_SHIFT : TILE_SHIFT + 1;  // columns of the output, of a pair
    const int block_pairs = WARPS >> p.k_shift, k_warps = 1 << p.k_shift;
    for (int i = threadIdx.x; i >> shift < block_pairs * step.job.z; i += THREADS) {
        const int column = i & ((1 << shift) - 1), of_block = i >> shift & (block_pairs - 1);
        const int r = i >> shift >> (WARP_SHIFT - p.k_shift);
        const int pair = step.column * block_pairs + of_block;
        if (2 * pair >= p.n_tiles) continue;
        const auto* of_warps = sums + (of_block << p.k_shift);
        float y[2] = {};
        for (int k = 0; k < k_warps; k++) {
            if (p.is_gated) y[0] += of_warps[k][0][r][column], y[1] += of_warps[k][1][r][column];
            else y[0] += of_warps[k][column >> TILE_SHIFT][r][column & (TILE_COLUMNS - 1)];
        }
        const int64_t at = static_cast<int64_t>(step.job.y + r) * p.out_stride + (pair << shift) + column;
        if (p.is_gated) static_cast<elem*>(p.out)[at] = float_to_elem(silu(y[0]) * y[1]);
        else static_cast<float*>(p.out)[at] = y[0];
    }
}

template <class F>
DEVICE void few(const ExpertLinearParams& p) {
    using S = Pieces<F>;
    constexpr int LANE_WORDS = 2 * S::WORDS;  // of 16 bytes, of a piece
    constexpr int STAGE_BYTES = S::AHEAD * LANE_WORDS * WARP_BYTES;
    extern __shared__ __align__(16) uint8_t smem[];  // [2][WARPS][STAGE_BYTES]
    __shared__ float sums[WARPS][2][FEW_ROWS][TILE_COLUMNS + 1];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, j = lane & 3;
    const int k_warp = warp & ((1 << p.k_shift) - 1), block_pairs = WARPS >> p.k_shift;
    const int n_pieces = p.n_chunks * S::PER_CHUNK;
    const int first = n_pieces * k_warp >> p.k_shift, last = n_pieces * (k_warp + 1) >> p.k_shift;
    // A lane multiplies exactly the words that it copies: no other thread waits for them.
    const uint8_t* own = smem + warp * STAGE_BYTES + lane * LANE_BYTES;
    auto stage_of = [&](int i) { return own + i % 2 * WARPS * STAGE_BYTES; };
    // Jobs are written two launches before `down`: the launch between them has waited before it let this one start.
    const bool knows_jobs = !p.is_gated;
    if (!knows_jobs) wait_for_previous();
    launch_dependents();
    // All warps of a block take as many steps, those with the shortest share of k as well.
    const int most = (n_pieces + (1 << p.k_shift) - 1) >> p.k_shift;
    Steps ahead(p, (p.n_tiles / 2 + block_pairs - 1) >> (WARP_SHIFT - p.k_shift), first, first + most, S::AHEAD);
    auto tiles_of = [&](const Steps& step) {
        const int pair = step.column * block_pairs + (warp >> p.k_shift);
        return TilePair<F>(p, step.job.x, min(2 * pair, p.n_tiles - 2));
    };
    // The words and scales of a step.
    auto load = [&](const Steps& step, const uint8_t* to) {
        if (step.is_there() && step.from < last) {
            const TilePair<F> tiles = tiles_of(step);
#pragma unroll
            for (int i = 0; i < S::AHEAD; i++)
                if (step.from + i < last) tiles.copy(shared_address(to + i * LANE_WORDS * WARP_BYTES), step.from + i);
            tiles.touch_scales(step.from);
            const int end = min(step.from + S::AHEAD, last) - 1;
            if (end / S::PER_CHUNK != step.from / S::PER_CHUNK) tiles.touch_scales(end);
        }
        copies_commit();
    };
    // This lane's row of x.
    auto row_of = [&](const Steps& step) {
        const int place = step.job.y + min(g, step.job.z - 1);
        return !step.is_there() ? 0 : p.tokens == nullptr ? place : p.tokens[place];
    };
    load(ahead, stage_of(0));
    if (knows_jobs) wait_for_previous();
    int next_row = row_of(ahead);
    float acc[2][4] = {};
    for (int i = 0; ahead.is_there(); i++) {
        const Steps now = ahead;
        const elem* row = p.x + static_cast<int64_t>(next_row) * p.x_stride + j * 8;
        ahead.next();
        load(ahead, stage_of(i + 1));
        if (now.is_last_of_unit()) next_row = row_of(ahead);
        const TilePair<F> tiles = tiles_of(now);
        uint4 x[2];
        auto load_x = [&](int piece) {
#pragma unroll
            for (int h = 0; h < 2; h++) x[h] = *reinterpret_cast<const uint4*>(row + piece * PIECE_K + h * 32);
        };
        if (now.from < last) load_x(now.from);
        copies_wait<1>();
#pragma unroll
        for (int s = 0; s < S::AHEAD; s++) {
            if (now.from + s >= last) break;
            const uint4 of_piece[2] = {x[0], x[1]};
            if (s + 1 < S::AHEAD && now.from + s + 1 < last) load_x(now.from + s + 1);
            uint4 words[2][S::WORDS];
#pragma unroll
            for (int w = 0; w < LANE_WORDS; w++)
                words[w / S::WORDS][w % S::WORDS] =
                    *reinterpret_cast<const uint4*>(stage_of(i) + (s * LANE_WORDS + w) * WARP_BYTES);
            tiles.multiply(acc, words, of_piece, now.from + s);
        }
        if (!now.is_last_of_unit()) continue;
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int v = 0; v < 4; v++) {
                sums[warp][t][2 * j + v % 2][g + 8 * (v / 2)] = acc[t][v];
                acc[t][v] = 0.f;
            }
        __syncthreads();
        write_sums(p, sums, now);
        __syncthreads();
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
    const int4 job = __ldcg(p.jobs + 1 + blockIdx.y);
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
    extern "C" __global__ void __launch_bounds__(THREADS, FEW_BLOCKS<format>) few_##name(const __grid_constant__ ExpertLinearParams p) {  \
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
