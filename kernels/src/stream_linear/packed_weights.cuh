// Packed weight matrices (repack.cu writes them) as operands of the matrix instruction, and the names of the
// epilogues. Shared by stream_linear.cu, mma.cu, mma_int8.cu and wgmma.cu.
#pragma once
#include <cuda/std/type_traits>

#include "../cuda/element.cuh"
#include "weight_layout.cuh"

enum class Epilogue { Store, AddResidual, SiluMul, StoreF32 };

// A nibble q is or-ed into the upper mantissa bits of 16.0, which makes exactly 16 + q. These small
// integers are multiplied with the group's x. Scale and zero are applied once per group, to the sums:
//   y += s * (sum (16 + q) x - (16 + z) sum x).
//
// Packed words and scales are the same for both elements. A nibble lies two bits above the border of a byte or
// half byte, so that one mask leaves four nibbles, times 4, as bytes (mma_int8.cu). fp16 needs a nibble at bits
// 6 to 9 of each half of a word; bf16 has three mantissa bits less and needs it at bits 3 to 6. Scales are fp16.
constexpr uint32_t NIBBLES = IS_BF16 ? 0x00780078 : 0x03c003c0;
constexpr uint32_t SIXTEENS = IS_BF16 ? 0x41804180 : 0x4c004c00;
constexpr int NIBBLE_BIT = IS_BF16 ? 3 : 6;
DEVICE uint32_t sixteen_plus(uint32_t nibbles) { return and_or<NIBBLES, SIXTEENS>(nibbles); }

// Where zeros are taken off each weight, its offset may depend on the column: 16 is not the only one. In fp16 a
// nibble at bits 2 to 5 makes 256 + q. So two registers come out of a word as it is, and two after a rotation.
constexpr uint32_t LOWER_NIBBLES = 0x003c003c, TWO_HUNDRED_FIFTY_SIXES = 0x5c005c00;
DEVICE uint32_t two_hundred_fifty_six_plus(uint32_t nibbles) {
    return and_or<LOWER_NIBBLES, TWO_HUNDRED_FIFTY_SIXES>(nibbles);
}

// What `dequantised` keeps of a quantisation group for columns g and g + 8, each twice.
struct GroupScale {
    elem2 scale[2];
    elem2 rest[2];  // bf16 only: the fp16 scale minus its bf16 rounding
    elem2 zero[2];  // plus the column's offset: 16, and in fp16 256 for column g
};
// The same where scales are applied to the group's sums.
struct GroupSumScale {
    float scale[2];
    elem2 zero[2];
};

// y += s * (sum (16 + q) x - (16 + z) sum x), for columns g and g + 8.
struct AwqSums {
    float2 scale, zero;
    DEVICE void add(float (&acc)[4], const float (&of_group)[4], float2 sum) const {
        acc[0] += scale.x * (of_group[0] - zero.x * sum.x);
        acc[1] += scale.x * (of_group[1] - zero.x * sum.y);
        acc[2] += scale.y * (of_group[2] - zero.y * sum.x);
        acc[3] += scale.y * (of_group[3] - zero.y * sum.y);
    }
};

// A format says, besides its sizes:
//   weights<P>       operands for stream_linear.cu, which applies scales to the sums of SUM_GROUPS groups of a chunk
//                    (`group_of_sums`), or finds them applied where SUM_GROUPS is 0
//   operands<P>, load_group, scale_operands    the same in three steps, for mma.cu
//   dequantised<P>   all three, for wgmma.cu
template <int GROUPS_>  // quantisation groups in 128 k: 1, 2 or 4
struct AwqFormat {
    static constexpr int GROUPS = 2 * GROUPS_;  // in a chunk
    static constexpr int SUM_GROUPS = GROUPS;
    static constexpr int K = AWQ_CHUNK_K;
    static constexpr int SCALE_K = K / GROUPS;
    static constexpr int PAIRS = 8;             // x vectors of 8 k per lane in a chunk: two products each
    static constexpr int SCALE_BYTES = GROUPS * GROUP_BYTES;
    using Group = GroupScale;

