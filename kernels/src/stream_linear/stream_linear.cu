// y[m][n] = sum_k x[m][k] W[n][k]   for m <= 64: a step's decode rows against one weight matrix.
// From 17 rows on wgmma.cu and mma.cu are faster.
//
// At these sizes the product is bound by the read of W, so the kernel is built around that one stream:
//   * W lies in memory in the order in which the matrix instruction reads it (see repack.cu), in
//     chunks of 16 columns x 256 k (AWQ) or 64 k (16-bit), CHUNK_BYTES each. One bulk copy loads a
//     chunk. Every warp has its own ring in shared memory and waits for no other warp.
//   * W does not depend on the step: the rings are filled before griddepcontrol.wait, while the
//     previous kernel still computes.
//   * W is the A operand (16 columns per tile) and x the B operand (8 rows per tile): a packed word
//     becomes the four registers of A in seven instructions, and 1 to 8 rows cost the same.
//   * A cluster of S blocks shares a range of columns and splits K, so that a block keeps only
//     K/S of x in shared memory. The parts are added over the cluster in rank order, hence the
//     same bits in every run. Where even K/S of x is too large, the kernel loads it in several phases.
//   * A norm before or after the product is fused (../rms_norm/deferred.cuh).
//
// Bytes: W once (2128 B of AWQ per 16 x 256), x and y are noise. FLOPs: 2 m n k.
// Grid: S * G blocks of WARPS * 32 threads, cluster S. Shared memory: sized by the host.
// Architectures: sm_90, sm_120. Elements: f16, bf16. Profiles: sm_120.
// FasterTransformer's and Marlin's kernels have the idea of or-ing an integer into the mantissa of a
// power of two instead of converting it.
#include "../rms_norm/deferred.cuh"
#include "packed_weights.cuh"
#include "ring.cuh"

// Warps of a block, one block per SM; `RowBucket::n_warps` on the host has the same numbers. More warps
// hide the unpacking and keep more copies in flight. More rows need more registers per thread, hence
// fewer warps. A block of sm_120 has 99 KiB of shared memory; up to 8 rows 16 warps are faster even so
// (NOTES.md).
#ifdef FOR_SM_120
template <int ROWS>
constexpr int WARPS_OF = ROWS <= 8 ? 16 : ROWS <= 32 ? 8 : 4;
#else
template <int ROWS>
constexpr int WARPS_OF = ROWS <= 16 ? 16 : ROWS <= 32 ? 12 : 8;
#endif

// Padding between rows of x in shared memory, so that they begin in different banks.
constexpr int X_ROW_PAD_BYTES = 64;

struct StreamLinearParams {
    const uint8_t* weights;  // [n_tiles][n_chunks][CHUNK_BYTES]
    const uint8_t* scales;   // [n_tiles][n_chunks][SCALE_BYTES]: fp16 scales, then packed zeros
    const elem* x;           // [m][x_stride]; columns from k to n_chunks * K are zero
    void* out;               // by epilogue
    const elem* bias;        // [n] or null
    int32_t m;
    int32_t x_stride;      // at least n_chunks * K, a multiple of 8
    int32_t n;             // output columns
    int32_t n_tiles;
    int32_t n_chunks;
    int32_t n_stages;      // ring depth of a warp
    int32_t phase_chunks;  // chunks of x that are in shared memory at a time
    int32_t n_phases;
    DeferredNorm norm;
};

// Shared memory, in this order (`shared_bytes` of plan.rs computes the same sum):
//   barriers [1 + WARPS * n_stages] u64, to a multiple of 128
//   weights  [WARPS][n_stages][CHUNK_BYTES]
//   scales   [WARPS][n_stages][SCALE_BYTES]
//   x        [min(m, 8 N)][phase_chunks * K * 2 + X_ROW_PAD_BYTES]
//   sums     [phase_chunks * GROUPS][8 N] f32
//   factors  [8 N] f32: of rows, for a norm
//   slots    [tiles + WARPS][TILE_COLUMNS][m rounded up to 2] f32
//
// A block's work, the places of all of this, and the phases of the kernel, in the order in which they run.
template <class F, int N, Epilogue E>  // N: tiles of 8 rows
struct Block {
    static constexpr int WARPS = WARPS_OF<8 * N>;
    static constexpr int PAIR = E == Epilogue::SiluMul ? 2 : 1;  // SiLU needs gate and up together
    static constexpr int CHAINS = N == 1 ? 2 : 1;  // of one tile of rows two sums, for the latency of the products

