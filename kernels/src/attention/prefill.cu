// out[t][h] = softmax(q[t][h] K^T / sqrt(head_dim)) V, causal, for packed prompt chunks of several
// sequences over their paged prefixes: flash attention with mma.sync.
//
// Sequence s has the tokens q_start[s] .. q_start[s + 1] of the batch, which are the last ones of
// its context_len[s] tokens; their keys and values are in the pages already. The query heads of a
// KV head are folded into the rows (row = token * group + head), so K and V are read once for all.
// A block has 64 rows, 16 per warp, and loops over its context in tiles of 64 tokens (4 pages). Tiles
// lie in shared memory as elements, whatever the cache holds. K loads overlap P V, V loads overlap Q K.
//
// Tokens past the end of a block's context weigh 0, and their values are cleared.
//
// Neither operand is transposed: K is read in 16-byte pieces, with the same permutation of the dimensions in
// Q and K; V has the layout of paged_kv.cuh, which is that of the B operand.
//
// FLOPs: 4 * head_dim * (visible pairs) per query head. Bytes: K and V once per block.
// Grid: (tiles of all sequences at most, n_kv_heads), long contexts first, 128 threads.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
// Ideas: FlashAttention-2 (Dao), GQA packing as in FlashInfer.
#include "packed.cuh"

constexpr int ROWS = 64, TOKENS = 64, THREADS = 128;

// Offset of 16-byte chunk `chunk` (8 dimensions) of token `row` in the K tile. The two rows of a pair are in
// different halves of the banks.
template <int HD>
DEVICE int k_offset(int row, int chunk) {
    return row * HD + (chunk ^ ((row & 1) << 2)) * 8;
}

// Zeroes the tokens from `end` on in 16-byte chunk `chunk` of the V tile (one lane's piece, see paged_kv.cuh).
template <int HD>
DEVICE void clear_chunk(int chunk, int end, elem* tile) {
    const int token = chunk / (2 * HD) * PAGE_TOKENS + chunk % 4 * 2;
    if (token + 9 < end) return;
    uint4& v = reinterpret_cast<uint4*>(tile)[chunk];
    v.x = keep_tokens(v.x, token, end), v.y = keep_tokens(v.y, token, end);
    v.z = keep_tokens(v.z, token + 8, end), v.w = keep_tokens(v.w, token + 8, end);
}

// Loads one tile of K or V from the pages into shared memory. `start` issues the loads, `finish` makes them
// visible to this thread; a barrier then makes them visible to all.
template <class T, int HD, bool IS_K>
struct TileLoader;

template <int HD, bool IS_K>
struct TileLoader<elem, HD, IS_K> {
    template <class PageAt>
    DEVICE void start(const elem* pool, PageAt page_at, elem* tile) {
#pragma unroll
        for (int n = 0; n < TOKENS * HD / 8 / THREADS; n++) {
            const int i = n * THREADS + threadIdx.x, page = i / (2 * HD), c = i % (2 * HD);
            const int row = page * PAGE_TOKENS + c / (HD / 8);
            const int to = IS_K ? k_offset<HD>(row, c % (HD / 8)) : i * 8;
            copy_16(shared_address(tile + to), pool + page_at(page) + c * 8);
        }
    }
    DEVICE void finish(elem*) { copies_wait_all(); }
    // Of V, after `finish`: zeroes this thread's part of the tile's tokens from `end` on.
    DEVICE void clear_from(int end, elem* tile) {
#pragma unroll
        for (int n = 0; n < TOKENS * HD / 8 / THREADS; n++) clear_chunk<HD>(n * THREADS + threadIdx.x, end, tile);
    }
};

template <int HD, bool IS_K>
struct TileLoader<__nv_fp8_e4m3, HD, IS_K> {
    static constexpr int N = TOKENS * HD / 16 / THREADS;
    uint4 staged[N];
    template <class PageAt>
    DEVICE void start(const __nv_fp8_e4m3* pool, PageAt page_at, elem*) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int i = n * THREADS + threadIdx.x, page = i / HD, c = i % HD;
            staged[n] = *reinterpret_cast<const uint4*>(pool + page_at(page) + c * 16);
        }
    }
    DEVICE void finish(elem* tile) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int i = n * THREADS + threadIdx.x, page = i / HD, c = i % HD;
            const int row = page * PAGE_TOKENS + c / (HD / 16), chunk = c % (HD / 16) * 2;
            const uint32_t words[4] = {staged[n].x, staged[n].y, staged[n].z, staged[n].w};
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t out[4];
#pragma unroll
                for (int w = 0; w < 4; w++) out[w] = from_e4m3_pair(words[half * 2 + w / 2] >> (16 * (w % 2)));
                const int to = IS_K ? k_offset<HD>(row, chunk + half) : i * 16 + half * 8;
                *reinterpret_cast<uint4*>(tile + to) = make_uint4(out[0], out[1], out[2], out[3]);
            }
        }
    }
    DEVICE void clear_from(int end, elem* tile) {
#pragma unroll
        for (int n = 0; n < 2 * N; n++) clear_chunk<HD>((n / 2 * THREADS + threadIdx.x) * 2 + n % 2, end, tile);
    }
};