    // The A operands of products 2P and 2P + 1, each plus 16. Word = 16 columns x 16 k of the warp.
    template <int P>
    DEVICE static void weights(const uint8_t* chunk, const uint8_t*, int lane, uint4& words, uint32_t (&a)[2][4]) {
        if constexpr (P % 2 == 0) words = load_words<P>(chunk, lane);
        plus_sixteen<P>(words, a);
    }
    template <int P>
    DEVICE static uint4 load_words(const uint8_t* chunk, int lane) {
        return *reinterpret_cast<const uint4*>(chunk + P / 2 * WARP_BYTES + lane * LANE_BYTES);
    }
    template <int P>
    DEVICE static void plus_sixteen(const uint4& words, uint32_t (&a)[2][4]) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t w = P % 2 == 0 ? (i == 0 ? words.x : words.y) : (i == 0 ? words.z : words.w);
            // Register r's values are at bits 2 + 4r and 18 + 4r of a word (repack.cu).
            if constexpr (IS_BF16) {
                a[i][0] = sixteen_plus(w << 1);
                a[i][1] = sixteen_plus(w >> 3);
                a[i][2] = sixteen_plus(w >> 7);
                a[i][3] = sixteen_plus(__funnelshift_r(w, w, 11));
            } else {
                a[i][0] = sixteen_plus(w << 4);
                a[i][1] = sixteen_plus(w);
                a[i][2] = sixteen_plus(w >> 4);
                a[i][3] = sixteen_plus(__funnelshift_r(w, w, 8));
            }
        }
    }
    // Each plus its column's offset, as `load_group` has the zeros.
    template <int P>
    DEVICE static void operands(const uint4 (&words)[1], uint32_t (&a)[2][4]) {
        if constexpr (IS_BF16) return plus_sixteen<P>(words[0], a);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t w = P % 2 == 0 ? (i == 0 ? words[0].x : words[0].y) : (i == 0 ? words[0].z : words[0].w);
            const uint32_t rotated = __funnelshift_r(w, w, 8);
            a[i][0] = two_hundred_fifty_six_plus(w);
            a[i][1] = sixteen_plus(w);
            a[i][2] = two_hundred_fifty_six_plus(rotated);
            a[i][3] = sixteen_plus(rotated);
        }
    }
    // 16 + z of columns g and g + 8.
    DEVICE static elem2 zeros(const uint8_t* scales, int index, int g) {
        const uint32_t z = scales[GROUPS * GROUP_SCALE_BYTES + index * GROUP_ZERO_BYTES + g];
        return bits_elem2(sixteen_plus(z << NIBBLE_BIT | z << (NIBBLE_BIT + 12)));
    }
    // Scales and zeros of columns g and g + 8 of a chunk's group.
    DEVICE static void load_group(const uint8_t* scales, int index, int g, GroupScale& group) {
        const uint32_t stored = *reinterpret_cast<const uint32_t*>(scales + index * GROUP_SCALE_BYTES + g * 4);
        elem2 s = bits_elem2(stored);
        if constexpr (IS_BF16) {
            const float2 exact = __half22float2(reinterpret_cast<const __half2&>(stored));
            s = floats_to_elem2(exact.x, exact.y);
            const float2 rounded = elem2_to_float2(s);
            const elem2 rest = floats_to_elem2(exact.x - rounded.x, exact.y - rounded.y);
            group.rest[0] = low_low(rest), group.rest[1] = high_high(rest);
        }
        group.scale[0] = low_low(s), group.scale[1] = high_high(s);
        load_zeros(scales, index, g, group.zero);
    }
    DEVICE static void load_group(const uint8_t* scales, int index, int g, GroupSumScale& group) {
        const float2 s = __half22float2(*reinterpret_cast<const __half2*>(scales + index * GROUP_SCALE_BYTES + g * 4));
        group.scale[0] = s.x, group.scale[1] = s.y;
        load_zeros(scales, index, g, group.zero);
    }
    // Each plus the column's offset, twice.
    DEVICE static void load_zeros(const uint8_t* scales, int index, int g, elem2 (&zero)[2]) {
        if constexpr (IS_BF16) {
            const elem2 z = zeros(scales, index, g);
            zero[0] = low_low(z), zero[1] = high_high(z);
        } else {
            const uint32_t z = scales[GROUPS * GROUP_SCALE_BYTES + index * GROUP_ZERO_BYTES + g] * 0x00040004u;
            zero[0] = bits_elem2(two_hundred_fifty_six_plus(z)), zero[1] = bits_elem2(sixteen_plus(z));
        }
    }
    // Applies zero and scale to operands: (q - z) s, rounded to an element like any dequantised weight, by up
    // to 2^-11 of it in fp16 and 2^-8 in bf16. An fp16 scale takes two factors in bf16: the small product is
    // added to the large one before that is rounded.
    DEVICE static void scale_operands(uint32_t (&a)[2][4], const GroupScale& group) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const elem2 level = __hsub2(bits_elem2(a[i][r]), group.zero[r % 2]);
                if constexpr (IS_BF16)
                    a[i][r] = elem2_bits(__hfma2(level, group.scale[r % 2], __hmul2(level, group.rest[r % 2])));
                else
                    a[i][r] = elem2_bits(__hmul2(level, group.scale[r % 2]));
            }
    }
    // Takes zeros off alone: q - z, exactly.
    DEVICE static void scale_operands(uint32_t (&a)[2][4], const GroupSumScale& group) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) a[i][r] = elem2_bits(__hsub2(bits_elem2(a[i][r]), group.zero[r % 2]));
    }
    template <int P>
    DEVICE static void dequantised(const uint8_t* chunk, const uint8_t* scales, int lane, uint4& words,
                                   GroupScale& group, uint32_t (&a)[2][4]) {
        if constexpr (P % (PAIRS / GROUPS) == 0) load_group(scales, P / (PAIRS / GROUPS), lane >> 2, group);
        if constexpr (P % 2 == 0) words = load_words<P>(chunk, lane);
        operands<P>({words}, a);
        scale_operands(a, group);
    }
    // Scale and 16 + zero of columns g and g + 8, which lie next to each other.
    DEVICE static AwqSums group_of_sums(const uint8_t* scales, int index, int g) {
        const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(scales + index * GROUP_SCALE_BYTES + g * 4));
        return {scale, elem2_to_float2(zeros(scales, index, g))};
    }
};