    const StreamLinearParams& p;
    int lane, warp, g, j;
    int rank, ranks;
    int tile0, tiles;    // this cluster's columns
    int chunk0, chunks;  // this block's slice of K
    int phase_chunks;
    // Items of a phase, (tile, chunk) with the chunk inside; the last phase may lack some.
    int items, first, last;  // of the block; of this warp

    uint8_t *ring, *scale_ring;  // this warp's
    uint8_t* xs;
    int x_row, x_rows;  // bytes of a row, rows
    float *xsums, *factors, *slots;
    int m_even;
    uint32_t x_bar, bars;

    bool norm_reads, norm_writes;
    int per_tile;        // values of a tile that are written
    int share0, share1;  // the tiles that this rank writes, of the cluster's

    DEVICE Block(const StreamLinearParams& p, uint8_t* smem) : p(p) {
        lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, j = lane & 3;
        rank = cluster_rank(), ranks = cluster_size();
        const int cluster = blockIdx.x / ranks, clusters = gridDim.x / ranks;
        const int column_groups = p.n_tiles / PAIR;
        tile0 = column_groups * cluster / clusters * PAIR;
        tiles = column_groups * (cluster + 1) / clusters * PAIR - tile0;
        chunk0 = p.n_chunks * rank / ranks;
        chunks = p.n_chunks * (rank + 1) / ranks - chunk0;
        phase_chunks = p.phase_chunks;
        items = tiles * phase_chunks;
        first = items * warp / WARPS, last = items * (warp + 1) / WARPS;

        uint8_t* rings = smem + (BARRIER_BYTES + WARPS * p.n_stages * BARRIER_BYTES + 127) / 128 * 128;
        ring = rings + warp * p.n_stages * CHUNK_BYTES;
        uint8_t* scale_rings = rings + WARPS * p.n_stages * CHUNK_BYTES;
        scale_ring = scale_rings + warp * p.n_stages * F::SCALE_BYTES;
        xs = scale_rings + WARPS * p.n_stages * F::SCALE_BYTES;
        x_row = phase_chunks * F::K * 2 + X_ROW_PAD_BYTES;
        x_rows = min(p.m, 8 * N);
        xsums = reinterpret_cast<float*>(xs + x_rows * x_row);
        factors = xsums + phase_chunks * F::GROUPS * 8 * N;
        slots = factors + 8 * N;
        m_even = (p.m + 1) & ~1;
        x_bar = shared_address(smem);
        bars = x_bar + BARRIER_BYTES + warp * p.n_stages * BARRIER_BYTES;

        norm_reads = p.norm.role == NORM_READS, norm_writes = p.norm.role == NORM_WRITES;
        per_tile = TILE_COLUMNS * p.m;
        share0 = tiles / PAIR * rank / ranks, share1 = tiles / PAIR * (rank + 1) / ranks;
    }

    DEVICE void clear_slots() {
        for (int i = threadIdx.x; i < (tiles + WARPS) * TILE_COLUMNS * m_even; i += WARPS * 32) slots[i] = 0.f;
    }

    // For a norm, what sums are multiplied by, or the scale of the x that is written.
    DEVICE void load_factors() {
        if (threadIdx.x < x_rows && (norm_reads || norm_writes))
            factors[threadIdx.x] =
                norm_reads ? factor_of_row(p.norm, threadIdx.x, blockIdx.x == 0) : p.norm.state.scale[threadIdx.x];
    }

