// out[t][h] = softmax(q[t][h] K^T / sqrt(head_dim)) V, as prefill.cu, with the warpgroup's matrix instruction.
//
// A block has 128 rows (row = token * group + head of the KV head's group) and walks its context in tiles of 128
// tokens (8 pages).
//   * One warpgroup loads: K by 16-byte copies, V through registers, for its operand needs the tokens of a
//     dimension side by side. Both rings have two stages.
//   * Two warpgroups multiply 64 rows each. Scores stay in registers and become the A operand of P V. The scores
//     of a tile are multiplied while P V of the tile before is, so that the softmax hides P V.
//
// V in the pages has the pairs of tokens 2j, 2j + 1 and 2j + 8, 2j + 9 of a dimension in one lane's piece
// (paged_kv.cuh). So tokens stand in shared memory in the order 0 1 8 9 2 3 10 11 ... of their page (`slot_of`), K
// as well as V: a sum over tokens may take them in any order.
//
// Tokens past the end of a block's context weigh 0, and their values are cleared.
//
// FLOPs: 4 * head_dim * (visible pairs) per query head. Bytes: K and V once per block.
// Grid: (tiles of all sequences at most, n_kv_heads), long contexts first, 384 threads. Shared memory: 160 KiB.
// Architectures: sm_90a. Elements: f16, bf16.
// Ideas: FlashAttention-3 (Shah et al., 2024), GQA packing as in FlashInfer.
#include "../cuda/wgmma.cuh"
#include "packed.cuh"

constexpr int HD = 128, TOKENS = 128, GROUPS = 2, ROWS = 64 * GROUPS, STAGES = 2;
constexpr int LOADERS = 128, THREADS = GROUPS * 128 + LOADERS;
constexpr int PAGES = TOKENS / PAGE_TOKENS;
constexpr int OPERAND_K = 64, OPERAND_ROW_BYTES = OPERAND_K * 2;  // of an operand's row in shared memory
// Of Q: [GROUPS][HD / 64][64 rows], of K: [STAGES][HD / 64][TOKENS], of V: [STAGES][TOKENS / 64][HD]
constexpr int Q_BYTES = ROWS * HD * 2, K_STAGE = TOKENS * HD * 2, V_STAGE = HD * TOKENS * 2;
constexpr int N_BARRIERS = 4 * STAGES;
constexpr int SHARED_BYTES = 163904;  // the host has the same number
static_assert(SHARED_BYTES == Q_BYTES + STAGES * (K_STAGE + V_STAGE) + N_BARRIERS * 8);
// Of a thread, after the warpgroups have exchanged some: together what the launch has.
constexpr int LOADER_REGISTERS = 88, CONSUMER_REGISTERS = 208;

// Where 16-byte piece `piece` (8 values) of row `row` is in an operand of `rows` rows, 64 k a part.
DEVICE uint32_t operand_at(int row, int piece, int rows) {
    return piece / 8 * rows * OPERAND_ROW_BYTES + row * OPERAND_ROW_BYTES + ((piece ^ row) % 8 << 4);
}
// Position of a token of a page among its 16, and the token at a position.
DEVICE int slot_of(int token) { return token % 8 / 2 * 4 + token / 8 * 2 + token % 2; }
DEVICE int token_at(int slot) { return slot / 4 * 2 + slot / 2 % 2 * 8 + slot % 2; }

DEVICE void write_16(uint32_t to, uint4 v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEVICE void write_8(uint32_t to, uint32_t x, uint32_t y) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(x), "r"(y) : "memory");
}
// What this thread has written to shared memory, for the matrix instructions of others.
DEVICE void operands_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Addresses in shared memory.
struct Rings {
    uint32_t q, k, v, k_full, k_empty, v_full, v_empty;
    DEVICE explicit Rings(uint32_t at)
        : q(at), k(at + Q_BYTES), v(k + STAGES * K_STAGE), k_full(v + STAGES * V_STAGE), k_empty(k_full + STAGES * 8),
          v_full(k_empty + STAGES * 8), v_empty(v_full + STAGES * 8) {}
};

