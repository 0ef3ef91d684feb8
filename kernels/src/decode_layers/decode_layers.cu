// All layers of a decode step in one launch, for 1 to 8 rows: h <- layers(h), one token a row.
//
// At these sizes a step is a read of the weights, and the weights do not depend on the step. A
// launch a kernel leaves the memory idle at every border: while the last blocks finish, while the
// next kernel starts, while norm and attention run. Here the blocks stay, one a multiprocessor, and
// a warp of each fills the others' rings in shared memory with the weights of whatever comes next,
// across products and layers. What depends on other blocks' results waits at a barrier of the whole
// grid, five times a layer, and meanwhile the rings fill. That warp does nothing else: whoever has
// copies on the way waits for them in every fence, and barriers are fences.
//
// A layer is
//   x = norm(h)         qkv = x W + b         barrier
//   norm and rotate q and k, store k and v, attention                 barrier
//   h += attended W     barrier
//   x = norm(h)         gated = silu(x Wg) * (x Wu)                   barrier
//   h += gated W        barrier
// and each block computes the x that it needs itself. Products are those of stream_linear.cu: W is
// the A operand, packed by repack.cu; a cluster shares a range of columns and each of its blocks has
// a slice of k; the parts are added over the cluster in rank order. Attention is that of decode.cu,
// a cluster for each row and KV head. Sums have a fixed order, hence the same bits every time.
//
// Bytes: all weights of the layers once, KV once. FLOPs: 2 m n k a product.
// Grid: clusters of up to 4 blocks, one block a multiprocessor, all on the card together.
// Shared memory: sized by the host (plan.rs). Architectures: sm_90, sm_120. Elements: f16, bf16.
// One persistent kernel for a whole decoder is the idea of Hazy Research's megakernels (2025).
#include "../cuda/paged_kv.cuh"
#include "../stream_linear/packed_weights.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int WARPS = 6;  // `n_warps` in plan.rs has the same numbers
#else
constexpr int WARPS = 14;
#endif
constexpr int PRODUCERS = 2;
constexpr int THREADS = WARPS * 32;  // and the warps that bring weights
constexpr int MAX_ROWS = 8;
constexpr int MAX_RANKS = 4;
using Format = AwqFormat<1>;
// What createpolicy makes of evict_first for all of an access.
constexpr uint64_t EVICT_FIRST = 0x12f0000000000000;

enum Product { QKV, O, GATE_UP, DOWN, PRODUCTS };

struct LayerPointers {
    const uint8_t* weights[PRODUCTS];  // [n_tiles][n_chunks][2048]
    const uint8_t* scales[PRODUCTS];   // [n_tiles][n_chunks][SCALE_BYTES]
    const elem* attn_norm;             // [hidden]
    const elem* mlp_norm;              // [hidden]
    const elem* q_norm;                // [head_dim] or null
    const elem* k_norm;                // [head_dim] or null
    const elem* qkv_bias;              // [(n_q + 2 n_kv) * head_dim] or null
    const elem* o_bias;                // [hidden] or null
    void* k;                           // pages, see paged_kv.cuh
    void* v;
};

struct ProductShape {
    int32_t n_tiles, n_chunks;
};

struct DecodeLayersParams {
    const LayerPointers* layers;  // [n_layers]
    float* h;                     // [m][hidden]
    elem* qkv;                    // [m][(n_q + 2 n_kv) * head_dim]
    elem* attended;               // [m][n_q * head_dim]
    elem* gated;                  // [m][intermediate]
    float* squares;               // [MAX_ROWS][hidden / 16]: of h, added up tile by tile
    uint32_t* arrivals;           // [2], zero before and after
    const int32_t* positions;     // [m]
    const int32_t* slots;         // [m] page * 16 + token, -1 for a padding row
    const int32_t* page_table;    // [m][max_pages]
    const int32_t* context_len;   // [m]; 0 for a padding row
    const float* cos_sin;         // [n_positions][head_dim]
    ProductShape products[PRODUCTS];
    float eps, scale;             // scale: 1 / sqrt(head_dim)
    float k_scale, v_scale;
    int32_t m, n_layers, n_q, n_kv;
    int32_t max_pages, n_pages, n_positions, n_stages;
    int32_t max_splits;           // blocks that share a context, at most
    int32_t n_flight;             // chunks of a ring on the way at a time
};

// A warp's part of a product.
struct Run {
    int32_t index;  // of its first chunk, in the matrix
    int32_t left;   // chunks
    int16_t tile;   // of the cluster's
    int16_t chunk;  // of the block's
};
// A block's part of a product.
struct Share {
    int16_t tiles, chunks;    // of the cluster; of the block
    int16_t first, last;      // tiles (or pairs of them) whose sums this block finishes
    int32_t tile0, chunk0;    // where the cluster's tiles and the block's chunks begin
    int32_t first_warps;      // of the product in `tile_warps`
};