// The formats from here to HalfFormat are for fp16 alone, which their checkpoints get by default; kernels for bf16
// would take as long to compile again.
#ifndef ELEMENT_BF16
// Scale and, if there is one, minimum of columns g and g + 8, each twice. A weight, code * scale + minimum, is rounded
// once.
struct GroupFactors {
    elem2 scale[2], minimum[2];
};
// Scales of 128 k in fp32.
struct GroupFloats {
    float scale[2];
};
DEVICE void set_factors(elem2 (&to)[2], uint32_t pair) {
    to[0] = low_low(bits_elem2(pair)), to[1] = high_high(bits_elem2(pair));
}
// fp16 scales and minima of columns g and g + 8.
DEVICE void load_factors(const uint8_t* scales, int index, int g, GroupFactors& group) {
    const uint2 stored = *reinterpret_cast<const uint2*>(scales + index * MIN_GROUP_BYTES + g * 8);
    set_factors(group.scale, stored.x), set_factors(group.minimum, stored.y);
}

// y += s sum (16 + q) x + (m - 16 s) sum x.
struct MinSums {
    float2 scale, offset;
    DEVICE void add(float (&acc)[4], const float (&of_group)[4], float2 sum) const {
        acc[0] = fmaf(scale.x, of_group[0], fmaf(offset.x, sum.x, acc[0]));
        acc[1] = fmaf(scale.x, of_group[1], fmaf(offset.x, sum.y, acc[1]));
        acc[2] = fmaf(scale.y, of_group[2], fmaf(offset.y, sum.x, acc[2]));
        acc[3] = fmaf(scale.y, of_group[3], fmaf(offset.y, sum.y, acc[3]));
    }
};

// 4 bits in groups of 32, each with a scale and a minimum: w = s q + m. Codes lie as AWQ's.
struct MinFormat : AwqFormat<4> {
    static constexpr int SCALE_BYTES = GROUPS * MIN_GROUP_BYTES;
    using Group = GroupFactors;