// What a loading thread does with a page. Its 16-byte pieces of K are those with the numbers `thread` and, of 16-bit
// values, 128 + `thread`; the same of V. Offsets of other pages differ by constants.
template <class T>
struct Loader;

// Where piece 0 or 1 of a page's V is written: the pairs of tokens 2j, 2j + 1 and 2j + 8, 2j + 9 of dimensions d and
// d + 8. In the page's operand rows of 128 bytes the page begins at byte (page % 4) * 32.
DEVICE uint32_t v_place(int d, int j) { return operand_at(d, j / 2, HD) + j % 2 * 8; }
DEVICE uint32_t v_of_page(uint32_t place, int page) {
    return (place ^ page % 4 << 5) + page / 4 * HD * OPERAND_ROW_BYTES;
}
DEVICE void write_pairs(uint32_t at, uint4 w) {
    write_8(at, w.x, w.z);
    write_8(at + 8 * OPERAND_ROW_BYTES, w.y, w.w);
}
// Zeroes the tokens from `end` on, of the tile's tokens `token`, `token` + 1, + 8 and + 9.
DEVICE uint4 kept(uint4 w, int token, int end) {
    return make_uint4(keep_tokens(w.x, token, end), keep_tokens(w.y, token, end), keep_tokens(w.z, token + 8, end),
                      keep_tokens(w.w, token + 8, end));
}

template <>
struct Loader<elem> {
    static constexpr int VALUES = 8, HALF_PAGE = LOADERS * VALUES;
    uint32_t k_at[2], v_at;
    uint4 v[PAGES];  // of half of the pages
    int j;

    DEVICE explicit Loader(int thread) : v_at(v_place(thread / 32 * 16 + thread % 32 / 4, thread % 4)), j(thread % 4) {
        for (int half = 0; half < 2; half++)
            k_at[half] = operand_at(slot_of(half * 8 + thread / 16), thread % 16, TOKENS);
    }
    // `from`: this thread's first piece of the page.
    DEVICE void start_k(uint32_t tile, int page, const elem* from) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            copy_16(tile + k_at[half] + page * PAGE_TOKENS * OPERAND_ROW_BYTES, from + half * HALF_PAGE);
    }
    DEVICE void finish_k(uint32_t) { copies_wait_all(); }
    DEVICE void load_v(int n, const elem* from) {
#pragma unroll
        for (int half = 0; half < 2; half++) v[2 * n + half] = *reinterpret_cast<const uint4*>(from + half * HALF_PAGE);
    }
    DEVICE void write_v(uint32_t tile, int n, int page, int end) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            write_pairs(tile + v_of_page(v_at, page) + half * 64 * OPERAND_ROW_BYTES,
                        end >= TOKENS ? v[2 * n + half] : kept(v[2 * n + half], page * PAGE_TOKENS + 2 * j, end));
    }
};

template <>
struct Loader<__nv_fp8_e4m3> {
    static constexpr int VALUES = 16;
    uint32_t k_at[2], v_at[2];
    uint4 k[PAGES], v[PAGES / 2];
    int j;

    DEVICE explicit Loader(int thread) : j(thread % 2 * 2) {
        const int d = thread / 16 * 16 + thread % 16 / 2;
        for (int i = 0; i < 2; i++) {
            k_at[i] = operand_at(slot_of(thread / 8), thread % 8 * 2 + i, TOKENS);
            v_at[i] = v_place(d, j + i);
        }
    }
    DEVICE static uint4 eight(uint32_t low, uint32_t high) {
        return make_uint4(from_e4m3_pair(low), from_e4m3_pair(low >> 16), from_e4m3_pair(high), from_e4m3_pair(high >> 16));
    }
    DEVICE void start_k(uint32_t, int page, const __nv_fp8_e4m3* from) { k[page] = *reinterpret_cast<const uint4*>(from); }
    DEVICE void finish_k(uint32_t tile) {
#pragma unroll
        for (int page = 0; page < PAGES; page++) {
            const uint32_t at = tile + page * PAGE_TOKENS * OPERAND_ROW_BYTES;
            write_16(at + k_at[0], eight(k[page].x, k[page].y));
            write_16(at + k_at[1], eight(k[page].z, k[page].w));
        }
    }
    DEVICE void load_v(int n, const __nv_fp8_e4m3* from) { v[n] = *reinterpret_cast<const uint4*>(from); }
    DEVICE void write_v(uint32_t tile, int n, int page, int end) {
        const uint4 pieces[2] = {eight(v[n].x, v[n].y), eight(v[n].z, v[n].w)};
#pragma unroll
        for (int i = 0; i < 2; i++)
            write_pairs(tile + v_of_page(v_at[i], page),
                        end >= TOKENS ? pieces[i] : kept(pieces[i], page * PAGE_TOKENS + 2 * (j + i), end));
    }
};

