// The same result as prefill.cu and decode.cu, in the simplest way: one warp per (token, query head), one key
// after the other, f32 throughout. For comparison, and for machines where the others fail.
//
// Bytes: K and V once per (token, query head). Grid: (n_tokens / 4, n_q_heads), 128 threads.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "packed.cuh"

template <class T, int HD>
DEVICE void attention_plain(const PackedAttentionParams& p) {
    constexpr int E = HD / 32;  // dimensions of a lane
    const int token = blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
    launch_dependents();
    wait_for_previous();
    if (token >= p.n_tokens) return;
    int seq = -1;
    for (int s = 0; s < p.n_seqs; s++)
        if (first_token(p, s) <= token && token < first_token(p, s + 1)) seq = s;
    if (seq < 0) return;
    const int context = min(p.context_len[seq], p.max_pages * PAGE_TOKENS);
    if (context <= 0) return;
    const int begin = first_token(p, seq), len = first_token(p, seq + 1) - begin;
    const int limit = min(max(0, context - len) + token - begin + 1, context);

    const int kv_head = head / p.group;
    const int32_t* table = p.page_table + static_cast<int64_t>(seq) * p.max_pages;
    const elem* q_at = p.q + static_cast<int64_t>(token) * p.q_stride + head * HD + lane * E;
    const float scale = p.scale * p.kv.k_scale;
    float q[E], o[E] = {}, top = -INFINITY, total = 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) q[e] = elem_to_float(q_at[e]);
    for (int t = 0; t < limit; t++) {
        const int64_t page = (page_in_pool(p.kv, table[t / PAGE_TOKENS]) * p.n_kv + kv_head) * PAGE_TOKENS * HD;
        const T* k = static_cast<const T*>(p.kv.k) + page + t % PAGE_TOKENS * HD + lane * E;
        const T* v = static_cast<const T*>(p.kv.v) + page;
        float score = 0.f;
#pragma unroll
        for (int e = 0; e < E; e++) score += q[e] * static_cast<float>(k[e]);
#pragma unroll
        for (int d = 16; d > 0; d /= 2) score += __shfl_xor_sync(~0u, score, d);
        score *= scale;
        const float new_top = fmaxf(top, score), factor = expf(top - new_top), weight = expf(score - new_top);
        top = new_top;
        total = total * factor + weight;
#pragma unroll
        for (int e = 0; e < E; e++)
            o[e] = o[e] * factor + weight * static_cast<float>(v[v_offset(t % PAGE_TOKENS, lane * E + e)]);
    }
#pragma unroll
    for (int e = 0; e < E; e++)
        p.out[activation_at(token, head * HD + lane * E + e, p.out_stride, p.out_tile_rows)] =
            float_to_elem(o[e] / total * p.kv.v_scale);
}

#define ATTENTION_PLAIN(name, type, hd)                                                                          \
    extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ PackedAttentionParams p) { \
        attention_plain<type, hd>(p);                                                                            \
    }
ATTENTION_PLAIN(attention_plain_half_64, elem, 64)
ATTENTION_PLAIN(attention_plain_half_128, elem, 128)
ATTENTION_PLAIN(attention_plain_fp8_64, __nv_fp8_e4m3, 64)
ATTENTION_PLAIN(attention_plain_fp8_128, __nv_fp8_e4m3, 128)