    DEVICE static void load_group(const uint8_t* scales, int index, int g, Group& group) {
        load_factors(scales, index, g, group);
    }
    DEVICE static void scale_operands(uint32_t (&a)[2][4], const Group& group) {
        // What `operands` has added: 256 for column g, 16 for g + 8.
        const uint32_t offsets[2] = {TWO_HUNDRED_FIFTY_SIXES, SIXTEENS};
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const elem2 level = __hsub2(bits_elem2(a[i][r]), bits_elem2(offsets[r % 2]));
                a[i][r] = elem2_bits(__hfma2(level, group.scale[r % 2], group.minimum[r % 2]));
            }
    }
    template <int P>
    DEVICE static void dequantised(const uint8_t* chunk, const uint8_t* scales, int lane, uint4& words, Group& group,
                                   uint32_t (&a)[2][4]) {
        load_group(scales, P, lane >> 2, group);
        if constexpr (P % 2 == 0) words = load_words<P>(chunk, lane);
        operands<P>({words}, a);
        scale_operands(a, group);
    }
    DEVICE static MinSums group_of_sums(const uint8_t* scales, int index, int g) {
        const uint2 stored = *reinterpret_cast<const uint2*>(scales + index * MIN_GROUP_BYTES + g * 8);
        const float2 s = __half22float2(reinterpret_cast<const __half2&>(stored.x));
        const float2 m = __half22float2(reinterpret_cast<const __half2&>(stored.y));
        return {s, make_float2(m.x - 16.f * s.x, m.y - 16.f * s.y)};
    }
};

// Two of a word's four bytes as elements, exactly: bytes 0 and 1, or 2 and 3.
struct IntegerBytes {  // q - 128, as 1024 + q minus 1152
    template <int HALF>
    DEVICE static uint32_t pair(uint32_t word) {
        const uint32_t q = __byte_perm(word, 0x64646464, HALF == 0 ? 0x4140 : 0x4342);
        return elem2_bits(__hsub2(bits_elem2(q), bits_elem2(0x64806480)));
    }
};
struct E4m3Bytes {  // times 2^-8: sign, and exponent and mantissa one bit lower than a half has them
    template <int HALF>
    DEVICE static uint32_t pair(uint32_t word) {
        const uint32_t q = __byte_perm(word, 0, HALF == 0 ? 0x1404 : 0x3424);
        return (q & 0x80008000) | (q >> 1 & 0x3f803f80);
    }
};

// Scales of SCALE_K k, 16 or 32, in fp16, with a minimum or without.
template <int SCALE_K_, bool HAS_MINIMUM>
struct FactorScales {
    static constexpr int SCALE_K = SCALE_K_;
    static constexpr int BYTES = HAS_MINIMUM ? MIN_GROUP_BYTES : GROUP_SCALE_BYTES;
    using Group = GroupFactors;
    // `index`: the first group of 32 k. A lane's k of these are all in one group of 16.
    DEVICE static void load(const uint8_t* scales, int index, int g, Group& group) {
        if constexpr (SCALE_K == 16) index += (threadIdx.x & 3) >> 1;
        if constexpr (HAS_MINIMUM) load_factors(scales, index, g, group);
        else set_factors(group.scale, *reinterpret_cast<const uint32_t*>(scales + index * GROUP_SCALE_BYTES + g * 4));
    }
    DEVICE static uint32_t apply(uint32_t codes, const Group& group, int column) {
        const elem2 q = bits_elem2(codes);
        if constexpr (HAS_MINIMUM) return elem2_bits(__hfma2(q, group.scale[column], group.minimum[column]));
        else return elem2_bits(__hmul2(q, group.scale[column]));
    }
};
// Scales of 128 k in fp32, for codes that are 2^8 too small, and multiplied in fp32: a weight is rounded once.
struct FloatScales {
    static constexpr int SCALE_K = BYTE_CHUNK_K;
    static constexpr int BYTES = FLOAT_GROUP_BYTES;
    using Group = GroupFloats;
    DEVICE static void load(const uint8_t* scales, int, int g, Group& group) {
        const float2 s = *reinterpret_cast<const float2*>(scales + g * 8);
        group.scale[0] = s.x * 256.f, group.scale[1] = s.y * 256.f;
    }
    DEVICE static uint32_t apply(uint32_t codes, const Group& group, int column) {
        const float2 q = elem2_to_float2(bits_elem2(codes));
        return elem2_bits(floats_to_elem2(q.x * group.scale[column], q.y * group.scale[column]));
    }
};

