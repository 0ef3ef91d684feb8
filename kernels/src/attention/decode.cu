// out[r][h] = softmax(q[r][h] K^T / sqrt(head_dim)) V over the first context_len[r] tokens of row
// r's pages: flash decoding with split KV.
//
// The up to 8 query heads of a KV head are the 8 columns of one matrix product, so K and V are read
// once for all of them: S[16 tokens x 8] = K q, then O[16 dims x 8] = V P with P transposed inside
// the warp. A block has four warps, and a warp takes one page (16 tokens) at a time. The blocks of a
// cluster split the context. They are merged through distributed shared memory in rank order, so one
// launch does it all, nothing goes through device memory, and the bits are the same every time.
//
// One cluster cannot read a long context at the memory's rate. So a few rows are launched with several clusters
// each: from PART_PAGES pages for each of them on, they split the context into parts. Parts are merged through
// device memory by the cluster that finishes last, in the order of the parts: the same bits again. Clusters that
// a short context does not need end at once.
//
// At small batches latency dominates. So lengths, page table and the pages that earlier steps wrote are
// read before griddepcontrol.wait. That is safe because embedding.cu lets no kernel start before it has
// itself waited for the previous step.
//
// Several tokens of one prompt may be in one launch: each is a row with its own context_len.
// Bytes: context * head_dim * 2 * stored size per (row, KV head). FLOPs: 4 * 8 * context * head_dim.
// Launches of many blocks have their own kernels, see the end.
// Grid: (n_kv_heads * splits, m, parts), cluster (splits, 1, 1), 128 threads. Architectures: sm_90, sm_120.
// Elements: f16, bf16.
// Ideas: flash decoding (Dao et al.), GQA packing as in FlashInfer.
#include "../cuda/paged_kv.cuh"
#include "../cuda/tiled.cuh"

struct AttentionDecodeParams {
    const elem* q;               // [m][q_stride], head h at h * head_dim
    PagedKv kv;
    const int32_t* page_table;   // [m][max_pages]
    const int32_t* context_len;  // [m]; 0 for a padding row
    elem* out;                   // [m][out_stride], or tiled (tiled.cuh)
    float* part_out;             // [m * n_kv][parts][8][head_dim]: results of parts; null for one part
    float* part_weights;         // [m * n_kv][parts][8][2]: their largest scores and sums of weights
    int32_t* tickets;            // [m * n_kv], zero before and after
    float scale;                 // 1 / sqrt(head_dim)
    int32_t n_kv, group;         // group: query heads a KV head, at most 8
    int32_t max_pages, q_stride, out_stride;
    int32_t fresh;               // the most tokens at the end of a context that this step itself writes
    int32_t out_tile_rows;       // 0 for plain rows
};

constexpr int WARPS = 4, THREADS = WARPS * 32;
constexpr int PART_PAGES = 64;  // the fewest of a part

DEVICE uint32_t transpose_8x8(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// One page of K and V in the registers of a warp, as operands: K is A of K q, V is A of V P.
template <class T, int HD>
struct PageOperands {
    static constexpr int S = HD / 32, TILES = HD / 16;
    const AttentionDecodeParams& p;
    const int32_t* table;
    const T *k_pool, *v_pool;  // this lane's values of page 0
    int64_t page_values;
    uint32_t k[2][S][4], v[TILES][4];

    DEVICE PageOperands(const AttentionDecodeParams& p, int row, int kv_head, int lane) : p(p) {
        const int g = lane / 4, j = lane % 4;
        table = p.page_table + static_cast<int64_t>(row) * p.max_pages;
        k_pool = static_cast<const T*>(p.kv.k) + kv_head * PAGE_TOKENS * HD + g * HD + j * 8;
        v_pool = static_cast<const T*>(p.kv.v) + kv_head * PAGE_TOKENS * HD + lane * 8;
        page_values = static_cast<int64_t>(p.n_kv) * PAGE_TOKENS * HD;
    }
    DEVICE void load_k(int page) {
        const T* at = k_pool + page_in_pool(p.kv, table[page]) * page_values;
#pragma unroll
        for (int s = 0; s < S; s++) {
            load_eight(at + s * 32, k[0][s]);
            load_eight(at + 8 * HD + s * 32, k[1][s]);
        }
    }
    DEVICE void load_v(int page) {
        const T* at = v_pool + page_in_pool(p.kv, table[page]) * page_values;
#pragma unroll
        for (int t = 0; t < TILES; t++) load_eight(at + t * 256, v[t]);
    }
    // Tokens past the context weigh 0, but 0 times NaN is NaN: their values become 0 as well.
    DEVICE void clear_v(int page, int context, int j) {
        if ((page + 1) * PAGE_TOKENS <= context) return;
        const int token = page * PAGE_TOKENS + 2 * j;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) v[t][i] = keep_tokens(v[t][i], token + i / 2 * 8, context);
    }
    // Adds K q: score i of a lane is token g + 8 * (i / 2), head 2j + i % 2. Two chains, for the latency of the products.
    DEVICE void multiply_k(float (&scores)[2][4], const uint32_t (&q)[S][4]) const {
#pragma unroll
        for (int s = 0; s < S; s++) {
            const uint32_t a0[4] = {k[0][s][0], k[1][s][0], k[0][s][1], k[1][s][1]};
            const uint32_t a1[4] = {k[0][s][2], k[1][s][2], k[0][s][3], k[1][s][3]};
            mma_16816(scores[0], a0, q[s][0], q[s][1]);
            mma_16816(scores[1], a1, q[s][2], q[s][3]);
        }
    }
};

