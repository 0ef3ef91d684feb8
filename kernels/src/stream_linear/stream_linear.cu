// y[m][n] = sum_k x[m][k] W[n][k]   for m <= 64: a step's decode rows against one weight matrix.
// From 9 rows on wgmma.cu and mma.cu are faster, as a rule.
//
// At these sizes the product is bound by the read of W, so the kernel is built around that one stream:
//   * W lies in memory in the order in which the matrix instruction reads it (see repack.cu), in
//     chunks of 16 columns x 256 k (4 bits), 128 k (8) or 64 k (16), CHUNK_BYTES each. One bulk copy loads a
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
    const uint8_t* scales;   // [n_tiles][n_chunks][SCALE_BYTES] (weight_layout.cuh)
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
//   sums     [phase_chunks * SUM_GROUPS][8 N] f32
//   factors  [8 N] f32: of rows, for a norm
//   slots    [tiles + WARPS][TILE_COLUMNS][m rounded up to 2] f32
//
// In phases, with the block's places in a structure, this function was 1 % slower (NOTES.md).
template <class F, int N, Epilogue E>  // N: tiles of 8 rows
DEVICE void stream_linear(const StreamLinearParams& p) {
    constexpr int WARPS = WARPS_OF<8 * N>;
    extern __shared__ __align__(128) uint8_t smem[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int g = lane >> 2, j = lane & 3;
    const int rank = cluster_rank(), ranks = cluster_size();
    const int cluster = blockIdx.x / ranks, clusters = gridDim.x / ranks;

    // This cluster's columns and this block's slice of K. SiLU needs gate and up together.
    constexpr int PAIR = E == Epilogue::SiluMul ? 2 : 1;
    const int column_groups = p.n_tiles / PAIR;
    const int tile0 = column_groups * cluster / clusters * PAIR;
    const int tiles = column_groups * (cluster + 1) / clusters * PAIR - tile0;
    const int chunk0 = p.n_chunks * rank / ranks;
    const int chunks = p.n_chunks * (rank + 1) / ranks - chunk0;
    // Items of a phase, (tile, chunk) with the chunk inside; the last phase may lack some.
    const int phase_chunks = p.phase_chunks;
    const int items = tiles * phase_chunks;
    const int first = items * warp / WARPS, last = items * (warp + 1) / WARPS;

    uint8_t* rings = smem + (8 + WARPS * p.n_stages * 8 + 127) / 128 * 128;
    uint8_t* ring = rings + warp * p.n_stages * CHUNK_BYTES;
    uint8_t* scale_rings = rings + WARPS * p.n_stages * CHUNK_BYTES;
    uint8_t* scale_ring = scale_rings + warp * p.n_stages * F::SCALE_BYTES;
    uint8_t* xs = scale_rings + WARPS * p.n_stages * F::SCALE_BYTES;
    const int x_row = phase_chunks * F::K * 2 + X_ROW_PAD_BYTES;
    const int x_rows = min(p.m, 8 * N);
    float* xsums = reinterpret_cast<float*>(xs + x_rows * x_row);
    float* factors = xsums + phase_chunks * F::SUM_GROUPS * 8 * N;
    float* slots = factors + 8 * N;
    const int m_even = (p.m + 1) & ~1;
    const uint32_t x_bar = shared_address(smem);
    const uint32_t bars = x_bar + 8 + warp * p.n_stages * 8;

    launch_dependents();

    // The producer goes through the same items as the consumer, n_stages ahead; lane 0 only.
    const uint64_t policy = evict_first_policy();
    const int64_t tile_base = static_cast<int64_t>(tile0) * p.n_chunks + chunk0;
    int put_phase = 0, put_item = first, put_tile = first / phase_chunks, put_chunk = first % phase_chunks;
    auto produce = [&](int stage) {  // the next existing item into `stage`
        while (put_phase < p.n_phases) {
            if (put_item == last) {
                put_phase++;
                put_item = first, put_tile = first / phase_chunks, put_chunk = first % phase_chunks;
                if (first == last) return;
                continue;
            }
            const int chunk = put_phase * phase_chunks + put_chunk;
            const int64_t index = tile_base + static_cast<int64_t>(put_tile) * p.n_chunks + chunk;
            put_item++;
            if (++put_chunk == phase_chunks) put_chunk = 0, put_tile++;
            if (chunk >= chunks) continue;
            const uint32_t bar = bars + stage * 8;
            barrier_expect(bar, CHUNK_BYTES + F::SCALE_BYTES);
            bulk_copy(shared_address(ring + stage * CHUNK_BYTES), p.weights + index * CHUNK_BYTES, CHUNK_BYTES, bar, policy);
            if constexpr (F::SCALE_BYTES > 0)
                bulk_copy(shared_address(scale_ring + stage * F::SCALE_BYTES), p.scales + index * F::SCALE_BYTES,
                          F::SCALE_BYTES, bar, policy);
            return;
        }
    };
    if (lane == 0) {
        if (warp == 0) barrier_init(x_bar, 1);
        for (int s = 0; s < p.n_stages; s++) barrier_init(bars + s * 8, 1);
        barrier_init_fence();
        for (int s = 0; s < p.n_stages; s++) produce(s);
    }
    for (int i = threadIdx.x; i < (tiles + WARPS) * TILE_COLUMNS * m_even; i += WARPS * 32) slots[i] = 0.f;

    __syncthreads();  // the barriers exist

    // From here on the activations are needed.
    wait_for_previous();

    // The residual that the sums are added to, read now rather than at the end.
    const bool norm_reads = p.norm.role == NORM_READS, norm_writes = p.norm.role == NORM_WRITES;
    const int per_tile = TILE_COLUMNS * p.m;
    const int share0 = tiles / PAIR * rank / ranks, share1 = tiles / PAIR * (rank + 1) / ranks;
    auto out_index = [&](int i) {  // of value i of this rank's share, -1 beyond n
        const int row = i % per_tile / TILE_COLUMNS;
        const int column = (tile0 / PAIR + share0 + i / per_tile) * TILE_COLUMNS + i % TILE_COLUMNS;
        return column < p.n ? static_cast<int64_t>(row) * p.n + column : -1;
    };
    constexpr int EARLY = 2;
    float residual[EARLY], norm_weight[EARLY];
    // For the norm: what sums are multiplied by, or the scale of the x that is written.
    if (threadIdx.x < x_rows && (norm_reads || norm_writes))
        factors[threadIdx.x] =
            norm_reads ? factor_of_row(p.norm, threadIdx.x, blockIdx.x == 0) : p.norm.state.scale[threadIdx.x];
    if constexpr (E == Epilogue::AddResidual) {
#pragma unroll
        for (int i = 0; i < EARLY; i++) {
            const int v = i * WARPS * 32 + threadIdx.x;
            const int64_t at = v < (share1 - share0) * per_tile ? out_index(v) : -1;
            residual[i] = at >= 0 ? static_cast<const float*>(p.out)[at] : 0.f;
            norm_weight[i] = at >= 0 && norm_writes ? elem_to_float(p.norm.weight[at % p.n]) : 0.f;
        }
    }

    int x_offset[N];
#pragma unroll
    for (int t = 0; t < N; t++) x_offset[t] = min(t * 8 + g, x_rows - 1) * x_row + j * 16;

    int stage = 0, parity = 0;
    for (int phase = 0; phase < p.n_phases; phase++) {
        if (phase > 0) __syncthreads();
        const int x_bytes = min(phase_chunks, chunks - phase * phase_chunks) * F::K * 2;
        if (threadIdx.x == 0) barrier_expect(x_bar, x_rows * x_bytes);
        if (warp == 0) {
            __syncwarp();
            const elem* from = p.x + (chunk0 + phase * phase_chunks) * F::K;
            for (int row = lane; row < x_rows && x_bytes > 0; row += 32)
                bulk_copy(shared_address(xs + row * x_row), from + static_cast<int64_t>(row) * p.x_stride, x_bytes, x_bar);
        }
        barrier_wait(x_bar, phase & 1);
        if constexpr (F::SUM_GROUPS > 0) {
            // The groups' sums of x, as products with a matrix of ones.
            const uint32_t ones[4] = {ELEM2_ONES, ELEM2_ONES, ELEM2_ONES, ELEM2_ONES};
            constexpr int PER_GROUP = F::PAIRS / F::SUM_GROUPS;
            for (int i = warp; i < x_bytes / (F::K * 2) * F::SUM_GROUPS; i += WARPS) {
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
        __syncthreads();

        float acc[N][4] = {};
        int tile = first / phase_chunks, chunk = first % phase_chunks;
        for (int item = first; item < last; item++) {
            if (phase * phase_chunks + chunk < chunks) {
                barrier_wait(bars + stage * 8, parity);
                const uint8_t* data = ring + stage * CHUNK_BYTES;
                const uint8_t* scales = scale_ring + stage * F::SCALE_BYTES;
                const uint8_t* x_chunk = xs + chunk * F::K * 2;
                const float* sums = xsums + chunk * F::SUM_GROUPS * 8 * N + 2 * j;
                // Of one tile of rows two sums, for the latency of the products.
                constexpr int CHAINS = N == 1 ? 2 : 1;
                float part[N][CHAINS][4] = {};
                uint4 words;
                // Unrolled in full, formats of many groups load more ahead than there are registers.
                constexpr int STEP = F::SUM_GROUPS > 2 && N >= 4 ? 2 : F::PAIRS;
#pragma unroll 1
                for (int from = 0; from < F::PAIRS; from += STEP) {
                    unrolled<0, STEP>([&]<int P>() {
                        uint32_t a[2][4];
                        F::template weights<P>(data + from / 2 * WARP_BYTES, scales, lane, words, a);
#pragma unroll
                        for (int t = 0; t < N; t++) {
                            const uint4 x = *reinterpret_cast<const uint4*>(x_chunk + x_offset[t] + (from + P) * 64);
                            mma_16816(part[t][0], a[0], x.x, x.y);
                            mma_16816(part[t][CHAINS - 1], a[1], x.z, x.w);
                        }
                        if constexpr (F::SUM_GROUPS > 0) {
                            constexpr int PER_GROUP = F::PAIRS / F::SUM_GROUPS;
                            if constexpr ((P + 1) % PER_GROUP == 0) {
                                const int index = (from + P) / PER_GROUP;
                                const auto group = F::group_of_sums(scales, index, g);
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
                                    group.add(acc[t], of_group, sum);
                                }
                            }
                        }
                    });
                }
                if constexpr (F::SUM_GROUPS == 0) {
#pragma unroll
                    for (int t = 0; t < N; t++)
#pragma unroll
                        for (int i = 0; i < 4; i++)
#pragma unroll
                            for (int c = 0; c < CHAINS; c++) acc[t][i] += part[t][c][i];
                }
                __syncwarp();
                if (lane == 0) produce(stage);
                if (++stage == p.n_stages) stage = 0, parity ^= 1;
            }
            if (++chunk == phase_chunks || item + 1 == last) {
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
                chunk = 0;
                ++tile;
            }
        }
    }
    if (ranks > 1) cluster_sync(); else __syncthreads();

    // The sum over ranks and warps, in that order; every rank finishes its share of the tiles. The
    // warps of a tile are those of its first to its last item, the same in every rank.
    auto warp_of = [&](int item) {  // the w with items * w / WARPS <= item < items * (w + 1) / WARPS
        return (WARPS * (item + 1) - 1) / items;
    };
    auto value_of = [&](int t, int e) {
        int w0 = warp_of(t * phase_chunks), w1 = warp_of((t + 1) * phase_chunks - 1);
        float sum = 0.f;
        for (int r = 0; r < ranks; r++)
            for (int w = w0; w <= w1; w++) {
                const float* at = slots + (t + w) * TILE_COLUMNS * m_even + e;
                sum += r == rank ? *at : cluster_load(shared_address(at), r);
            }
        return sum;
    };
    // The 16 lanes of a row of a tile call this together.
    auto finish = [&](int i, float prior, float weight) {
        const int64_t at = out_index(i);
        const int row = i % per_tile / TILE_COLUMNS;
        if constexpr (E != Epilogue::AddResidual) {
            if (at < 0) return;
        }
        const int t = (share0 + i / per_tile) * PAIR, e = i % TILE_COLUMNS * m_even + row;
        float y = value_of(t, e);
        if constexpr (E == Epilogue::SiluMul) {
            const float factor = norm_reads ? factors[row] : 1.f;
            y *= factor;
            y = y / (1.f + __expf(-y)) * (value_of(t + 1, e) * factor);
        }
        if constexpr (E == Epilogue::Store) y *= norm_reads ? factors[row] : 1.f;
        if (at >= 0 && p.bias != nullptr) y += elem_to_float(p.bias[at % p.n]);
        if constexpr (E == Epilogue::AddResidual) {
            const float h = prior + y;
            if (at >= 0) static_cast<float*>(p.out)[at] = h;
            if (!norm_writes) return;
            const int column = (tile0 + share0 + i / per_tile) * TILE_COLUMNS + i % TILE_COLUMNS;
            if (at >= 0)
                p.norm.x[activation_at(row, column, p.norm.x_stride, p.norm.x_tile_rows)] =
                    norm_x(h, factors[row], weight);
            float square = at >= 0 ? norm_square(h, factors[row]) : 0.f;
#pragma unroll
            for (int d = 8; d > 0; d /= 2) square += __shfl_xor_sync(0xffffu << (lane & 16), square, d);
            if (i % TILE_COLUMNS == 0) add_squares(p.norm, row, square);
        } else if constexpr (E == Epilogue::StoreF32) {
            static_cast<float*>(p.out)[at] = y;
        } else {
            static_cast<elem*>(p.out)[at] = float_to_elem(y);
        }
    };
    const int values = (share1 - share0) * per_tile;
#pragma unroll
    for (int i = 0; i < EARLY; i++) {
        const int v = i * WARPS * 32 + threadIdx.x;
        if (v < values) finish(v, residual[i], norm_weight[i]);
    }
    for (int v = EARLY * WARPS * 32 + threadIdx.x; v < values; v += WARPS * 32) {
        const int64_t at = E == Epilogue::AddResidual ? out_index(v) : -1;
        finish(v, at >= 0 ? static_cast<const float*>(p.out)[at] : 0.f,
               at >= 0 && norm_writes ? elem_to_float(p.norm.weight[at % p.n]) : 0.f);
    }
    if (ranks > 1) cluster_sync();  // a block must not leave while its sums may still be read
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
// Formats of GGUF and FP8 have the variants that are chosen: fp16, up to 16 rows (`Format::max_stream_rows`).
#define STREAM_LINEAR_FEW_ROWS(name, format, epilogue) \
    STREAM_LINEAR(name, format, 8, epilogue)           \
    STREAM_LINEAR(name, format, 16, epilogue)
#define STREAM_LINEAR_FEW(prefix, format)                             \
    STREAM_LINEAR_FEW_ROWS(prefix##_store, format, Store)             \
    STREAM_LINEAR_FEW_ROWS(prefix##_add_residual, format, AddResidual) \
    STREAM_LINEAR_FEW_ROWS(prefix##_silu_mul, format, SiluMul)        \
    STREAM_LINEAR_FEW_ROWS(prefix##_store_f32, format, StoreF32)
#define STREAM_LINEAR_FORMAT(prefix, format)                          \
    STREAM_LINEAR_ROWS(prefix##_store, format, Store)                 \
    STREAM_LINEAR_ROWS(prefix##_add_residual, format, AddResidual)    \
    STREAM_LINEAR_ROWS(prefix##_silu_mul, format, SiluMul)            \
    STREAM_LINEAR_ROWS(prefix##_store_f32, format, StoreF32)

STREAM_LINEAR_FORMAT(stream_awq_g128, AwqFormat<1>)
#ifndef STREAM_ONLY_G128
STREAM_LINEAR_FORMAT(stream_awq_g64, AwqFormat<2>)
STREAM_LINEAR_FORMAT(stream_awq_g32, AwqFormat<4>)
#ifndef ELEMENT_BF16
STREAM_LINEAR_FEW(stream_min_g32, MinFormat)
STREAM_LINEAR_FEW(stream_bytes_g32, BytesG32Format)
STREAM_LINEAR_FEW(stream_bytes_g16, BytesG16Format)
STREAM_LINEAR_FEW(stream_bytes_min_g16, BytesMinG16Format)
STREAM_LINEAR_FEW(stream_fp8, Fp8Format)
#endif
#endif
STREAM_LINEAR_FORMAT(stream_half, HalfFormat)