DEVICE void add_release(uint32_t* at) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(at) : "memory"); }
DEVICE uint32_t load_acquire(const uint32_t* at) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
DEVICE void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }
DEVICE uint32_t transpose_8x8(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
// What other blocks of this launch wrote, hence not out of the L1.
DEVICE void load_floats(const elem* at, float (&out)[1]) {
    out[0] = elem_to_float(bits_elem(__ldcg(reinterpret_cast<const unsigned short*>(at))));
}
DEVICE void load_floats(const elem* at, float (&out)[2]) {
    const float2 pair = elem2_to_float2(bits_elem2(__ldcg(reinterpret_cast<const uint32_t*>(at))));
    out[0] = pair.x, out[1] = pair.y;
}
DEVICE constexpr int tile_group(int product) { return product == GATE_UP ? 2 : 1; }

constexpr int MAX_STAGES = 8;
constexpr int MAX_TILES = 768;  // of a cluster, all products

// Shared memory: this, then
//   pointers [n_layers][2 * PRODUCTS], to a multiple of 128
//   weights  [WARPS][n_stages][2048]
//   scales   [WARPS][n_stages][SCALE_BYTES]
//   scratch: for products x [m][chunks * 512 + 64], sums [chunks * GROUPS][8] f32,
//            slots [tiles + WARPS][16][m rounded up to 2] f32; else attention's
// plan.rs computes the same sum.
struct Shared {
    uint64_t full[WARPS][MAX_STAGES], empty[WARPS][MAX_STAGES];
    uint64_t cluster_bar;  // blocks of the cluster that have come so far
    Run runs[PRODUCTS][WARPS];
    Share shares[PRODUCTS];
    float row_scales[MAX_ROWS];
    float h[THREADS];  // the value of h that each thread finishes
    uint8_t tile_warps[MAX_TILES][2];  // the first and the last with a part of the tile
    alignas(128) const uint8_t* pointers[];

    DEVICE uint8_t* ring(const DecodeLayersParams& p) {
        return reinterpret_cast<uint8_t*>(pointers) + (p.n_layers * 2 * PRODUCTS * 8 + 127) / 128 * 128;
    }
    DEVICE uint8_t* scale_ring(const DecodeLayersParams& p) { return ring(p) + WARPS * p.n_stages * 2048; }
    DEVICE uint8_t* scratch(const DecodeLayersParams& p) { return scale_ring(p) + WARPS * p.n_stages * Format::SCALE_BYTES; }
};

// What a block keeps over its life.
struct Block {
    int rank, ranks, cluster, clusters, thread, warp, lane;
    uint32_t passed;  // barriers of the grid
    int stage, parity, cluster_parity;
    int splits;       // blocks that share a context
};

// Of all warps but the one that brings weights.
DEVICE void block_sync() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }
// Of the cluster's blocks, the same warps, for what they exchange through shared memory: an ordinary
// barrier of the cluster would also wait for device memory.
DEVICE void ranks_sync(Shared& s, Block& b) {
    block_sync();
    if (b.ranks == 1) return;
    const uint32_t bar = shared_address(&s.cluster_bar);
    if (b.thread < b.ranks) {
        uint32_t remote;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(bar), "r"(b.thread));
        asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
        asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote) : "memory");
    }
    uint32_t done = 0;
    while (!done) {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done) : "r"(bar), "r"(b.cluster_parity) : "memory");
    }
    asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
    b.cluster_parity ^= 1;
}
DEVICE void arrive(const DecodeLayersParams& p, Block& b) {
    block_sync();
    if (b.thread == 0) add_release(p.arrivals);
    b.passed++;
}
DEVICE void wait(const DecodeLayersParams& p, const Block& b) {
    if (b.thread == 0)
        while (load_acquire(p.arrivals) < b.passed * gridDim.x) {}
    block_sync();
}

// The chunks of a warp, product by product and layer by layer.
struct Walk {
    const uint8_t *weights = nullptr, *scales = nullptr;
    int step = 0, left = 0, chunk = 0, chunks = 0, skip = 0;
    int32_t index = 0;
    // Stands on a chunk afterwards; false behind the last one.
    DEVICE bool stand(const DecodeLayersParams& p, Shared& s, int ring) {
        while (left == 0 && step < p.n_layers * PRODUCTS) {
            const int product = step % PRODUCTS, layer = step / PRODUCTS;
            const Run run = s.runs[product][ring];
            left = run.left, chunk = run.chunk, index = run.index, chunks = s.shares[product].chunks;
            skip = p.products[product].n_chunks - chunks;
            weights = s.pointers[layer * 2 * PRODUCTS + product];
            scales = s.pointers[layer * 2 * PRODUCTS + PRODUCTS + product];
            step++;
        }
        return left > 0;
    }
    DEVICE void go_on() {
        left--, index++;
        if (++chunk == chunks) chunk = 0, index += skip;
    }
    DEVICE const uint8_t* weights_at() const { return weights + static_cast<int64_t>(index) * 2048; }
    DEVICE const uint8_t* scales_at() const { return scales + static_cast<int64_t>(index) * Format::SCALE_BYTES; }
};

// A warp: weights into every second ring, a lane for each. No more than `n_flight` chunks of a ring are
// on the way at a time: more would only stand in the memory's queues, where they hold up everything
// else, and some multiprocessors more than others.
DEVICE void bring_weights(const DecodeLayersParams& p, Shared& s, int producer, int lane) {
    const int ring = lane * PRODUCERS + producer;
    const bool has_ring = ring < WARPS;
    Walk walk;
    int stage = 0, parity = 1, oldest = 0, oldest_parity = 0, n_flight = 0;
    uint8_t* const to = s.ring(p) + ring * p.n_stages * 2048;
    uint8_t* const scales_to = s.scale_ring(p) + ring * p.n_stages * Format::SCALE_BYTES;
    while (true) {
        const bool is_left = has_ring && walk.stand(p, s, ring);
        if (!__any_sync(~0u, is_left)) return;
        if (n_flight > 0 && barrier_test(shared_address(&s.full[ring][oldest]), oldest_parity)) {
            n_flight--;
            if (++oldest == p.n_stages) oldest = 0, oldest_parity ^= 1;
        }
        if (is_left && n_flight < p.n_flight && barrier_test(shared_address(&s.empty[ring][stage]), parity)) {
            const uint32_t bar = shared_address(&s.full[ring][stage]);
            barrier_expect(bar, 2048 + Format::SCALE_BYTES);
            bulk_copy(shared_address(to + stage * 2048), walk.weights_at(), 2048, bar, EVICT_FIRST);
            bulk_copy(shared_address(scales_to + stage * Format::SCALE_BYTES), walk.scales_at(), Format::SCALE_BYTES, bar, EVICT_FIRST);
            walk.go_on();
            n_flight++;
            if (++stage == p.n_stages) stage = 0, parity ^= 1;
        }
    }
}