// What a warp has summed up so far, of heads 2j and 2j + 1: the online softmax.
template <int HD>
struct RunningSums {
    static constexpr int TILES = HD / 16;
    float m[2] = {-INFINITY, -INFINITY};  // largest score
    float l[2] = {0.f, 0.f};              // sum of weights: of this lane's tokens until `add_lanes`
    float o[TILES][4] = {};               // weighted V: dims 16t + g (+8), heads 2j, 2j + 1

    // A page's scores become weights. `factor`: what the sums so far are multiplied by.
    DEVICE void weigh(float (&x)[4], float (&factor)[2]) {
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
    }
    // O = O factor + V P. `p0`, `p1`: the weights as the B operand.
    DEVICE void multiply_v(const uint32_t (&v)[TILES][4], uint32_t p0, uint32_t p1, const float (&factor)[2]) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            o[t][0] *= factor[0], o[t][1] *= factor[1], o[t][2] *= factor[0], o[t][3] *= factor[1];
            mma_16816(o[t], v[t], p0, p1);
        }
    }
    DEVICE void add_lanes() {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int d = 4; d < 32; d *= 2) l[h] += __shfl_xor_sync(~0u, l[h], d);
    }
};

// This block's part of the result, which the other blocks of the cluster read.
template <class Partial, int HD>
struct BlockPart {
    Partial (&o)[8 * HD];  // [head][dim], divided by the sum of weights, so that 16-bit parts cannot overflow
    float (&m)[8], (&l)[8];
};

// Merges the warps of the block.
template <class Partial, int HD>
DEVICE void merge_warps(const AttentionDecodeParams& p, const RunningSums<HD>& sums, const BlockPart<Partial, HD>& block) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
    __shared__ float warp_o[WARPS][8][HD + 1];
    __shared__ float warp_ml[WARPS][8][2];
#pragma unroll
    for (int t = 0; t < HD / 16; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) warp_o[warp][2 * j + i % 2][t * 16 + g + 8 * (i / 2)] = sums.o[t][i];
    if (g == 0)
#pragma unroll
        for (int h = 0; h < 2; h++) warp_ml[warp][2 * j + h][0] = sums.m[h], warp_ml[warp][2 * j + h][1] = sums.l[h];
    __syncthreads();

    for (int i = threadIdx.x; i < p.group * HD; i += THREADS) {
        const int head = i / HD, dim = i % HD;
        float top = -INFINITY;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, warp_ml[w][head][0]);
        float sum = 0.f, total = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float f = exp2f(warp_ml[w][head][0] - top);
            sum += f * warp_o[w][head][dim];
            total += f * warp_ml[w][head][1];
        }
        if constexpr (cuda::std::is_same<Partial, float>::value) block.o[i] = sum / total;
        else block.o[i] = float_to_elem(sum / total);
        if (dim == 0) block.m[head] = top, block.l[head] = total;
    }
}

// One of several parts of a context.
struct ContextPart {
    int index, n_parts;
    int first_page, n_pages;

    DEVICE ContextPart(int pages) {
        index = blockIdx.z;
        n_parts = max(1, min(static_cast<int>(gridDim.z), pages / PART_PAGES));
        first_page = pages * index / n_parts;
        n_pages = pages * (index + 1) / n_parts - first_page;
    }
};

