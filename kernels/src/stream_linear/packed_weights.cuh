// Packed weight matrices (repack.cu writes them) as operands of the matrix instruction, and what
// is done with the products. Shared by stream_linear.cu and batch_linear.cu.
#pragma once
#include "../cuda/device.cuh"

enum class Epilogue { Store, AddResidual, SiluMul, StoreF32 };

// A nibble q is or-ed into the upper mantissa bits of 16.0, which makes 16 + q, exactly. The
// product with the group's x is then taken on these small integers, and scale and zero enter
// once a group, on the sums:  y += s * (sum (16 + q) x - (16 + z) sum x).
template <int GROUPS_>  // quantisation groups in 128 k: 1, 2 or 4
struct AwqFormat {
    static constexpr int GROUPS = 2 * GROUPS_;  // in a chunk
    static constexpr int K = 256;
    static constexpr int PAIRS = 8;             // x vectors of 8 k a lane in a chunk: two products each
    static constexpr int SCALE_BYTES = GROUPS * (32 + 8);

    // The A operands of products 2P and 2P + 1, each plus 16. Word = 16 columns x 16 k of the warp.
    template <int P>
    DEVICE static void weights(const uint8_t* chunk, int lane, uint4& words, uint32_t (&a)[2][4]) {
        if constexpr (P % 2 == 0) words = *reinterpret_cast<const uint4*>(chunk + P / 2 * 512 + lane * 16);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t w = P % 2 == 0 ? (i == 0 ? words.x : words.y) : (i == 0 ? words.z : words.w);
            a[i][0] = and_or<0x03c003c0, 0x4c004c00>(w);
            a[i][1] = and_or<0x03c003c0, 0x4c004c00>(w >> 4);
            a[i][2] = and_or<0x03c003c0, 0x4c004c00>(w << 4);
            a[i][3] = and_or<0x03c003c0, 0x4c004c00>(__funnelshift_l(w, w, 8));
        }
    }
    // The same with zero and scale applied: (q - z) s, rounded to fp16 as a dequantised weight is.
    template <int P>
    DEVICE static void dequantised(const uint8_t* chunk, const uint8_t* scales, int lane, uint4& words,
                                   __half2 (&scale)[2], __half2 (&zero)[2], uint32_t (&a)[2][4]) {
        if constexpr (P % (PAIRS / GROUPS) == 0) {
            constexpr int index = P / (PAIRS / GROUPS);
            const int g = lane >> 2;
            const __half2 s = *reinterpret_cast<const __half2*>(scales + index * 32 + g * 4);
            const uint32_t packed = scales[GROUPS * 32 + index * 8 + g];
            const __half2 z = bits_half2(and_or<0x03c003c0, 0x4c004c00>(packed << 6 | packed << 18));
            scale[0] = __low2half2(s), scale[1] = __high2half2(s);
            zero[0] = __low2half2(z), zero[1] = __high2half2(z);
        }
        weights<P>(chunk, lane, words, a);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                a[i][r] = half2_bits(__hmul2(__hsub2(bits_half2(a[i][r]), zero[r % 2]), scale[r % 2]));
    }
    // Scale and 16 + zero of columns g and g + 8, which lie next to each other.
    DEVICE static void group(const uint8_t* scales, int index, int g, float2& scale, float2& zero) {
        scale = __half22float2(*reinterpret_cast<const __half2*>(scales + index * 32 + g * 4));
        const uint32_t z = scales[GROUPS * 32 + index * 8 + g];
        zero = __half22float2(bits_half2(and_or<0x03c003c0, 0x4c004c00>(z << 6 | z << 18)));
    }
};

struct HalfFormat {
    static constexpr int GROUPS = 0;
    static constexpr int K = 64;
    static constexpr int PAIRS = 2;
    static constexpr int SCALE_BYTES = 0;
    template <int P>
    DEVICE static void weights(const uint8_t* chunk, int lane, uint4&, uint32_t (&a)[2][4]) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 w = *reinterpret_cast<const uint4*>(chunk + (2 * P + i) * 512 + lane * 16);
            a[i][0] = w.x, a[i][1] = w.y, a[i][2] = w.z, a[i][3] = w.w;
        }
    }
    template <int P>
    DEVICE static void dequantised(const uint8_t* chunk, const uint8_t*, int lane, uint4& words, __half2 (&)[2],
                                   __half2 (&)[2], uint32_t (&a)[2][4]) {
        weights<P>(chunk, lane, words, a);
    }
};

template <int FROM, int TO, class Fn>
DEVICE void unrolled(Fn&& fn) {
    if constexpr (FROM < TO) {
        fn.template operator()<FROM>();
        unrolled<FROM + 1, TO>(fn);
    }
}
