// Between the q/k/v projection and attention, per token and head:
//   q, k <- RMSNorm over head_dim (Qwen3)      q, k <- RoPE at the token's position
//   k, v  -> the token's slot of the paged cache
//
// qkv: [m][(n_q + 2 n_kv) * head_dim] elements, q rotated in place. One warp per head. Lane l holds the
// dimensions l*E .. and their partners half a head further, so that a rotation stays within the lane.
// Bytes: qkv once, q and the cache slots once. Grid: (m, heads / 4), 128 threads.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "../cuda/paged_kv.cuh"

constexpr int HEADS_PER_BLOCK = 4, THREADS = HEADS_PER_BLOCK * 32;

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

template <class T, int HD>
DEVICE void qkv_prepare(const QkvPrepareParams& p) {
    constexpr int E = HD / 64;  // dimensions of each half that a lane holds
    const int row = blockIdx.x, head = blockIdx.y * HEADS_PER_BLOCK + threadIdx.x / 32, lane = threadIdx.x % 32;
    launch_dependents();
    if (head >= p.n_q + 2 * p.n_kv) return;
    wait_for_previous();
    const int slot = p.slots[row];
    if (slot < 0 || slot / PAGE_TOKENS >= p.kv.n_pages) return;
    elem* at = p.qkv + static_cast<int64_t>(row) * p.row_stride + head * HD;
    float lo[E], hi[E];
#pragma unroll
    for (int e = 0; e < E; e++) lo[e] = elem_to_float(at[lane * E + e]), hi[e] = elem_to_float(at[HD / 2 + lane * E + e]);

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
#pragma unroll
            for (int e = 0; e < E; e++) {
                lo[e] *= r * elem_to_float(norm[lane * E + e]);
                hi[e] *= r * elem_to_float(norm[HD / 2 + lane * E + e]);
            }
        }
        const uint32_t position = min(static_cast<uint32_t>(p.positions[row]), static_cast<uint32_t>(p.n_positions - 1));
        const float* angles = p.cos_sin + static_cast<int64_t>(position) * HD;
#pragma unroll
        for (int e = 0; e < E; e++) {
            const float c = angles[lane * E + e], s = angles[HD / 2 + lane * E + e];
            const float a = lo[e], b = hi[e];
            lo[e] = a * c - b * s;
            hi[e] = b * c + a * s;
        }
    }
    if (!is_v && !is_k) {
#pragma unroll
        for (int e = 0; e < E; e++) {
            at[lane * E + e] = float_to_elem(lo[e]);
            at[HD / 2 + lane * E + e] = float_to_elem(hi[e]);
        }
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