    // Loads a phase's columns of x. Returns the bytes of a row.
    DEVICE int load_x(int phase) {
        const int x_bytes = min(phase_chunks, chunks - phase * phase_chunks) * F::K * 2;
        if (threadIdx.x == 0) barrier_expect(x_bar, x_rows * x_bytes);
        if (warp == 0) {
            __syncwarp();
            const elem* from = p.x + (chunk0 + phase * phase_chunks) * F::K;
            for (int row = lane; row < x_rows && x_bytes > 0; row += 32)
                bulk_copy(shared_address(xs + row * x_row), from + static_cast<int64_t>(row) * p.x_stride, x_bytes, x_bar);
        }
        barrier_wait(x_bar, phase & 1);
        return x_bytes;
    }

    // The groups' sums of x, as products with a matrix of ones.
    DEVICE void sum_groups(int x_bytes, const int (&x_offset)[N]) {
        const uint32_t ones[4] = {ELEM2_ONES, ELEM2_ONES, ELEM2_ONES, ELEM2_ONES};
        constexpr int PER_GROUP = F::PAIRS / F::GROUPS;
        for (int i = warp; i < x_bytes / (F::K * 2) * F::GROUPS; i += WARPS) {
#pragma unroll
            for (int t = 0; t < N; t++) {
                float sum[2][4] = {};
#pragma unroll
                for (int v = 0; v < PER_GROUP; v++) {
                    const uint4 x = *reinterpret_cast<const uint4*>(xs + x_offset[t] + (i * PER_GROUP + v) * 64);
                    mma_16816(sum[0], ones, x.x, x.y);
                    mma_16816(sum[1], ones, x.z, x.w);
                }
                if (g == 0)
                    *reinterpret_cast<float2*>(xsums + (i * N + t) * 8 + 2 * j) =
                        make_float2(sum[0][0] + sum[1][0], sum[0][1] + sum[1][1]);
            }
        }
    }

    // Adds the products of a quantisation group, with its scale and zero point, and clears them.
    // `sums`: the group's sums of x.
    DEVICE void add_group(float (&acc)[N][4], float (&part)[N][CHAINS][4], const uint8_t* scales, const float* sums,
                          int index) {
        float2 scale, zero;
        F::group(scales, index, g, scale, zero);
#pragma unroll
        for (int t = 0; t < N; t++) {
            const float2 sum = *reinterpret_cast<const float2*>(sums + (index * N + t) * 8);
            float of_group[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                of_group[i] = part[t][0][i];
                if constexpr (CHAINS > 1) of_group[i] += part[t][1][i];
#pragma unroll
                for (int c = 0; c < CHAINS; c++) part[t][c][i] = 0.f;
            }
            acc[t][0] += scale.x * (of_group[0] - zero.x * sum.x);
            acc[t][1] += scale.x * (of_group[1] - zero.x * sum.y);
            acc[t][2] += scale.y * (of_group[2] - zero.y * sum.x);
            acc[t][3] += scale.y * (of_group[3] - zero.y * sum.y);
        }
    }

    // Adds the products of the chunk of weights in `stage` with chunk `chunk` of x.
    DEVICE void multiply(float (&acc)[N][4], int stage, int chunk, const int (&x_offset)[N]) {
        const uint8_t* data = ring + stage * CHUNK_BYTES;
        const uint8_t* scales = scale_ring + stage * F::SCALE_BYTES;
        const uint8_t* x_chunk = xs + chunk * F::K * 2;
        const float* sums = xsums + chunk * F::GROUPS * 8 * N + 2 * j;
        float part[N][CHAINS][4] = {};
        uint4 words;
        // Unrolled in full, formats of many groups load more ahead than there are registers.
        constexpr int STEP = F::GROUPS > 2 && N >= 4 ? 2 : F::PAIRS;
#pragma unroll 1
        for (int from = 0; from < F::PAIRS; from += STEP) {
            unrolled<0, STEP>([&]<int P>() {
                uint32_t a[2][4];
                F::template weights<P>(data + from / 2 * WARP_BYTES, lane, words, a);
#pragma unroll
                for (int t = 0; t < N; t++) {
                    const uint4 x = *reinterpret_cast<const uint4*>(x_chunk + x_offset[t] + (from + P) * 64);
                    mma_16816(part[t][0], a[0], x.x, x.y);
                    mma_16816(part[t][CHAINS - 1], a[1], x.z, x.w);
                }
                if constexpr (F::GROUPS > 0) {
                    constexpr int PER_GROUP = F::PAIRS / F::GROUPS;
                    if constexpr ((P + 1) % PER_GROUP == 0) add_group(acc, part, scales, sums, (from + P) / PER_GROUP);
                }
            });
        }
        if constexpr (F::GROUPS == 0) {
#pragma unroll
            for (int t = 0; t < N; t++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int c = 0; c < CHAINS; c++) acc[t][i] += part[t][c][i];
        }
    }