template <class T>
DEVICE void load_tiles(const PackedAttentionParams& p, const BlockRows& block, const Rings& rings, int n_tiles, int last_limit) {
    const int thread = threadIdx.x % LOADERS, last_page = (last_limit - 1) / PAGE_TOKENS;
    const int32_t* table = p.page_table + static_cast<int64_t>(block.seq) * p.max_pages;
    const int64_t page_values = static_cast<int64_t>(p.n_kv) * PAGE_TOKENS * HD;
    const int own = blockIdx.y * PAGE_TOKENS * HD + thread * Loader<T>::VALUES;
    const T* k_pool = static_cast<const T*>(p.kv.k) + own;
    const T* v_pool = static_cast<const T*>(p.kv.v) + own;
    Loader<T> loader(thread);
    for (int tile = 0; tile < n_tiles; tile++) {
        const int stage = tile % STAGES, parity = tile / STAGES % 2 ^ 1, end = last_limit - tile * TOKENS;
        const uint32_t k_tile = rings.k + stage * K_STAGE, v_tile = rings.v + stage * V_STAGE;
        // Pages past the end repeat the last one; its tokens are masked there.
        auto page_at = [&](int page) {
            return page_in_pool(p.kv, table[min(tile * PAGES + page, last_page)]) * page_values;
        };
        auto load_half_of_v = [&](int first) {
#pragma unroll
            for (int n = 0; n < PAGES / 2; n++) loader.load_v(n, v_pool + page_at(first + n));
        };
        auto write_half_of_v = [&](int first) {
#pragma unroll
            for (int n = 0; n < PAGES / 2; n++) loader.write_v(v_tile, n, first + n, end);
        };
        barrier_wait(rings.k_empty + stage * 8, parity);
#pragma unroll
        for (int page = 0; page < PAGES; page++) loader.start_k(k_tile, page, k_pool + page_at(page));
        load_half_of_v(0);
        loader.finish_k(k_tile);
        operands_fence();
        __syncwarp();
        if (thread % 32 == 0) barrier_arrive(rings.k_full + stage * 8);
        barrier_wait(rings.v_empty + stage * 8, parity);
        write_half_of_v(0);
        load_half_of_v(PAGES / 2);
        write_half_of_v(PAGES / 2);
        operands_fence();
        __syncwarp();
        if (thread % 32 == 0) barrier_arrive(rings.v_full + stage * 8);
    }
}

constexpr int SCORE_TILES = TOKENS / 8, OUT_TILES = HD / 8;

// A warpgroup's Q into shared memory. Rows past the end repeat the last one and are not stored.
DEVICE void copy_q(const PackedAttentionParams& p, const BlockRows& block, uint32_t q_tile, int first_row) {
    const int thread = threadIdx.x % 128;
#pragma unroll
    for (int n = 0; n < 64 * HD / 8 / 128; n++) {
        const int i = n * 128 + thread, row = i / (HD / 8), piece = i % (HD / 8);
        const int of_seq = min(first_row + row, block.rows - 1);
        const int64_t token = block.begin + of_seq / p.group;
        const int head = blockIdx.y * p.group + of_seq % p.group;
        copy_16(q_tile + operand_at(row, piece, 64), p.q + token * p.q_stride + head * HD + piece * 8);
    }
    copies_wait_all();
    operands_fence();
    asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory");
}

