// Between the q/k/v projection and attention, per token and head:
//   q, k <- RMSNorm over head_dim (Qwen3)      q, k <- RoPE at the token's position
//   k, v  -> the token's slot of the paged cache
//
// qkv: [m][(n_q + 2 n_kv) * head_dim] elements, q rotated in place. One warp per head. Lane l holds the
// dimensions l*E .. and their partners half a head further, so that a rotation stays within the lane.
// Bytes: qkv once, q and the cache slots once. Grid: (m, heads / 16), 512 threads. With 4 heads a block, 1,024
// tokens of 80 heads are 20,480 blocks, which take longer to start than to run.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "../cuda/paged_kv.cuh"

constexpr int HEADS_PER_BLOCK = 16, THREADS = HEADS_PER_BLOCK * 32;

struct QkvPrepareParams {
    elem* qkv;
    const elem* q_norm;        // [head_dim] or null
    const elem* k_norm;        // [head_dim] or null
    const float* cos_sin;      // [positions][head_dim]: cosines, then sines, of head_dim / 2 angles
    const int32_t* positions;  // [m]
    const int32_t* slots;      // [m] page * PAGE_TOKENS + token, -1 for a padding row
    PagedKv kv;
    unsigned long long* n_saturated;  // incremented by the number of values that were clamped or NaN; or null
    float eps;
    int32_t m, n_q, n_kv, row_stride;
    int32_t n_positions;  // rows of cos_sin; a position outside is clamped
};

// E values side by side: one load or store.
DEVICE void load_values(const elem* at, float (&v)[1]) { v[0] = elem_to_float(*at); }
DEVICE void load_values(const elem* at, float (&v)[2]) {
    const float2 pair = elem2_to_float2(*reinterpret_cast<const elem2*>(at));
    v[0] = pair.x, v[1] = pair.y;
}
DEVICE void load_values(const float* at, float (&v)[1]) { v[0] = *at; }
DEVICE void load_values(const float* at, float (&v)[2]) {
    const float2 pair = *reinterpret_cast<const float2*>(at);
    v[0] = pair.x, v[1] = pair.y;
}
DEVICE void store_values(elem* at, const float (&v)[1]) { *at = float_to_elem(v[0]); }
DEVICE void store_values(elem* at, const float (&v)[2]) { *reinterpret_cast<elem2*>(at) = floats_to_elem2(v[0], v[1]); }

template <class T, int HD>
DEVICE void qkv_prepare(const QkvPrepareParams& p) {
    constexpr int E = HD / 64;  // dimensions of each half that a lane holds
    const int row = blockIdx.x, head = blockIdx.y * HEADS_PER_BLOCK + threadIdx.x / 32, lane = threadIdx.x % 32;
    launch_dependents();
    if (head >= p.n_q + 2 * p.n_kv) return;
    wait_for_previous();
    // Loads first, whatever the slot says: one latency after the other costs more than all at once.
    const int slot = p.slots[row];
    const uint32_t position = min(static_cast<uint32_t>(p.positions[row]), static_cast<uint32_t>(p.n_positions - 1));
    elem* at = p.qkv + static_cast<int64_t>(row) * p.row_stride + head * HD;
    float lo[E], hi[E], cosine[E], sine[E];
    load_values(at + lane * E, lo), load_values(at + HD / 2 + lane * E, hi);
    const float* angles = p.cos_sin + static_cast<int64_t>(position) * HD;
    load_values(angles + lane * E, cosine), load_values(angles + HD / 2 + lane * E, sine);

    const bool is_v = head >= p.n_q + p.n_kv, is_k = head >= p.n_q && !is_v;
    if (!is_v) {
        const elem* norm = is_k ? p.k_norm : p.q_norm;
        if (norm != nullptr) {
            float square = 0.f;
#pragma unroll
            for (int e = 0; e < E; e++) square += lo[e] * lo[e] + hi[e] * hi[e];
#pragma unroll
            for (int d = 16; d > 0; d /= 2) square += __shfl_xor_sync(~0u, square, d);
            const float r = rsqrtf(square / HD + p.eps);
            float norm_lo[E], norm_hi[E];
            load_values(norm + lane * E, norm_lo), load_values(norm + HD / 2 + lane * E, norm_hi);
#pragma unroll
            for (int e = 0; e < E; e++) lo[e] *= r * norm_lo[e], hi[e] *= r * norm_hi[e];
        }
#pragma unroll
        for (int e = 0; e < E; e++) {
            const float a = lo[e], b = hi[e];
            lo[e] = a * cosine[e] - b * sine[e];
            hi[e] = b * cosine[e] + a * sine[e];
        }
    }
    if (slot < 0 || slot / PAGE_TOKENS >= p.kv.n_pages) return;
    if (!is_v && !is_k) {
        store_values(at + lane * E, lo), store_values(at + HD / 2 + lane * E, hi);
        return;
    }
    const int page = slot / PAGE_TOKENS, token = slot % PAGE_TOKENS;
    const int kv_head = head - p.n_q - (is_v ? p.n_kv : 0);
    const int64_t base = (static_cast<int64_t>(page) * p.n_kv + kv_head) * PAGE_TOKENS * HD;
    T* out = static_cast<T*>(is_v ? p.kv.v : p.kv.k) + base;
    const float inverse = 1.f / (is_v ? p.kv.v_scale : p.kv.k_scale);
    int n_saturated = 0;
#pragma unroll
    for (int e = 0; e < E; e++) {
        const int d0 = lane * E + e, d1 = HD / 2 + lane * E + e;
        out[is_v ? v_offset(token, d0) : token * HD + d0] = to_stored<T>(lo[e], inverse, n_saturated);
        out[is_v ? v_offset(token, d1) : token * HD + d1] = to_stored<T>(hi[e], inverse, n_saturated);
    }
    if (__any_sync(~0u, n_saturated > 0) && p.n_saturated != nullptr) {
        n_saturated = __reduce_add_sync(~0u, n_saturated);
        if (lane == 0) atomicAdd(p.n_saturated, n_saturated);
    }
}

#define QKV_PREPARE(name, type, hd)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ QkvPrepareParams p) { \
        qkv_prepare<type, hd>(p);                                                                           \
    }
QKV_PREPARE(qkv_prepare_half_64, elem, 64)
QKV_PREPARE(qkv_prepare_half_128, elem, 128)
QKV_PREPARE(qkv_prepare_fp8_64, __nv_fp8_e4m3, 64)
QKV_PREPARE(qkv_prepare_fp8_128, __nv_fp8_e4m3, 128)