    // Adds this warp's sums of a tile to its slot, and clears them.
    DEVICE void add_to_slot(float (&acc)[N][4], int tile) {
        float* slot = slots + (tile + warp) * TILE_COLUMNS * m_even + 2 * j;
#pragma unroll
        for (int t = 0; t < N; t++) {
            if (t * 8 + 2 * j < p.m) {
                float2* lo = reinterpret_cast<float2*>(slot + g * m_even + t * 8);
                float2* hi = reinterpret_cast<float2*>(slot + (g + 8) * m_even + t * 8);
                *lo = make_float2(lo->x + acc[t][0], lo->y + acc[t][1]);
                *hi = make_float2(hi->x + acc[t][2], hi->y + acc[t][3]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) acc[t][i] = 0.f;
        }
    }

    DEVICE int warp_of(int item) const {  // the w with items * w / WARPS <= item < items * (w + 1) / WARPS
        return (WARPS * (item + 1) - 1) / items;
    }
    // The sum over ranks and warps, in that order. The warps of a tile are those of its first to its
    // last item, the same in every rank.
    DEVICE float reduce(int t, int e) const {
        int w0 = warp_of(t * phase_chunks), w1 = warp_of((t + 1) * phase_chunks - 1);
        float sum = 0.f;
        for (int r = 0; r < ranks; r++)
            for (int w = w0; w <= w1; w++) {
                const float* at = slots + (t + w) * TILE_COLUMNS * m_even + e;
                sum += r == rank ? *at : cluster_load(shared_address(at), r);
            }
        return sum;
    }

    DEVICE int64_t out_index(int i) const {  // of value i of this rank's share, -1 beyond n
        const int row = i % per_tile / TILE_COLUMNS;
        const int column = (tile0 / PAIR + share0 + i / per_tile) * TILE_COLUMNS + i % TILE_COLUMNS;
        return column < p.n ? static_cast<int64_t>(row) * p.n + column : -1;
    }
    // Of value `at` of the output, or 0 beyond n: the residual, and the weight of the norm that follows.
    DEVICE float residual_at(int64_t at) const { return at >= 0 ? static_cast<const float*>(p.out)[at] : 0.f; }
    DEVICE float norm_weight_at(int64_t at) const {
        return at >= 0 && norm_writes ? elem_to_float(p.norm.weight[at % p.n]) : 0.f;
    }

    // Value i of this rank's share. The 16 lanes of a row of a tile call this together.
    DEVICE void write_result(int i, float residual, float norm_weight) const {
        const int64_t at = out_index(i);
        const int row = i % per_tile / TILE_COLUMNS;
        if constexpr (E != Epilogue::AddResidual) {
            if (at < 0) return;
        }
        const int t = (share0 + i / per_tile) * PAIR, e = i % TILE_COLUMNS * m_even + row;
        float y = reduce(t, e);
        if constexpr (E == Epilogue::SiluMul) {
            const float factor = norm_reads ? factors[row] : 1.f;
            y *= factor;
            y = silu(y) * (reduce(t + 1, e) * factor);
        }
        if constexpr (E == Epilogue::Store) y *= norm_reads ? factors[row] : 1.f;
        if (at >= 0 && p.bias != nullptr) y += elem_to_float(p.bias[at % p.n]);
        if constexpr (E == Epilogue::AddResidual) {
            const float h = residual + y;
            if (at >= 0) static_cast<float*>(p.out)[at] = h;
            if (!norm_writes) return;
            write_norm(i, row, at, h, norm_weight);
        } else if constexpr (E == Epilogue::StoreF32) {
            static_cast<float*>(p.out)[at] = y;
        } else {
            static_cast<elem*>(p.out)[at] = float_to_elem(y);
        }
    }
    // x of the projection that follows, and the row's sum of squares (../rms_norm/deferred.cuh).
    DEVICE void write_norm(int i, int row, int64_t at, float h, float weight) const {
        const int column = (tile0 + share0 + i / per_tile) * TILE_COLUMNS + i % TILE_COLUMNS;
        if (at >= 0)
            p.norm.x[activation_at(row, column, p.norm.x_stride, p.norm.x_tile_rows)] = norm_x(h, factors[row], weight);
        float square = at >= 0 ? norm_square(h, factors[row]) : 0.f;
#pragma unroll
        for (int d = 8; d > 0; d /= 2) square += __shfl_xor_sync(0xffffu << (lane & 16), square, d);
        if (i % TILE_COLUMNS == 0) add_squares(p.norm, row, square);
    }
};

// Loads weights into a warp's ring: the same items that the warp multiplies, n_stages ahead. Lane 0 only.
template <class F, int N, Epilogue E>
struct WeightFetcher {
    const Block<F, N, E>& block;
    uint64_t policy;
    int64_t tile_base;
    int phase = 0, item, tile, chunk;

