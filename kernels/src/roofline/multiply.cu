// Products out of registers: the rate of mma.sync m16n8k16, fp16 operands, fp32 sums.
//
// Formula: d[16x8] += a[16x16] b[16x8], n_rounds times for each of 8 independent d per warp.
// FLOPs: 2 * 16 * 8 * 16 per product. Bytes: none. Grid: two blocks of 256 threads per SM.
// Architectures: sm_90, sm_120.
#include "../cuda/element.cuh"
#include "multiply.cuh"

constexpr int THREADS = 256;
constexpr int CHAINS = 8;

extern "C" __global__ void __launch_bounds__(THREADS, 2) roofline_multiply(const __grid_constant__ MultiplyParams p) {
    // Values around 1 with all mantissa bits in use, as in real operands.
    const uint32_t noise = (threadIdx.x * 0x9e3779b9u) & 0x83ff83ff;
    const uint32_t a[4] = {0x3c003c00 ^ noise, 0x3c003c00 ^ (noise << 1 & 0x03ff03ff), 0x38003800 ^ (noise >> 1 & 0x03ff03ff),
                           0xbc003c00 ^ (noise & 0x03ff03ff)};
    const uint32_t b0 = 0x3c00bc00 ^ (noise & 0x03ff03ff), b1 = 0xbc003c00 ^ (noise >> 2 & 0x03ff03ff);
    float d[CHAINS][4] = {};
#pragma unroll 4
    for (int i = 0; i < p.n_rounds; i++)
#pragma unroll
        for (int c = 0; c < CHAINS; c++) mma_16816(d[c], a, b0, b1);
    float sum = 0.f;
#pragma unroll
    for (int c = 0; c < CHAINS; c++) sum += d[c][0] + d[c][1] + d[c][2] + d[c][3];
    if (sum == 1.2345e30f) *p.out = sum;
}