// The scratch of a product.
struct Scratch {
    uint8_t* x;
    float *sums, *slots;
    int x_row, m_even;
    DEVICE Scratch(const DecodeLayersParams& p, Shared& s, const Share& share) : x(s.scratch(p)) {
        const int m = p.m;
        x_row = share.chunks * Format::K * 2 + 64;
        m_even = (m + 1) & ~1;
        sums = reinterpret_cast<float*>(x + m * x_row);
        slots = sums + share.chunks * Format::GROUPS * 8;
    }
};

// x = h * rsqrt(mean(h^2) + eps) * weight, this block's slice of every row, into shared memory. A
// thread has four columns of all rows at a time.
DEVICE void load_normed(const DecodeLayersParams& p, Shared& s, Block& b, const Share& share, const elem* weight,
                        bool is_first) {
    const Scratch to(p, s, share);
    const int hidden = p.products[QKV].n_chunks * Format::K;
    const int quads = share.chunks * Format::K / 4, k0 = share.chunk0 * Format::K;
    const uint2* weight_at = reinterpret_cast<const uint2*>(weight + k0);
    const float4* h_at = reinterpret_cast<const float4*>(p.h + k0);
    auto put = [&](int quad, int row, float4 a, uint2 w) {
        const float r = s.row_scales[row];
        const float2 w0 = elem2_to_float2(bits_elem2(w.x)), w1 = elem2_to_float2(bits_elem2(w.y));
        *reinterpret_cast<uint2*>(to.x + row * to.x_row + quad * 8) =
            make_uint2(elem2_bits(floats_to_elem2(a.x * r * w0.x, a.y * r * w0.y)),
                       elem2_bits(floats_to_elem2(a.z * r * w1.x, a.w * r * w1.y)));
    };
    const int first = min(b.thread, quads - 1);
    const uint2 first_weight = weight_at[first];
    if (!is_first) wait(p, b);
    float4 h[MAX_ROWS];
#pragma unroll
    for (int row = 0; row < MAX_ROWS; row++)
        h[row] = row < p.m ? __ldcg(h_at + row * (hidden / 4) + first) : float4{};
    if (b.warp < p.m) {
        float square = 0.f;
        if (is_first) {
            const float4* row = reinterpret_cast<const float4*>(p.h + b.warp * hidden);
#pragma unroll 1
            for (int i = b.lane; i < hidden / 4; i += 32) {
                const float4 a = __ldcg(row + i);
                square += a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w;
            }
        } else {
            constexpr int AT_ONCE = 16;  // loads on the way; for 8,192 columns all there are
            const float* squares = p.squares + b.warp * (hidden / 16);
#pragma unroll 1
            for (int from = 0; from < hidden / 16; from += AT_ONCE * 32) {
                float tile[AT_ONCE];
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    const int at = from + i * 32 + b.lane;
                    tile[i] = at < hidden / 16 ? __ldcg(squares + at) : 0.f;
                }
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) square += tile[i];
            }
        }
#pragma unroll
        for (int d = 16; d > 0; d /= 2) square += __shfl_xor_sync(~0u, square, d);
        if (b.lane == 0) s.row_scales[b.warp] = rsqrtf(square / hidden + p.eps);
    }
    block_sync();
#pragma unroll
    for (int row = 0; row < MAX_ROWS; row++)
        if (row < p.m && b.thread < quads) put(first, row, h[row], first_weight);
#pragma unroll 1
    for (int quad = b.thread + THREADS; quad < quads; quad += THREADS) {
        const uint2 w = weight_at[quad];
#pragma unroll 1
        for (int row = 0; row < p.m; row++) put(quad, row, __ldcg(h_at + row * (hidden / 4) + quad), w);
    }
}

// This block's slice of every row of `from`, [m][n_chunks * K], into shared memory.
DEVICE void load_plain(const DecodeLayersParams& p, Shared& s, Block& b, const Share& share, const elem* from,
                       int n_chunks) {
    const Scratch to(p, s, share);
    const int vectors = share.chunks * Format::K / 8, n = p.m * vectors;
    wait(p, b);
#pragma unroll 4
    for (int v = b.thread; v < n; v += THREADS) {
        const int row = v / vectors, i = v % vectors;
        const uint4* at = reinterpret_cast<const uint4*>(from + (static_cast<int64_t>(row) * n_chunks + share.chunk0) * Format::K);
        *reinterpret_cast<uint4*>(to.x + row * to.x_row + i * 16) = __ldcg(at + i);
    }
}

