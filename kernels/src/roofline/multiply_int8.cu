// Products out of registers: the rate of mma.sync m16n8k32, int8 operands, int32 sums.
//
// Formula: d[16x8] += a[16x32] b[32x8], n_rounds times for each of 8 independent d per warp.
// Operations: 2 * 16 * 8 * 32 per product. Bytes: none. Grid: two blocks of 256 threads per SM.
// Architectures: sm_90, sm_120.
#include "multiply.cuh"

constexpr int THREADS = 256;
constexpr int CHAINS = 8;

DEVICE void mma_16832(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) roofline_multiply_int8(const __grid_constant__ MultiplyParams p) {
    // All bits of the operands are in use, as in real ones.
    const uint32_t noise = threadIdx.x * 0x9e3779b9u;
    const uint32_t a[4] = {noise, noise ^ 0x5bd1e995u, noise * 0x85ebca6bu, ~noise};
    const uint32_t b0 = noise ^ 0x27d4eb2fu, b1 = noise * 0xc2b2ae35u;
    int32_t d[CHAINS][4] = {};
#pragma unroll 4
    for (int i = 0; i < p.n_rounds; i++)
#pragma unroll
        for (int c = 0; c < CHAINS; c++) mma_16832(d[c], a, b0, b1);
    int32_t sum = 0;
#pragma unroll
    for (int c = 0; c < CHAINS; c++) sum ^= d[c][0] ^ d[c][1] ^ d[c][2] ^ d[c][3];
    if (sum == 0x12345679) *p.out = 1.f;
}