// Starts S = Q K^T. Score i of tile n is row g + 8 * (i / 2) of the warp, slot n * 8 + 2j + i % 2.
DEVICE void start_scores(float (&scores)[SCORE_TILES][4], uint32_t q_tile, uint32_t k_tile) {
#pragma unroll
    for (int k = 0; k < HD; k += 16) {
        const uint32_t part = k / OPERAND_K, step = k % OPERAND_K / 8;
        const uint64_t q = wgmma_operand(q_tile + part * 64 * OPERAND_ROW_BYTES) + step;
        wgmma(scores, q, wgmma_operand(k_tile + part * TOKENS * OPERAND_ROW_BYTES) + step, k > 0);
    }
    wgmma_commit();
}
// Starts O += P V.
DEVICE void start_values(float (&o)[OUT_TILES][4], const uint32_t (&weights)[PAGES][4], uint32_t v_tile) {
#pragma unroll
    for (int page = 0; page < PAGES; page++)
        wgmma(o, weights[page], wgmma_operand(v_tile + page / 4 * HD * OPERAND_ROW_BYTES) + page % 4 * 2);
    wgmma_commit();
}

// The online softmax of this lane's two rows, g and g + 8 of the warp's 16.
struct Softmax {
    float m[2] = {-INFINITY, -INFINITY};  // largest score, times `scale`
    float l[2] = {0.f, 0.f};              // sum of weights: of this lane's tokens until `store`

    // Scores become weights. `factor`: what the sums so far are multiplied by.
    DEVICE void weigh(float (&scores)[SCORE_TILES][4], float (&factor)[2], const int (&limit)[2], int first_token, bool is_whole,
                      float scale, int j) {
        if (!is_whole)
#pragma unroll
            for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int token = first_token + n / 2 * PAGE_TOKENS + token_at(n % 2 * 8 + 2 * j + i % 2);
                    if (token >= limit[i / 2]) scores[n][i] = -INFINITY;
                }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = scores[0][2 * h];
#pragma unroll
            for (int n = 0; n < SCORE_TILES; n++) top = fmaxf(top, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            top = fmaxf(top * scale, m[h]);  // finite: every row sees token 0
            factor[h] = exp2_fast(m[h] - top);
            m[h] = top;
            float sum = 0.f;
#pragma unroll
            for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    scores[n][i] = exp2_fast(scores[n][i] * scale - top);
                    sum += scores[n][i];
                }
            l[h] = l[h] * factor[h] + sum;
        }
    }
};

// Weights as the A operand of each page.
DEVICE void pack(uint32_t (&weights)[PAGES][4], const float (&scores)[SCORE_TILES][4]) {
#pragma unroll
    for (int n = 0; n < SCORE_TILES; n++) {
        weights[n / 2][n % 2 * 2] = elem2_bits(floats_to_elem2(scores[n][0], scores[n][1]));
        weights[n / 2][n % 2 * 2 + 1] = elem2_bits(floats_to_elem2(scores[n][2], scores[n][3]));
    }
}