DEVICE void load_eight(const elem* at, bool exists, uint32_t (&out)[4]) {
    if (exists) load_eight(at, out);
    else out[0] = out[1] = out[2] = out[3] = 0;
}

// This lane's two rows, g and g + 8 of the warp's 16. Rows past the end are zero and not stored.
template <int HD>
struct QueryRows {
    static constexpr int S = HD / 32;
    int64_t token[2];
    int head[2], limit[2];  // limit: how many tokens of the context the row sees
    bool exists[2];
    uint32_t q[S][2][4];  // the A operand

    DEVICE QueryRows(const PackedAttentionParams& p, const BlockRows& block, int kv_head, int warp, int g, int j) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = block.first_row + warp * 16 + g + 8 * h;
            exists[h] = row < block.rows;
            const int t = min(row, block.rows - 1) / p.group;
            token[h] = block.begin + t;
            head[h] = kv_head * p.group + min(row, block.rows - 1) % p.group;
            limit[h] = block.limit(row, p.group);
        }
#pragma unroll
        for (int s = 0; s < S; s++) {
            uint32_t x[2][4];
#pragma unroll
            for (int h = 0; h < 2; h++)
                load_eight(p.q + token[h] * p.q_stride + head[h] * HD + s * 32 + j * 8, exists[h], x[h]);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                q[s][i][0] = x[0][2 * i], q[s][i][1] = x[1][2 * i];
                q[s][i][2] = x[0][2 * i + 1], q[s][i][3] = x[1][2 * i + 1];
            }
        }
    }
};

constexpr int PAGES = TOKENS / PAGE_TOKENS, SCORE_TILES = TOKENS / 8;

// S = Q K^T of a tile. Score i of tile n is row g + 8 * (i / 2), token n * 8 + 2j + i % 2.
template <int HD>
DEVICE void multiply_k(float (&scores)[SCORE_TILES][4], const QueryRows<HD>& query, const elem* k_tile, int g, int j) {
#pragma unroll
    for (int s = 0; s < HD / 32; s++)
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++) {
            const uint4 k = *reinterpret_cast<const uint4*>(k_tile + k_offset<HD>(n * 8 + g, s * 4 + j));
            mma_16816(scores[n], query.q[s][0], k.x, k.y);
            mma_16816(scores[n], query.q[s][1], k.z, k.w);
        }
}

// What a warp has summed up so far, of this lane's two rows: the online softmax.
template <int HD>
struct RunningSums {
    static constexpr int TILES = HD / 16;
    float m[2] = {-INFINITY, -INFINITY};  // largest score
    float l[2] = {0.f, 0.f};              // sum of weights: of this lane's tokens until `store`
    float o[2 * TILES][4] = {};           // weighted V

    // Scales and masks a tile's scores and updates the largest. `factor`: what the sums so far are
    // multiplied by.
    DEVICE void raise_largest(float (&scores)[SCORE_TILES][4], float (&factor)[2], const int (&limit)[2], int first_token,
                              bool is_whole, float scale, int j) {
        float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int t = first_token + n * 8 + 2 * j + i % 2;
                scores[n][i] = is_whole || t < limit[i / 2] ? scores[n][i] * scale : -INFINITY;
                top[i / 2] = fmaxf(top[i / 2], scores[n][i]);
            }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 1));
            top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 2));
            top[h] = fmaxf(top[h], m[h]);  // finite: every row sees token 0
            factor[h] = exp2f(m[h] - top[h]);
            m[h] = top[h];
            l[h] *= factor[h];
        }
    }
    // Scores become weights, as the A operand of each page.
    DEVICE void weigh(uint32_t (&weights)[PAGES][4], const float (&scores)[SCORE_TILES][4]) {
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++) {
            float x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = exp2f(scores[n][i] - m[i / 2]);
            l[0] += x[0] + x[1], l[1] += x[2] + x[3];
            weights[n / 2][n % 2 * 2] = elem2_bits(floats_to_elem2(x[0], x[1]));
            weights[n / 2][n % 2 * 2 + 1] = elem2_bits(floats_to_elem2(x[2], x[3]));
        }
    }
    // O = O factor + P V.
    DEVICE void multiply_v(const uint32_t (&weights)[PAGES][4], const float (&factor)[2], const elem* v_tile, int lane) {
#pragma unroll
        for (int n = 0; n < 2 * TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[n][i] *= factor[i / 2];
#pragma unroll
        for (int page = 0; page < PAGES; page++)
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const uint4 v = *reinterpret_cast<const uint4*>(v_tile + (page * TILES + t) * 256 + lane * 8);
                mma_16816(o[2 * t], weights[page], v.x, v.z);
                mma_16816(o[2 * t + 1], weights[page], v.y, v.w);
            }
    }
    DEVICE void store(const PackedAttentionParams& p, const QueryRows<HD>& query, int j) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            l[h] += __shfl_xor_sync(~0u, l[h], 1);
            l[h] += __shfl_xor_sync(~0u, l[h], 2);
            const float r = p.kv.v_scale / l[h];
            if (query.exists[h])