// This warp's chunks times x, into the slots of its tiles.
DEVICE void multiply(const DecodeLayersParams& p, Shared& s, Block& b, const Share& share, const Run& run) {
    const Scratch scratch(p, s, share);
    const int g = b.lane >> 2, j = b.lane & 3;
    const int x_offset = min(g, p.m - 1) * scratch.x_row + j * 16;
    constexpr int PER_GROUP = Format::PAIRS / Format::GROUPS;
    block_sync();  // x is there
    // The groups' sums of x, as products with a matrix of ones.
    const uint32_t ones[4] = {ELEM2_ONES, ELEM2_ONES, ELEM2_ONES, ELEM2_ONES};
    for (int i = b.warp; i < share.chunks * Format::GROUPS; i += WARPS) {
        float sum[2][4] = {};
#pragma unroll
        for (int v = 0; v < PER_GROUP; v++) {
            const uint4 x = *reinterpret_cast<const uint4*>(scratch.x + x_offset + (i * PER_GROUP + v) * 64);
            mma_16816(sum[0], ones, x.x, x.y);
            mma_16816(sum[1], ones, x.z, x.w);
        }
        if (g == 0)
            *reinterpret_cast<float2*>(scratch.sums + i * 8 + 2 * j) =
                make_float2(sum[0][0] + sum[1][0], sum[0][1] + sum[1][1]);
    }
    block_sync();

    float acc[4] = {};
    int tile = run.tile, chunk = run.chunk;
#pragma unroll 1
    for (int left = run.left; left > 0; left--) {
        barrier_wait(shared_address(&s.full[b.warp][b.stage]), b.parity);
        const int at = b.warp * p.n_stages + b.stage;
        const uint8_t* data = s.ring(p) + at * 2048;
        const uint8_t* scales = s.scale_ring(p) + at * Format::SCALE_BYTES;
        const uint8_t* x_chunk = scratch.x + chunk * Format::K * 2 + x_offset;
        const float* sums = scratch.sums + chunk * Format::GROUPS * 8 + 2 * j;
        float part[4] = {};
        uint4 words;
        unrolled<0, Format::PAIRS>([&]<int P>() {
            uint32_t a[2][4];
            Format::weights<P>(data, b.lane, words, a);
            const uint4 x = *reinterpret_cast<const uint4*>(x_chunk + P * 64);
            mma_16816(part, a[0], x.x, x.y);
            mma_16816(part, a[1], x.z, x.w);
            if constexpr ((P + 1) % PER_GROUP == 0) {
                constexpr int index = P / PER_GROUP;
                float2 scale, zero;
                Format::group(scales, index, g, scale, zero);
                const float2 sum = *reinterpret_cast<const float2*>(sums + index * 8);
                acc[0] += scale.x * (part[0] - zero.x * sum.x);
                acc[1] += scale.x * (part[1] - zero.x * sum.y);
                acc[2] += scale.y * (part[2] - zero.y * sum.x);
                acc[3] += scale.y * (part[3] - zero.y * sum.y);
#pragma unroll
                for (int i = 0; i < 4; i++) part[i] = 0.f;
            }
        });
        __syncwarp();
        if (b.lane == 0) barrier_arrive(shared_address(&s.empty[b.warp][b.stage]));
        if (++b.stage == p.n_stages) b.stage = 0, b.parity ^= 1;
        if (++chunk == share.chunks || left == 1) {
            if (2 * j < p.m) {
                float* slot = scratch.slots + ((tile + b.warp) * 16 + g) * scratch.m_even + 2 * j;
                *reinterpret_cast<float2*>(slot) = make_float2(acc[0], acc[1]);
                *reinterpret_cast<float2*>(slot + 8 * scratch.m_even) = make_float2(acc[2], acc[3]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) acc[i] = 0.f;
            chunk = 0;
            tile++;
        }
    }
}

// Adds up what the warps of this block have of each value; the sum goes to the first warp's slot.
DEVICE void add_warps(const DecodeLayersParams& p, Shared& s, const Block& b, const Share& share) {
    const Scratch scratch(p, s, share);
    const int tile_values = 16 * scratch.m_even, n = share.tiles * tile_values;
    block_sync();
#pragma unroll 1
    for (int v = b.thread; v < n; v += THREADS) {
        const int tile = v / tile_values;
        const uint8_t* warps = s.tile_warps[share.first_warps + tile];
        const int first = warps[0], last = warps[1];
        if (first == last) continue;
        float* at = scratch.slots + first * tile_values + v;
        float sum = *at;
#pragma unroll 1
        for (int w = first + 1; w <= last; w++) sum += at[(w - first) * tile_values];
        *at = sum;
    }
}

// The sum over ranks, in their order, of value `e` of the cluster's tile `tile`.
DEVICE float value_of(Shared& s, const Block& b, const Share& share, const Scratch& scratch, int tile, int e) {
    const float* at = scratch.slots + (tile + s.tile_warps[share.first_warps + tile][0]) * 16 * scratch.m_even + e;
    float v[MAX_RANKS], sum = 0.f;
#pragma unroll
    for (int r = 0; r < MAX_RANKS; r++) v[r] = r < b.ranks ? cluster_load(shared_address(at), r) : 0.f;
#pragma unroll
    for (int r = 0; r < MAX_RANKS; r++) sum += v[r];
    return sum;
}

// Calls fn(v, tile or pair of the matrix, of the cluster, row, column of 16) for every value that
// this thread finishes; also, with a tile of -1, where its number is beyond.
template <class Fn>
DEVICE void each_value(const DecodeLayersParams& p, const Block& b, const Share& share, int product, Fn&& fn) {
    const int values = (share.last - share.first) * 16 * p.m;
#pragma unroll 1
    for (int v0 = 0; v0 < values; v0 += THREADS) {
        const int v = v0 + b.thread, unit = v >> 4;
        const int tile = share.first + unit / p.m;
        fn(v < values, share.tile0 / tile_group(product) + tile, tile, unit % p.m, v & 15);
    }
}

// What a lane needs of a head's norm and rotation.
template <int E>
struct Turn {
    float norm_lo[E], norm_hi[E], cosine[E], sine[E];
};

// Attention, one row and KV head a team of `splits` blocks of a cluster, over the pages of the row:
// page i belongs to warp i / splits mod WARPS of the team's block i mod splits. The wait for q, k and
// v is in here, behind what does not depend on them.
template <class T, int HD>
DEVICE void attend(const DecodeLayersParams& p, Shared& s, Block& b, const LayerPointers& layer) {
    constexpr int S = HD / 32, TILES = HD / 16, E = HD / 64, Q_ROW = HD + 8, AT_ONCE = 4;
    const int group = p.n_q / p.n_kv, g = b.lane / 4, j = b.lane % 4;
    const int splits = b.splits, member = b.rank % splits, first_rank = b.rank - member;
    const int teams = gridDim.x / splits, n_pairs = p.m * p.n_kv, qkv_row = (p.n_q + 2 * p.n_kv) * HD;
    elem* q_s = reinterpret_cast<elem*>(s.scratch(p));                       // [8][Q_ROW]
    float* warp_o = reinterpret_cast<float*>(s.scratch(p) + 8 * Q_ROW * 2);  // [AT_ONCE][8][HD + 1]
    float* warp_m = warp_o + AT_ONCE * 8 * (HD + 1);                         // [WARPS][8]
    float* warp_l = warp_m + WARPS * 8;                                      // [WARPS][8]
    float* part_o = warp_l + WARPS * 8;                                      // [8][HD]
    float* part_m = part_o + 8 * HD;                                         // [8]
    float* part_l = part_m + 8;                                              // [8]
    const int64_t page_values = static_cast<int64_t>(p.n_kv) * PAGE_TOKENS * HD;
    const PagedKv kv{layer.k, layer.v, p.k_scale, p.v_scale, p.n_pages};
#pragma unroll 1
    for (int first_pair = 0; first_pair < n_pairs; first_pair += teams) {
        const int pair = first_pair + (b.cluster * b.ranks + b.rank) / splits;
        const bool is_pair = pair < n_pairs;
        const int row = is_pair ? pair / p.n_kv : 0, kv_head = is_pair ? pair % p.n_kv : 0;
        const int context = is_pair ? min(p.context_len[row], p.max_pages * PAGE_TOKENS) : 0;
        const int pages = (context + PAGE_TOKENS - 1) / PAGE_TOKENS;
        const int32_t* table = p.page_table + static_cast<int64_t>(row) * p.max_pages;
        const T* k_pool = static_cast<const T*>(kv.k) + kv_head * PAGE_TOKENS * HD + g * HD + j * 8;
        const T* v_pool = static_cast<const T*>(kv.v) + kv_head * PAGE_TOKENS * HD + b.lane * 8;
        uint32_t k[2][S][4] = {};
        int64_t at = 0;  // of the page
        // Registers for k alone: v is called into the L2 meanwhile.
        auto load_k = [&](int page) {
            at = page_in_pool(kv, table[page]) * page_values;
#pragma unroll
            for (int i = 0; i < S; i++) {
                load_eight(k_pool + at + i * 32, k[0][i]);
                load_eight(k_pool + at + 8 * HD + i * 32, k[1][i]);
            }
            prefetch(reinterpret_cast<const uint8_t*>(v_pool + at) + b.lane * (HD * sizeof(T) / 2 - 8 * sizeof(T)));
        };
        const uint32_t position = min(static_cast<uint32_t>(p.positions[row]), static_cast<uint32_t>(p.n_positions - 1));
        auto load_turn = [&](int head) {
            Turn<E> turn;
            const elem* norm = head == group ? layer.k_norm : layer.q_norm;
            const float* angles = p.cos_sin + static_cast<int64_t>(position) * HD + b.lane * E;
#pragma unroll
            for (int e = 0; e < E; e++) {
                turn.norm_lo[e] = norm == nullptr ? 1.f : elem_to_float(norm[b.lane * E + e]);
                turn.norm_hi[e] = norm == nullptr ? 1.f : elem_to_float(norm[HD / 2 + b.lane * E + e]);
                turn.cosine[e] = angles[e], turn.sine[e] = angles[HD / 2 + e];
            }
            return turn;
        };
        // Pages that earlier steps filled do not wait for this one.
        int page = b.warp * splits + member;
        const bool early = (page + 1) * PAGE_TOKENS < context;
        if (early) load_k(page);
        const int slot = p.slots[row];
        Turn<E> turn = load_turn(b.warp);
        if (first_pair == 0) wait(p, b);
        if (context > 0) {
            // q of the group's heads into shared memory, k and v of the new token into its page.
            const bool is_writer = member == (pages - 1) % splits;
#pragma unroll 1
            for (int head = b.warp; head < group + 2; head += WARPS) {
                const bool is_k = head == group, is_v = head == group + 1;
                if ((is_k || is_v) && !is_writer) break;
                if (head >= WARPS) turn = load_turn(head);
                const int column = (is_v ? p.n_q + p.n_kv + kv_head : is_k ? p.n_q + kv_head : kv_head * group + head) * HD;
                const elem* from = p.qkv + static_cast<int64_t>(row) * qkv_row + column;
                float lo[E], hi[E];
                load_floats(from + b.lane * E, lo), load_floats(from + HD / 2 + b.lane * E, hi);
                if (!is_v) {
                    if ((is_k ? layer.k_norm : layer.q_norm) != nullptr) {
                        float square = 0.f;
#pragma unroll
                        for (int e = 0; e < E; e++) square += lo[e] * lo[e] + hi[e] * hi[e];
#pragma unroll
                        for (int d = 16; d > 0; d /= 2) square += __shfl_xor_sync(~0u, square, d);
                        const float r = rsqrtf(square / HD + p.eps);
#pragma unroll
                        for (int e = 0; e < E; e++) lo[e] *= r * turn.norm_lo[e], hi[e] *= r * turn.norm_hi[e];
                    }
#pragma unroll
                    for (int e = 0; e < E; e++) {
                        const float x = lo[e], y = hi[e];
                        lo[e] = x * turn.cosine[e] - y * turn.sine[e];
                        hi[e] = y * turn.cosine[e] + x * turn.sine[e];
                    }
                }
                if (!is_k && !is_v) {
#pragma unroll
                    for (int e = 0; e < E; e++) {
                        q_s[head * Q_ROW + b.lane * E + e] = float_to_elem(lo[e]);
                        q_s[head * Q_ROW + HD / 2 + b.lane * E + e] = float_to_elem(hi[e]);
                    }
                } else if (slot >= 0 && slot / PAGE_TOKENS < p.n_pages) {
                    const int token = slot % PAGE_TOKENS;
                    T* to = static_cast<T*>(is_v ? kv.v : kv.k) + slot / PAGE_TOKENS * page_values + kv_head * PAGE_TOKENS * HD;
                    const float inverse = 1.f / (is_v ? p.v_scale : p.k_scale);
#pragma unroll
                    for (int e = 0; e < E; e++) {
                        const int d0 = b.lane * E + e, d1 = HD / 2 + b.lane * E + e;
                        to[is_v ? v_offset(token, d0) : token * HD + d0] = to_stored<T>(lo[e], inverse);
                        to[is_v ? v_offset(token, d1) : token * HD + d1] = to_stored<T>(hi[e], inverse);
                    }
                }
            }
            block_sync();

            const float scale = p.scale * p.k_scale * 1.44269504f;  // exp2 below
            float m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f};  // of heads 2j and 2j + 1
            float o[TILES][4] = {};
            const elem* q_at = q_s + min(g, group - 1) * Q_ROW + j * 8;
            if (page < pages && !early) load_k(page);
            while (page < pages) {
                float sc[2][4] = {};
#pragma unroll
                for (int i = 0; i < S; i++) {
                    uint32_t q[4];
                    load_eight(q_at + i * 32, q);
                    const uint32_t a0[4] = {k[0][i][0], k[1][i][0], k[0][i][1], k[1][i][1]};
                    const uint32_t a1[4] = {k[0][i][2], k[1][i][2], k[0][i][3], k[1][i][3]};
                    mma_16816(sc[0], a0, q[0], q[1]);
                    mma_16816(sc[1], a1, q[2], q[3]);
                }
                uint32_t v[TILES][4];
#pragma unroll
                for (int t = 0; t < TILES; t++) load_eight(v_pool + at + t * 256, v[t]);
                float x[4], factor[2];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int token = page * PAGE_TOKENS + g + 8 * (i / 2);
                    x[i] = token < context ? (sc[0][i] + sc[1][i]) * scale : -INFINITY;
                }
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float top = fmaxf(x[h], x[h + 2]);
#pragma unroll
                    for (int d = 4; d < 32; d *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
                    top = fmaxf(top, m[h]);  // finite: every page holds a token of the context
                    factor[h] = exp2f(m[h] - top);
                    m[h] = top;
                    x[h] = exp2f(x[h] - top);
                    x[h + 2] = exp2f(x[h + 2] - top);
                    l[h] = l[h] * factor[h] + x[h] + x[h + 2];
                }
                const uint32_t p0 = transpose_8x8(elem2_bits(floats_to_elem2(x[0], x[1])));
                const uint32_t p1 = transpose_8x8(elem2_bits(floats_to_elem2(x[2], x[3])));
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    o[t][0] *= factor[0], o[t][1] *= factor[1], o[t][2] *= factor[0], o[t][3] *= factor[1];
                    mma_16816(o[t], v[t], p0, p1);
                }
                page += WARPS * splits;
                if (page < pages) load_k(page);
            }
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int d = 4; d < 32; d *= 2) l[h] += __shfl_xor_sync(~0u, l[h], d);

            // Merge the warps that had pages, a few at a time.
            const int busy = min(WARPS, (pages - member + splits - 1) / splits);
            if (g == 0) warp_m[b.warp * 8 + 2 * j] = m[0], warp_m[b.warp * 8 + 2 * j + 1] = m[1];
            block_sync();
            float top[2] = {-INFINITY, -INFINITY};