    DEVICE explicit WeightFetcher(const Block<F, N, E>& block) : block(block) {
        policy = evict_first_policy();
        tile_base = static_cast<int64_t>(block.tile0) * block.p.n_chunks + block.chunk0;
        start_phase();
    }
    DEVICE void start_phase() {
        item = block.first, tile = block.first / block.phase_chunks, chunk = block.first % block.phase_chunks;
    }
    // The next existing item into `stage`.
    DEVICE void fetch(int stage) {
        const StreamLinearParams& p = block.p;
        while (phase < p.n_phases) {
            if (item == block.last) {
                phase++;
                start_phase();
                if (block.first == block.last) return;
                continue;
            }
            const int k_chunk = phase * block.phase_chunks + chunk;
            const int64_t index = tile_base + static_cast<int64_t>(tile) * p.n_chunks + k_chunk;
            item++;
            if (++chunk == block.phase_chunks) chunk = 0, tile++;
            if (k_chunk >= block.chunks) continue;
            const uint32_t bar = barrier_of(block.bars, stage);
            barrier_expect(bar, CHUNK_BYTES + F::SCALE_BYTES);
            bulk_copy(shared_address(block.ring + stage * CHUNK_BYTES), p.weights + index * CHUNK_BYTES, CHUNK_BYTES, bar,
                      policy);
            if constexpr (F::SCALE_BYTES > 0)
                bulk_copy(shared_address(block.scale_ring + stage * F::SCALE_BYTES), p.scales + index * F::SCALE_BYTES,
                          F::SCALE_BYTES, bar, policy);
            return;
        }
    }
};

template <class F, int N, Epilogue E>
DEVICE void stream_linear(const StreamLinearParams& p) {
    constexpr int WARPS = WARPS_OF<8 * N>, THREADS = WARPS * 32;
    extern __shared__ __align__(128) uint8_t smem[];
    Block<F, N, E> block(p, smem);
    launch_dependents();

    WeightFetcher<F, N, E> weights(block);
    if (block.lane == 0) {
        if (block.warp == 0) barrier_init(block.x_bar, 1);
        init_barriers(block.bars, p.n_stages, 1);
        barrier_init_fence();
        for (int s = 0; s < p.n_stages; s++) weights.fetch(s);
    }
    block.clear_slots();
    __syncthreads();  // the barriers exist

    // From here on the activations are needed.
    wait_for_previous();

    block.load_factors();
    // The residual that the sums are added to, read now rather than at the end.
    const int values = (block.share1 - block.share0) * block.per_tile;
    constexpr int EARLY = 2;
    float residual[EARLY], norm_weight[EARLY];
    if constexpr (E == Epilogue::AddResidual) {
#pragma unroll
        for (int i = 0; i < EARLY; i++) {
            const int v = i * THREADS + threadIdx.x;
            const int64_t at = v < values ? block.out_index(v) : -1;
            residual[i] = block.residual_at(at);
            norm_weight[i] = block.norm_weight_at(at);
        }
    }

    int x_offset[N];
#pragma unroll
    for (int t = 0; t < N; t++) x_offset[t] = min(t * 8 + block.g, block.x_rows - 1) * block.x_row + block.j * 16;

    RingPlace place(RingPlace::READER);
    for (int phase = 0; phase < p.n_phases; phase++) {
        if (phase > 0) __syncthreads();
        const int x_bytes = block.load_x(phase);
        if constexpr (F::GROUPS > 0) block.sum_groups(x_bytes, x_offset);
        __syncthreads();

        float acc[N][4] = {};
        int tile = block.first / block.phase_chunks, chunk = block.first % block.phase_chunks;
        for (int item = block.first; item < block.last; item++) {
            if (phase * block.phase_chunks + chunk < block.chunks) {
                barrier_wait(barrier_of(block.bars, place.stage), place.parity);
                block.multiply(acc, place.stage, chunk, x_offset);
                __syncwarp();
                if (block.lane == 0) weights.fetch(place.stage);
                place.step(p.n_stages);
            }
            if (++chunk == block.phase_chunks || item + 1 == block.last) {
                block.add_to_slot(acc, tile);
                chunk = 0;
                ++tile;
            }
        }
    }
    if (block.ranks > 1) cluster_sync(); else __syncthreads();

    // Every rank finishes its share of the tiles.
#pragma unroll
    for (int i = 0; i < EARLY; i++) {
        const int v = i * THREADS + threadIdx.x;
        if (v < values) block.write_result(v, residual[i], norm_weight[i]);
    }
    for (int v = EARLY * THREADS + threadIdx.x; v < values; v += THREADS) {
        const int64_t at = E == Epilogue::AddResidual ? block.out_index(v) : -1;
        block.write_result(v, block.residual_at(at), block.norm_weight_at(at));
    }
    if (block.ranks > 1) cluster_sync();  // a block must not leave while its sums may still be read
}

#define STREAM_LINEAR(name, format, rows, epilogue)                                                \
    extern "C" __global__ void __launch_bounds__(WARPS_OF<rows> * 32, 1) name##_##rows(                     \
        const __grid_constant__ StreamLinearParams p) {                                            \
        stream_linear<format, rows / 8, Epilogue::epilogue>(p);                                    \
    }
#define STREAM_LINEAR_ROWS(name, format, epilogue) \
    STREAM_LINEAR(name, format, 8, epilogue)       \
    STREAM_LINEAR(name, format, 16, epilogue)      \
    STREAM_LINEAR(name, format, 32, epilogue)      \
    STREAM_LINEAR(name, format, 64, epilogue)
#define STREAM_LINEAR_FORMAT(prefix, format)                          \
    STREAM_LINEAR_ROWS(prefix##_store, format, Store)                 \
    STREAM_LINEAR_ROWS(prefix##_add_residual, format, AddResidual)    \
    STREAM_LINEAR_ROWS(prefix##_silu_mul, format, SiluMul)            \
    STREAM_LINEAR_ROWS(prefix##_store_f32, format, StoreF32)

STREAM_LINEAR_FORMAT(stream_awq_g128, AwqFormat<1>)
#ifndef STREAM_ONLY_G128
STREAM_LINEAR_FORMAT(stream_awq_g64, AwqFormat<2>)
STREAM_LINEAR_FORMAT(stream_awq_g32, AwqFormat<4>)
#endif
STREAM_LINEAR_FORMAT(stream_half, HalfFormat)