#pragma unroll
                for (int n = 0; n < 2 * TILES; n++) {
                    const int64_t at =
                        activation_at(query.token[h], query.head[h] * HD + n * 8 + 2 * j, p.out_stride, p.out_tile_rows);
                    *reinterpret_cast<elem2*>(p.out + at) = floats_to_elem2(o[n][2 * h] * r, o[n][2 * h + 1] * r);
                }
        }
    }
};

template <class T, int HD>
DEVICE void attention_prefill(const PackedAttentionParams& p) {
    __shared__ __align__(16) elem k_tile[TOKENS * HD];
    __shared__ __align__(16) elem v_tile[TOKENS * HD];
    const int kv_head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
    launch_dependents();
    wait_for_previous();
    BlockRows block;
    if (!block.find<ROWS>(p, gridDim.x - 1 - blockIdx.x)) return;

    const QueryRows<HD> query(p, block, kv_head, warp, g, j);
    // How many tokens of the context the block's last row sees, and its first.
    const int last_limit = block.limit(block.first_row + ROWS - 1, p.group);
    const int first_limit = block.limit(block.first_row, p.group);
    const int n_tiles = (last_limit + TOKENS - 1) / TOKENS, last_page = (last_limit - 1) / PAGE_TOKENS;

    const int32_t* table = p.page_table + static_cast<int64_t>(block.seq) * p.max_pages;
    const int64_t page_values = static_cast<int64_t>(p.n_kv) * PAGE_TOKENS * HD;
    const T* k_pool = static_cast<const T*>(p.kv.k) + kv_head * PAGE_TOKENS * HD;
    const T* v_pool = static_cast<const T*>(p.kv.v) + kv_head * PAGE_TOKENS * HD;
    TileLoader<T, HD, true> k_loader;
    TileLoader<T, HD, false> v_loader;
    // Pages past the end repeat the last one; its tokens are masked there.
    auto page_at = [&](int page) { return page_in_pool(p.kv, table[min(page, last_page)]) * page_values; };
    auto start_k = [&](int tile) { k_loader.start(k_pool, [&](int page) { return page_at(tile * PAGES + page); }, k_tile); };
    auto start_v = [&](int tile) { v_loader.start(v_pool, [&](int page) { return page_at(tile * PAGES + page); }, v_tile); };

    const float scale = p.scale * p.kv.k_scale * 1.44269504f;  // times log2(e): the softmax uses exp2
    RunningSums<HD> sums;
    start_k(0);
    for (int tile = 0; tile < n_tiles; tile++) {
        k_loader.finish(k_tile);
        __syncthreads();  // K has arrived, and no warp still reads the previous V
        start_v(tile);
        float scores[SCORE_TILES][4] = {};
        multiply_k(scores, query, k_tile, g, j);
        float factor[2];
        const bool is_whole = (tile + 1) * TOKENS <= first_limit;
        sums.raise_largest(scores, factor, query.limit, tile * TOKENS, is_whole, scale, j);
        uint32_t weights[PAGES][4];
        sums.weigh(weights, scores);
        v_loader.finish(v_tile);
        if ((tile + 1) * TOKENS > last_limit) v_loader.clear_from(last_limit - tile * TOKENS, v_tile);
        __syncthreads();  // V has arrived, and no warp still reads this K
        if (tile + 1 < n_tiles) start_k(tile + 1);
        sums.multiply_v(weights, factor, v_tile, lane);
    }
    sums.store(p, query, j);
}

// blocks: the number that a multiprocessor should hold, which bounds the registers.
#define ATTENTION_PREFILL(name, type, hd, blocks)                                \
    extern "C" __global__ void __launch_bounds__(THREADS, blocks)                \
        name(const __grid_constant__ PackedAttentionParams p) {                  \
        attention_prefill<type, hd>(p);                                          \
    }
ATTENTION_PREFILL(attention_prefill_half_64, elem, 64, 3)
ATTENTION_PREFILL(attention_prefill_half_128, elem, 128, 2)
ATTENTION_PREFILL(attention_prefill_fp8_64, __nv_fp8_e4m3, 64, 3)
ATTENTION_PREFILL(attention_prefill_fp8_128, __nv_fp8_e4m3, 128, 2)