#pragma unroll 1
            for (int w = 0; w < busy; w++) {
                const float2 other = *reinterpret_cast<const float2*>(warp_m + w * 8 + 2 * j);
                top[0] = fmaxf(top[0], other.x), top[1] = fmaxf(top[1], other.y);
            }
            if (b.warp < busy) {
#pragma unroll
                for (int h = 0; h < 2; h++) m[h] = exp2f(m[h] - top[h]);
                if (g == 0) warp_l[b.warp * 8 + 2 * j] = l[0] * m[0], warp_l[b.warp * 8 + 2 * j + 1] = l[1] * m[1];
                if (b.warp == 0 && g == 0) part_m[2 * j] = top[0], part_m[2 * j + 1] = top[1];
            }
            constexpr int VALUES = (8 * HD + THREADS - 1) / THREADS;
            float sums[VALUES] = {};
#pragma unroll 1
            for (int w0 = 0; w0 < busy; w0 += AT_ONCE) {
                if (w0 > 0) block_sync();
                if (b.warp >= w0 && b.warp < min(busy, w0 + AT_ONCE)) {
#pragma unroll
                    for (int t = 0; t < TILES; t++)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            warp_o[((b.warp - w0) * 8 + 2 * j + i % 2) * (HD + 1) + t * 16 + g + 8 * (i / 2)] = o[t][i] * m[i % 2];
                }
                block_sync();
#pragma unroll
                for (int i = 0; i < VALUES; i++) {
                    const int value = i * THREADS + b.thread;
                    if (value >= 8 * HD) break;
#pragma unroll 1
                    for (int w = w0; w < min(busy, w0 + AT_ONCE); w++)
                        sums[i] += warp_o[((w - w0) * 8 + value / HD) * (HD + 1) + value % HD];
                }
            }