// 8 bits. Scales are applied to weights, as in mma.cu, by stream_linear.cu as well.
template <class Bytes, class Scales>
struct ByteFormat {
    static constexpr int K = BYTE_CHUNK_K;
    static constexpr int SCALE_K = Scales::SCALE_K;
    static constexpr int GROUPS = K / SCALE_K;
    static constexpr int SUM_GROUPS = 0;
    static constexpr int PAIRS = 4;
    static constexpr int SCALE_BYTES = GROUPS * Scales::BYTES;
    using Group = typename Scales::Group;

    DEVICE static void codes(const uint4& words, uint32_t (&a)[2][4]) {
        const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                a[i][2 * h] = Bytes::template pair<0>(w[2 * i + h]);
                a[i][2 * h + 1] = Bytes::template pair<1>(w[2 * i + h]);
            }
    }
    template <int P>
    DEVICE static void operands(const uint4 (&words)[2], uint32_t (&a)[2][4]) {
        codes(words[P], a);
    }
    DEVICE static void load_group(const uint8_t* scales, int index, int g, Group& group) {
        Scales::load(scales, index, g, group);
    }
    DEVICE static void scale_operands(uint32_t (&a)[2][4], const Group& group) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) a[i][r] = Scales::apply(a[i][r], group, r % 2);
    }
    template <int P>
    DEVICE static void dequantised(const uint8_t* chunk, const uint8_t* scales, int lane, uint4& words, Group& group,
                                   uint32_t (&a)[2][4]) {
        load_group(scales, P * GROUPS / PAIRS, lane >> 2, group);
        words = *reinterpret_cast<const uint4*>(chunk + P * WARP_BYTES + lane * LANE_BYTES);
        codes(words, a);
        scale_operands(a, group);
    }
    template <int P>
    DEVICE static void weights(const uint8_t* chunk, const uint8_t* scales, int lane, uint4& words, uint32_t (&a)[2][4]) {
        Group group;
        dequantised<P>(chunk, scales, lane, words, group, a);
    }
};
using BytesG32Format = ByteFormat<IntegerBytes, FactorScales<32, false>>;
using BytesG16Format = ByteFormat<IntegerBytes, FactorScales<16, false>>;
using BytesMinG16Format = ByteFormat<IntegerBytes, FactorScales<16, true>>;
using Fp8Format = ByteFormat<E4m3Bytes, FloatScales>;
#endif

struct HalfFormat {  // elements as they are
    static constexpr int GROUPS = 0, SUM_GROUPS = 0;
    static constexpr int K = HALF_CHUNK_K;
    static constexpr int SCALE_K = K;
    static constexpr int PAIRS = 2;
    static constexpr int SCALE_BYTES = 0;
    using Group = GroupScale;
    template <int P>
    DEVICE static void weights(const uint8_t* chunk, const uint8_t*, int lane, uint4&, uint32_t (&a)[2][4]) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 w = *reinterpret_cast<const uint4*>(chunk + (2 * P + i) * WARP_BYTES + lane * LANE_BYTES);
            a[i][0] = w.x, a[i][1] = w.y, a[i][2] = w.z, a[i][3] = w.w;
        }
    }
    template <int P>
    DEVICE static void operands(const uint4 (&words)[4], uint32_t (&a)[2][4]) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4& w = words[2 * P + i];
            a[i][0] = w.x, a[i][1] = w.y, a[i][2] = w.z, a[i][3] = w.w;
        }
    }
    DEVICE static void load_group(const uint8_t*, int, int, GroupScale&) {}
    DEVICE static void scale_operands(uint32_t (&)[2][4], const GroupScale&) {}
    template <int P>
    DEVICE static void dequantised(const uint8_t* chunk, const uint8_t* scales, int lane, uint4& words, GroupScale&,
                                   uint32_t (&a)[2][4]) {
        weights<P>(chunk, scales, lane, words, a);
    }
};

template <int FROM, int TO, class Fn>
DEVICE void unrolled(Fn&& fn) {
    if constexpr (FROM < TO) {
        fn.template operator()<FROM>();
        unrolled<FROM + 1, TO>(fn);
    }
}
