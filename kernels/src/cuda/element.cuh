// The 16-bit type of activations and unquantised weights, the element. A source that works on it says
// `Elements: f16, bf16.` in its header and is compiled once for each: without a definition for fp16, with
// ELEMENT_BF16 for bf16. Sums, the residual stream and logits are fp32 in both.
//
// Conversion to fp16 saturates at +-65504, in the same single instruction: a value that is too large costs
// accuracy but never makes an infinity, which the next product would turn into NaN. NaN stays NaN, so that a
// broken row shows. bf16 has the range of fp32 and needs no saturation.
#pragma once
#include "device.cuh"

#ifdef ELEMENT_BF16
using elem = __nv_bfloat16;
using elem2 = __nv_bfloat162;
#define ELEMENT_PTX "bf16"  // as matrix instructions name it
constexpr bool IS_BF16 = true;
constexpr float ELEM_MAX = 3.3895314e38f;
constexpr uint32_t ELEM2_ONES = 0x3f803f80;
DEVICE float elem_to_float(elem x) { return __bfloat162float(x); }
DEVICE float2 elem2_to_float2(elem2 x) { return __bfloat1622float2(x); }
DEVICE elem float_to_elem(float x) { return __float2bfloat16_rn(x); }
DEVICE elem2 floats_to_elem2(float x, float y) { return __floats2bfloat162_rn(x, y); }
DEVICE elem2 low_low(elem2 x) { return __low2bfloat162(x); }
DEVICE elem2 high_high(elem2 x) { return __high2bfloat162(x); }
DEVICE elem bits_elem(uint16_t b) { return __ushort_as_bfloat16(b); }
#else
using elem = __half;
using elem2 = __half2;
#define ELEMENT_PTX "f16"
constexpr bool IS_BF16 = false;
constexpr float ELEM_MAX = 65504.f;
constexpr uint32_t ELEM2_ONES = 0x3c003c00;
DEVICE float elem_to_float(elem x) { return __half2float(x); }
DEVICE float2 elem2_to_float2(elem2 x) { return __half22float2(x); }
DEVICE elem float_to_elem(float x) {
    uint16_t bits;
    asm("cvt.rn.satfinite.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return __ushort_as_half(bits);
}
DEVICE elem2 floats_to_elem2(float x, float y) {
    uint32_t bits;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
    return *reinterpret_cast<elem2*>(&bits);
}
DEVICE elem2 low_low(elem2 x) { return __low2half2(x); }
DEVICE elem2 high_high(elem2 x) { return __high2half2(x); }
DEVICE elem bits_elem(uint16_t b) { return __ushort_as_half(b); }
#endif

DEVICE uint32_t elem2_bits(elem2 x) { return *reinterpret_cast<uint32_t*>(&x); }
DEVICE elem2 bits_elem2(uint32_t b) { return *reinterpret_cast<elem2*>(&b); }

// ---- lanes of a matrix instruction ---------------------------------------------------------
//
// Every kernel with matrix instructions names a lane's coordinates as PTX does for m16n8k16:
//   lane = threadIdx.x % 32    g = lane / 4 (groupID)    j = lane % 4 (threadID_in_group)
// A lane holds these parts of the tiles that a warp multiplies:
//   A, 16 x 16: a[0] is row g,     columns 2j, 2j + 1    a[2] is row g,     columns 2j + 8, 2j + 9
//               a[1] is row g + 8, columns 2j, 2j + 1    a[3] is row g + 8, columns 2j + 8, 2j + 9
//   B, 16 x 8:  b0 is rows 2j, 2j + 1 of column g        b1 is rows 2j + 8, 2j + 9 of column g
//   D, 16 x 8:  d[i] is row g + 8 (i / 2), column 2j + i % 2
// Two values share a register, the one with the lower number in the lower half.

// d[16x8] += a[16x16] b[16x8], fp32 sums.
DEVICE void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32." ELEMENT_PTX "." ELEMENT_PTX
        ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE float silu(float x) { return x / (1.f + __expf(-x)); }

template <class T>
DEVICE T cluster_load_as(uint32_t address, uint32_t rank);
template <>
DEVICE float cluster_load_as<float>(uint32_t address, uint32_t rank) {
    return cluster_load(address, rank);
}
template <>
DEVICE elem cluster_load_as<elem>(uint32_t address, uint32_t rank) {
    uint16_t v;
    asm volatile("ld.shared::cluster.u16 %0, [%1];" : "=h"(v) : "r"(remote_address(address, rank)) : "memory");
    return bits_elem(v);
}
