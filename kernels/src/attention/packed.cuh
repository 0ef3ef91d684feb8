// Prompt chunks of several sequences, concatenated: the parameters of prefill.cu, prefill_wgmma.cu and plain.cu,
// and the rows of their blocks.
#pragma once
#include "../cuda/paged_kv.cuh"
#include "../cuda/tiled.cuh"

struct PackedAttentionParams {
    const elem* q;               // [n_tokens][q_stride], head h at h * head_dim
    PagedKv kv;
    const int32_t* page_table;   // [n_seqs][max_pages]
    const int32_t* q_start;      // [n_seqs + 1]
    const int32_t* context_len;  // [n_seqs]; 0 for a padding row
    elem* out;                   // [n_tokens][out_stride], or tiled (tiled.cuh)
    float scale;                 // 1 / sqrt(head_dim)
    int32_t n_kv, group;
    int32_t max_pages, q_stride, out_stride;
    int32_t n_seqs, n_tokens;
    int32_t out_tile_rows;       // 0 for plain rows
    int32_t padding;
};

// First token of a sequence, clamped to the batch whatever q_start says.
DEVICE int first_token(const PackedAttentionParams& p, int seq) { return max(0, min(p.q_start[seq], p.n_tokens)); }

// Which sequence tile `tile` belongs to, and its first row there. The same in every warp.
template <int ROWS>
DEVICE bool find_tile(const PackedAttentionParams& p, int tile, int& seq, int& first_row) {
    const int lane = threadIdx.x % 32;
    int before = 0;
    for (int base = 0; base < p.n_seqs; base += 32) {
        const int s = base + lane;
        const int tiles = s < p.n_seqs ? (max(0, first_token(p, s + 1) - first_token(p, s)) * p.group + ROWS - 1) / ROWS : 0;
        int inclusive = tiles;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int other = __shfl_up_sync(~0u, inclusive, d);
            if (lane >= d) inclusive += other;
        }
        const uint32_t hit = __ballot_sync(~0u, before + inclusive > tile);
        if (hit != 0) {
            const int found = __ffs(hit) - 1;
            seq = base + found;
            first_row = (tile - before - __shfl_sync(~0u, inclusive - tiles, found)) * ROWS;
            return true;
        }
        before += __shfl_sync(~0u, inclusive, 31);
    }
    return false;
}

// Where a block works: rows of one sequence, one KV head. row = token * group + head of the group.
struct BlockRows {
    int seq, first_row, rows;  // rows: of the sequence
    int begin;                 // the sequence's first token in the batch
    int start, context;        // of the context: the token of row 0, and how many there are

    // Of tile `tile` of all; false if there is nothing to do. The same in every warp.
    template <int ROWS>
    DEVICE bool find(const PackedAttentionParams& p, int tile) {
        if (!find_tile<ROWS>(p, tile, seq, first_row)) return false;
        begin = first_token(p, seq);
        const int len = first_token(p, seq + 1) - begin;
        context = min(p.context_len[seq], p.max_pages * PAGE_TOKENS);
        start = max(0, context - len), rows = len * p.group;
        return context > 0;
    }
    // How many tokens of the context a row sees. Rows past the end see what the last one does.
    DEVICE int limit(int row, int group) const { return min(start + min(row, rows - 1) / group + 1, context); }
};