#pragma unroll
            for (int i = 0; i < VALUES; i++)
                if (i * THREADS + b.thread < 8 * HD) part_o[i * THREADS + b.thread] = sums[i];
            if (b.thread < 8) {
                float total = 0.f;
#pragma unroll 1
                for (int w = 0; w < busy; w++) total += warp_l[w * 8 + b.thread];
                part_l[b.thread] = total;
            }
        }
        if (splits > 1) ranks_sync(s, b); else block_sync();
        const int parts = min(splits, pages);
        for (int i = member * THREADS + b.thread; i < group * HD && context > 0; i += splits * THREADS) {
            const int head = i / HD;
            float tops[MAX_RANKS], totals[MAX_RANKS], values[MAX_RANKS], top = -INFINITY, sum = 0.f, total = 0.f;
#pragma unroll
            for (int r = 0; r < MAX_RANKS; r++) {
                if (r >= parts) continue;
                tops[r] = cluster_load(shared_address(part_m + head), first_rank + r);
                totals[r] = cluster_load(shared_address(part_l + head), first_rank + r);
                values[r] = cluster_load(shared_address(part_o + i), first_rank + r);
            }
#pragma unroll
            for (int r = 0; r < MAX_RANKS; r++)
                if (r < parts) top = fmaxf(top, tops[r]);
#pragma unroll
            for (int r = 0; r < MAX_RANKS; r++) {
                if (r >= parts) continue;
                const float f = exp2f(tops[r] - top);
                sum += f * values[r];
                total += f * totals[r];
            }
            p.attended[(static_cast<int64_t>(row) * p.n_q + kv_head * group) * HD + i] =
                float_to_elem(sum / total * p.v_scale);
        }
        // Nobody writes the next pair's parts while these may still be read.
        if (first_pair + teams < n_pairs) {
            if (splits > 1) ranks_sync(s, b); else block_sync();
        }
    }
}

