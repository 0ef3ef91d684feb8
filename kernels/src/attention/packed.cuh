// The parameters of prefill.cu and plain.cu: prompt chunks of several sequences, concatenated.
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