// The places of one row's KV head in the arrays of parts.
template <int HD>
struct PartRoom {
    float *out, *weights;  // of part 0
    int32_t* ticket;

    DEVICE PartRoom(const AttentionDecodeParams& p, int row, int kv_head) {
        const int64_t i = static_cast<int64_t>(row) * p.n_kv + kv_head;
        out = p.part_out + i * gridDim.z * 8 * HD;
        weights = p.part_weights + i * gridDim.z * 8 * 2;
        ticket = p.tickets + i;
    }
};

// Merges the blocks of the cluster, each of which writes its share of the row, or of the part of it.
template <class Partial, int HD>
DEVICE void merge_blocks(const AttentionDecodeParams& p, const BlockPart<Partial, HD>& block, const ContextPart& part,
                         const PartRoom<HD>& room, int row, int kv_head, int rank, int ranks, int splits) {
    for (int i = rank * THREADS + threadIdx.x; i < p.group * HD && splits > 0; i += ranks * THREADS) {
        const int head = i / HD, dim = i % HD;
        float top = -INFINITY;
        for (int r = 0; r < splits; r++) top = fmaxf(top, cluster_load(shared_address(&block.m[head]), r));
        float sum = 0.f, total = 0.f;
        for (int r = 0; r < splits; r++) {
            const float f = exp2f(cluster_load(shared_address(&block.m[head]), r) - top) *
                            cluster_load(shared_address(&block.l[head]), r);
            sum += f * static_cast<float>(cluster_load_as<Partial>(shared_address(&block.o[i]), r));
            total += f;
        }
        if (part.n_parts > 1) {
            room.out[part.index * 8 * HD + i] = sum / total;
            float* weights = room.weights + (part.index * 8 + head) * 2;
            if (dim == 0) weights[0] = top, weights[1] = total;
        } else {
            p.out[activation_at(row, (kv_head * p.group + head) * HD + dim, p.out_stride, p.out_tile_rows)] =
                float_to_elem(sum / total * p.kv.v_scale);
        }
    }
}

// Merges the parts of a context in the cluster that has written its part last.
template <int HD>
DEVICE void merge_parts(const AttentionDecodeParams& p, const ContextPart& part, const PartRoom<HD>& room, int row,
                        int kv_head, int rank, int ranks) {
    auto sync = [&] {
        if (ranks > 1) cluster_sync(); else __syncthreads();
    };
    __shared__ float is_last;
    sync();  // the cluster has written its part
    if (rank == 0 && threadIdx.x == 0) {
        is_last = add_acquire_release(room.ticket, 1) == part.n_parts - 1 ? 1.f : 0.f;
        if (is_last != 0.f) *room.ticket = 0;
    }
    sync();
    if (cluster_load(shared_address(&is_last), 0) == 0.f) return;
    for (int i = rank * THREADS + threadIdx.x; i < p.group * HD; i += ranks * THREADS) {
        const int head = i / HD, dim = i % HD;
        float top = -INFINITY;
        for (int t = 0; t < part.n_parts; t++) top = fmaxf(top, __ldcg(room.weights + (t * 8 + head) * 2));
        float sum = 0.f, total = 0.f;
        for (int t = 0; t < part.n_parts; t++) {
            const float2 weights = __ldcg(reinterpret_cast<const float2*>(room.weights) + t * 8 + head);
            const float f = exp2f(weights.x - top) * weights.y;
            sum += f * __ldcg(room.out + t * 8 * HD + i);
            total += f;
        }
        p.out[activation_at(row, (kv_head * p.group + head) * HD + dim, p.out_stride, p.out_tile_rows)] =
            float_to_elem(sum / total * p.kv.v_scale);
    }
}