DEVICE void multiply_tiles(const PackedAttentionParams& p, const BlockRows& block, const Rings& rings, int n_tiles) {
    const int group = threadIdx.x / 128, lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
    const int first_row = block.first_row + group * 64, own_row = first_row + threadIdx.x % 128 / 32 * 16 + g;
    const uint32_t q_tile = rings.q + group * 64 * HD * 2;
    copy_q(p, block, q_tile, first_row);
    const int limit[2] = {block.limit(own_row, p.group), block.limit(own_row + 8, p.group)};
    const int first_limit = block.limit(first_row, p.group);
    const float scale = p.scale * p.kv.k_scale * 1.44269504f;  // times log2(e): the softmax uses exp2

    auto wait = [&](uint32_t barriers, int tile) { barrier_wait(barriers + tile % STAGES * 8, tile / STAGES % 2); };
    auto release = [&](uint32_t barriers, int tile) {
        if (lane == 0) barrier_arrive(barriers + tile % STAGES * 8);
    };
    auto k_tile = [&](int tile) { return rings.k + tile % STAGES * K_STAGE; };
    auto v_tile = [&](int tile) { return rings.v + tile % STAGES * V_STAGE; };
    auto is_whole = [&](int tile) { return (tile + 1) * TOKENS <= first_limit; };

    Softmax softmax;
    float scores[SCORE_TILES][4], o[OUT_TILES][4] = {}, factor[2];
    uint32_t weights[PAGES][4];
    wait(rings.k_full, 0);
    wgmma_fence();
    start_scores(scores, q_tile, k_tile(0));
    wgmma_wait<0>();
    release(rings.k_empty, 0);
    softmax.weigh(scores, factor, limit, 0, is_whole(0), scale, j);
    pack(weights, scores);
    for (int tile = 1; tile < n_tiles; tile++) {
        wait(rings.k_full, tile);
        wgmma_fence();
        start_scores(scores, q_tile, k_tile(tile));
        wait(rings.v_full, tile - 1);
        wgmma_fence();
        start_values(o, weights, v_tile(tile - 1));
        wgmma_wait<1>();
        release(rings.k_empty, tile);
        softmax.weigh(scores, factor, limit, tile * TOKENS, is_whole(tile), scale, j);
        wgmma_wait<0>();
        release(rings.v_empty, tile - 1);
        if (__any_sync(~0u, factor[0] != 1.f || factor[1] != 1.f))
#pragma unroll
            for (int n = 0; n < OUT_TILES; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) o[n][i] *= factor[i / 2];
        pack(weights, scores);
    }
    wait(rings.v_full, n_tiles - 1);
    wgmma_fence();
    start_values(o, weights, v_tile(n_tiles - 1));
    wgmma_wait<0>();

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = softmax.l[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float r = p.kv.v_scale / sum;
        const int row = own_row + 8 * h;
        if (row >= block.rows) continue;
        const int token = block.begin + row / p.group, head = blockIdx.y * p.group + row % p.group;
#pragma unroll
        for (int n = 0; n < OUT_TILES; n++) {
            const int64_t at = activation_at(token, head * HD + n * 8 + 2 * j, p.out_stride, p.out_tile_rows);
            *reinterpret_cast<elem2*>(p.out + at) = floats_to_elem2(o[n][2 * h] * r, o[n][2 * h + 1] * r);
        }
    }
}

template <class T>
DEVICE void attention_prefill(const PackedAttentionParams& p) {
    extern __shared__ __align__(1024) uint8_t smem[];
    const Rings rings(shared_address(smem));
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(rings.k_full + s * 8, LOADERS / 32), barrier_init(rings.k_empty + s * 8, GROUPS * 4);
            barrier_init(rings.v_full + s * 8, LOADERS / 32), barrier_init(rings.v_empty + s * 8, GROUPS * 4);
        }
        barrier_init_fence();
    }
    launch_dependents();
    wait_for_previous();
    BlockRows block;
    if (!block.find<ROWS>(p, gridDim.x - 1 - blockIdx.x)) return;
    __syncthreads();
    const int last_limit = block.limit(block.first_row + ROWS - 1, p.group);
    const int n_tiles = (last_limit + TOKENS - 1) / TOKENS;
    if (threadIdx.x >= GROUPS * 128) {
        release_registers<LOADER_REGISTERS>();
        load_tiles<T>(p, block, rings, n_tiles, last_limit);
    } else {
        claim_registers<CONSUMER_REGISTERS>();
        multiply_tiles(p, block, rings, n_tiles);
    }
}

#define ATTENTION_PREFILL(name, type)                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)               \
        name(const __grid_constant__ PackedAttentionParams p) {            \
        attention_prefill<type>(p);                                        \
    }
ATTENTION_PREFILL(attention_prefill_wgmma_half_128, elem)
ATTENTION_PREFILL(attention_prefill_wgmma_fp8_128, __nv_fp8_e4m3)
