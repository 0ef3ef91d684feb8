// One layer's paged KV cache. qkv_prepare writes it and attention reads it.
//
// A page holds 16 tokens of one KV head. K is token by token, [16][head_dim]. V has the layout of the A
// operand of the product P V: a tile of 16 dimensions x 16 tokens is 32 lanes x 8 values, and lane (g, j) holds
//   (dim g; tokens 2j, 2j+1) (dim g+8; same) (dim g; tokens 2j+8, 2j+9) (dim g+8; same).
//
// All stored values are finite (`to_stored`), and attention zeroes what lies past the end of a context
// (`keep_tokens`): a page that one request has used cannot change the results of its next owner.
#pragma once
#include <cuda_fp8.h>

#include <cuda/std/type_traits>

#include "element.cuh"
#include "page.cuh"

struct PagedKv {
    void* k;  // [n_pages][n_kv_heads][16][head_dim] elements or e4m3
    void* v;  // [n_pages][n_kv_heads][head_dim / 16][32][8] elements or e4m3
    float k_scale, v_scale;  // value = stored * scale; 1 for elements
    int32_t n_pages;
    int32_t padding;
};

// A page table's entry, clamped to the pool whatever the table says.
DEVICE int64_t page_in_pool(const PagedKv& kv, int32_t page) {
    return min(static_cast<uint32_t>(page), static_cast<uint32_t>(kv.n_pages - 1));
}

// Offset of (token in page, dim) of V in its page of one head.
DEVICE int v_offset(int token, int dim) {
    const int lane = (dim % 8) * 4 + (token % 8) / 2;
    const int value = (token / 8) * 4 + (dim / 8 % 2) * 2 + token % 2;
    return (dim / 16 * 32 + lane) * 8 + value;
}

// Clamps x to the range of a format; NaN becomes 0. Counts values at the end of the range or past it: a value
// that was too large for the previous kernel has been saturated there already.
DEVICE float held_inside(float x, float largest, int& n_saturated) {
    const bool is_inside = fabsf(x) < largest;  // false for NaN
    n_saturated += !is_inside;
    const float held = fminf(fmaxf(x, -largest), largest);
    return x == x ? held : 0.f;
}

template <class T>
DEVICE T to_stored(float x, float inverse_scale, int& n_saturated);
template <>
DEVICE elem to_stored<elem>(float x, float, int& n_saturated) {
    return float_to_elem(held_inside(x, ELEM_MAX, n_saturated));
}
template <>
DEVICE __nv_fp8_e4m3 to_stored<__nv_fp8_e4m3>(float x, float inverse_scale, int& n_saturated) {
    return __nv_fp8_e4m3(held_inside(x * inverse_scale, 448.f, n_saturated));
}

// Of a pair of V's elements, tokens `token` and `token + 1`: zeroes those that are not below `end`.
DEVICE uint32_t keep_tokens(uint32_t pair, int token, int end) {
    return pair & ((token < end ? 0xffffu : 0u) | (token + 1 < end ? 0xffff0000u : 0u));
}

// Two e4m3 values as a pair of elements, which hold them exactly.
DEVICE uint32_t from_e4m3_pair(uint32_t two_bytes) {
    const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two_bytes), __NV_E4M3);
    if constexpr (IS_BF16) {
        const float2 values = __half22float2(__half2(pair));
        return elem2_bits(floats_to_elem2(values.x, values.y));
    } else {
        return static_cast<uint32_t>(pair.x) | static_cast<uint32_t>(pair.y) << 16;
    }
}

// Eight consecutive stored values as four pairs of elements.
DEVICE void load_eight(const elem* at, uint32_t (&out)[4]) {
    const uint4 v = *reinterpret_cast<const uint4*>(at);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
DEVICE void load_eight(const __nv_fp8_e4m3* at, uint32_t (&out)[4]) {
    const uint2 v = *reinterpret_cast<const uint2*>(at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t word = i < 2 ? v.x : v.y;
        out[i] = from_e4m3_pair(word >> (16 * (i % 2)));
    }
}