template <class T, int HD, bool FP32_PARTIALS>
DEVICE void attention_decode(const AttentionDecodeParams& p) {
    using Partial = typename cuda::std::conditional<FP32_PARTIALS, float, elem>::type;
    constexpr int S = HD / 32;
    const int rank = cluster_rank(), ranks = cluster_size(), kv_head = blockIdx.x / ranks, row = blockIdx.y;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
    launch_dependents();
    const int context = min(p.context_len[row], p.max_pages * PAGE_TOKENS);
    const ContextPart part((context + PAGE_TOKENS - 1) / PAGE_TOKENS);
    if (part.index >= part.n_parts) return;
    const int splits = min(ranks, (part.n_pages + WARPS - 1) / WARPS);
    const int first = rank < splits ? part.first_page + part.n_pages * rank / splits : 0;
    const int last = rank < splits ? part.first_page + part.n_pages * (rank + 1) / splits : 0;

    PageOperands<T, HD> kv(p, row, kv_head, lane);
    int page = first + warp;
    const bool early = page < last && (page + 1) * PAGE_TOKENS <= context - p.fresh;
    if (early) kv.load_k(page), kv.load_v(page);

    wait_for_previous();

    // Query heads as the B operand; heads past the group repeat the last one and are not stored.
    const int q_head = kv_head * p.group + min(g, p.group - 1);
    const elem* q_at = p.q + static_cast<int64_t>(row) * p.q_stride + q_head * HD + j * 8;
    uint32_t q[S][4];
#pragma unroll
    for (int s = 0; s < S; s++) load_eight(q_at + s * 32, q[s]);

    const float scale = p.scale * p.kv.k_scale * 1.44269504f;  // times log2(e): the softmax uses exp2
    if (page < last && !early) kv.load_k(page), kv.load_v(page);

    RunningSums<HD> sums;
    for (; page < last; page += WARPS) {
        float scores[2][4] = {};
        kv.multiply_k(scores, q);
        if (page + WARPS < last) kv.load_k(page + WARPS);
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = page * PAGE_TOKENS + g + 8 * (i / 2);
            x[i] = token < context ? (scores[0][i] + scores[1][i]) * scale : -INFINITY;
        }
        float factor[2];
        sums.weigh(x, factor);
        const uint32_t p0 = transpose_8x8(elem2_bits(floats_to_elem2(x[0], x[1])));
        const uint32_t p1 = transpose_8x8(elem2_bits(floats_to_elem2(x[2], x[3])));
        kv.clear_v(page, context, j);
        sums.multiply_v(kv.v, p0, p1, factor);
        if (page + WARPS < last) kv.load_v(page + WARPS);
    }
    sums.add_lanes();

    __shared__ Partial block_o[8 * HD];
    __shared__ float block_m[8], block_l[8];
    const BlockPart<Partial, HD> block{block_o, block_m, block_l};
    const PartRoom<HD> room(p, row, kv_head);
    merge_warps(p, sums, block);
    if (ranks > 1) cluster_sync(); else __syncthreads();
    merge_blocks(p, block, part, room, row, kv_head, rank, ranks, splits);
    if (part.n_parts > 1) merge_parts(p, part, room, row, kv_head, rank, ranks);
    if (ranks > 1) cluster_sync();  // a block must not leave while its values may still be read
}

// The `_many` kernels use at most 128 registers and spill a few, so that four blocks fit a multiprocessor
// instead of three: 64 rows of 8 KV heads run at once.
#define ATTENTION_DECODE(name, type, hd, fp32, min_blocks)                                               \
    extern "C" __global__ void __launch_bounds__(128, min_blocks) name(                                  \
        const __grid_constant__ AttentionDecodeParams p) {                                               \
        attention_decode<type, hd, fp32>(p);                                                             \
    }
ATTENTION_DECODE(attention_decode_half_64_elem, elem, 64, false, 1)
ATTENTION_DECODE(attention_decode_half_64_fp32, elem, 64, true, 1)
ATTENTION_DECODE(attention_decode_half_128_elem, elem, 128, false, 1)
ATTENTION_DECODE(attention_decode_half_128_fp32, elem, 128, true, 1)
ATTENTION_DECODE(attention_decode_fp8_64_elem, __nv_fp8_e4m3, 64, false, 1)
ATTENTION_DECODE(attention_decode_fp8_64_fp32, __nv_fp8_e4m3, 64, true, 1)
ATTENTION_DECODE(attention_decode_fp8_128_elem, __nv_fp8_e4m3, 128, false, 1)
ATTENTION_DECODE(attention_decode_fp8_128_fp32, __nv_fp8_e4m3, 128, true, 1)
ATTENTION_DECODE(attention_decode_half_128_elem_many, elem, 128, false, 4)
ATTENTION_DECODE(attention_decode_half_128_fp32_many, elem, 128, true, 4)
ATTENTION_DECODE(attention_decode_fp8_128_elem_many, __nv_fp8_e4m3, 128, false, 4)
ATTENTION_DECODE(attention_decode_fp8_128_fp32_many, __nv_fp8_e4m3, 128, true, 4)