template <class T, int HD>
DEVICE void decode_layers(const DecodeLayersParams& p) {
    extern __shared__ __align__(128) uint8_t smem[];
    Block b;
    b.thread = threadIdx.x, b.warp = b.thread / 32, b.lane = b.thread % 32;
    b.rank = cluster_rank(), b.ranks = cluster_size();
    b.cluster = blockIdx.x / b.ranks, b.clusters = gridDim.x / b.ranks;
    b.passed = 0, b.stage = 0, b.parity = 0, b.cluster_parity = 0;

    Shared& s = *reinterpret_cast<Shared*>(smem);

    launch_dependents();
    int first_warps = 0;
    for (int product = 0; product < PRODUCTS; product++) {
        const ProductShape shape = p.products[product];
        const int pair = tile_group(product), groups = shape.n_tiles / pair;
        const int group0 = groups * b.cluster / b.clusters, n_groups = groups * (b.cluster + 1) / b.clusters - group0;
        const int chunk0 = shape.n_chunks * b.rank / b.ranks;
        const int chunks = shape.n_chunks * (b.rank + 1) / b.ranks - chunk0;
        const int tiles = n_groups * pair, items = tiles * chunks, workers = max(1, min(items, WARPS));
        if (b.thread == 0) {
            Share& share = s.shares[product];
            share.tiles = tiles, share.chunks = chunks;
            share.first = n_groups * b.rank / b.ranks, share.last = n_groups * (b.rank + 1) / b.ranks;
            share.tile0 = group0 * pair, share.chunk0 = chunk0, share.first_warps = first_warps;
        }
        if (b.thread < WARPS) {
            // Fewer items than warps: the first ones have one each.
            const int first = min(items, items * b.thread / workers), tile = first / chunks;
            const int chunk = first - tile * chunks;
            Run& run = s.runs[product][b.thread];
            run.index = (group0 * pair + tile) * shape.n_chunks + chunk0 + chunk;
            run.left = min(items, items * (b.thread + 1) / workers) - first;
            run.tile = tile, run.chunk = chunk;
        }
        for (int tile = b.thread; tile < tiles; tile += THREADS + PRODUCERS * 32) {
            // The w with items * w / workers <= item < items * (w + 1) / workers.
            const int w0 = (workers * (tile * chunks + 1) - 1) / items, w1 = (workers * (tile + 1) * chunks - 1) / items;
            s.tile_warps[first_warps + tile][0] = w0, s.tile_warps[first_warps + tile][1] = w1;
        }
        first_warps += tiles;
    }
    for (int i = b.thread; i < p.n_layers * 2 * PRODUCTS; i += THREADS + PRODUCERS * 32) {
        const LayerPointers& layer = p.layers[i / (2 * PRODUCTS)];
        const int which = i % (2 * PRODUCTS);
        s.pointers[i] = which < PRODUCTS ? layer.weights[which] : layer.scales[which - PRODUCTS];
    }
    if (b.thread == 0) {
        for (int ring = 0; ring < WARPS; ring++)
            for (int stage = 0; stage < p.n_stages; stage++)
                barrier_init(shared_address(&s.full[ring][stage]), 1), barrier_init(shared_address(&s.empty[ring][stage]), 1);
        barrier_init(shared_address(&s.cluster_bar), b.ranks);
        barrier_init_fence();
    }
    __syncthreads();
    if (b.ranks > 1) cluster_sync();  // the barriers of all blocks exist
    if (b.warp >= WARPS) {
        bring_weights(p, s, b.warp - WARPS, b.lane);
        if (b.ranks > 1) cluster_sync();
        return;
    }

    wait_for_previous();
    // Few pages are not worth another block: two a warp, then.
    int longest = 0;
    for (int row = 0; row < p.m; row++) longest = max(longest, p.context_len[row]);
    b.splits = 1;
    while (2 * b.splits <= min(p.max_splits, b.ranks) && b.splits * 2 * WARPS * PAGE_TOKENS < longest) b.splits *= 2;
    // The value of h that this thread adds to, twice a layer.
    const int hidden = p.products[QKV].n_chunks * Format::K;
    each_value(p, b, s.shares[O], O, [&](bool is_mine, int tile, int, int row, int column) {
        if (is_mine) s.h[b.thread] = p.h[row * hidden + tile * 16 + column];
    });

#pragma unroll 1
    for (int step = 0; step < p.n_layers * PRODUCTS; step++) {
        // Else addresses of every product are computed ahead of the loop, for which there are no registers.
        asm volatile("" : "+r"(b.thread), "+r"(b.warp), "+r"(b.lane), "+r"(b.rank), "+r"(b.cluster));
        const int product = step % PRODUCTS;
        const LayerPointers& layer = p.layers[step / PRODUCTS];
        const Share share = s.shares[product];
        switch (product) {
            case QKV: load_normed(p, s, b, share, layer.attn_norm, step == 0); break;
            case O: load_plain(p, s, b, share, p.attended, p.products[O].n_chunks); break;
            case GATE_UP: load_normed(p, s, b, share, layer.mlp_norm, false); break;
            default: load_plain(p, s, b, share, p.gated, p.products[DOWN].n_chunks);
        }
        multiply(p, s, b, share, s.runs[product][b.warp]);
        add_warps(p, s, b, share);
        ranks_sync(s, b);
        const Scratch scratch(p, s, share);
        if (product == QKV) {
            const int n = p.products[QKV].n_tiles * 16;
            each_value(p, b, share, QKV, [&](bool is_mine, int tile, int local, int row, int column) {
                if (!is_mine) return;
                float y = value_of(s, b, share, scratch, local, column * scratch.m_even + row);
                if (layer.qkv_bias != nullptr) y += elem_to_float(layer.qkv_bias[tile * 16 + column]);
                p.qkv[static_cast<int64_t>(row) * n + tile * 16 + column] = float_to_elem(y);
            });
            arrive(p, b);
            attend<T, HD>(p, s, b, layer);
        } else if (product == GATE_UP) {
            const int n = p.products[GATE_UP].n_tiles * 8;
            each_value(p, b, share, GATE_UP, [&](bool is_mine, int pair, int local, int row, int column) {
                if (!is_mine) return;
                const int e = column * scratch.m_even + row;
                const float y = value_of(s, b, share, scratch, 2 * local, e);
                const float up = value_of(s, b, share, scratch, 2 * local + 1, e);
                p.gated[static_cast<int64_t>(row) * n + pair * 16 + column] = float_to_elem(y / (1.f + __expf(-y)) * up);
            });
        } else {
            const elem* bias = product == O ? layer.o_bias : nullptr;
            each_value(p, b, share, product, [&](bool is_mine, int tile, int local, int row, int column) {
                float h = 0.f;
                if (is_mine) {
                    h = s.h[b.thread] + value_of(s, b, share, scratch, local, column * scratch.m_even + row);
                    if (bias != nullptr) h += elem_to_float(bias[tile * 16 + column]);
                    s.h[b.thread] = p.h[row * hidden + tile * 16 + column] = h;
                }
                float square = h * h;
#pragma unroll
                for (int d = 8; d > 0; d /= 2) square += __shfl_xor_sync(~0u, square, d);
                if (is_mine && column == 0) p.squares[row * (hidden / 16) + tile] = square;
            });
        }
        if (step + 1 < p.n_layers * PRODUCTS) arrive(p, b);
    }

    // The last to leave puts the counters back; nobody can still be waiting.
    if (b.thread == 0 && atomicAdd(p.arrivals + 1, 1) == gridDim.x - 1) p.arrivals[0] = p.arrivals[1] = 0;
    if (b.ranks > 1) cluster_sync();  // nobody leaves while its sums may still be read
}

#define DECODE_LAYERS(name, type, hd)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS + PRODUCERS * 32, 1) name(const __grid_constant__ DecodeLayersParams p) { \
        decode_layers<type, hd>(p);                                                                              \
    }
DECODE_LAYERS(decode_layers_half_64, elem, 64)
DECODE_LAYERS(decode_layers_half_128, elem, 128)
DECODE_LAYERS(decode_layers_fp8_64, __nv_fp8_e4m3, 64)
DECODE_LAYERS(decode_layers_fp8_128, __nv_fp8_e4m3, 128)
