// value[i] = f(hash(seed, i)): dummy weights, made on the GPU, random in every bit and the same for the same
// seed.
//
// Zeros would run faster than real weights, both on matrix units and from memory. Each value is a hash of
// (seed, index), so it does not depend on the grid.
//   * fill_bits: words [n], all bits of `mask` random: packed codes.
//   * fill_normal: values [n] of fp16 or bf16, mean + std * normal (Box-Muller).
//   * fill_awq_groups: scales and zero points [n_chunks][groups * GROUP_BYTES] as weight_layout.cuh has them,
//     scales uniform in 0.5 to 1.5 of their mean.
//   * fill_groups: the same for formats without zero points; a minimum is a multiple of its scale.
// Bytes: each written once. Grid: any number of blocks of THREADS threads, grid-stride. Architectures: sm_90, sm_120.
#include "../cuda/device.cuh"
#include "weight_layout.cuh"

constexpr int THREADS = 256;

DEVICE uint32_t hashed(uint64_t seed, uint64_t index) {  // the finaliser of MurmurHash3
    uint64_t x = seed * 0x9e3779b97f4a7c15ull + index;
    x ^= x >> 33, x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull;
    return static_cast<uint32_t>(x ^ x >> 33);
}

struct FillBitsParams {
    uint32_t* words;
    uint64_t n;
    uint64_t seed;
    uint32_t mask;
    int32_t padding;
};

extern "C" __global__ void __launch_bounds__(THREADS) fill_bits(const __grid_constant__ FillBitsParams p) {
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < p.n; i += gridDim.x * 256ull)
        p.words[i] = hashed(p.seed, i) & p.mask;
}

struct FillNormalParams {
    void* values;  // fp16 or bf16
    uint64_t n;
    uint64_t seed;
    float std;
    float mean;
};

// Box-Muller, one of the pair.
template <class T>
DEVICE void fill_normal_values(const FillNormalParams& p) {
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < p.n; i += gridDim.x * 256ull) {
        const uint32_t bits = hashed(p.seed, i);
        const float u = ((bits >> 16) + 1) / 65537.f, angle = (bits & 0xffff) / 32768.f;
        static_cast<T*>(p.values)[i] = static_cast<T>(p.mean + p.std * sqrtf(-2.f * __logf(u)) * cospif(angle));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) fill_normal_f16(const __grid_constant__ FillNormalParams p) {
    fill_normal_values<__half>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) fill_normal_bf16(const __grid_constant__ FillNormalParams p) {
    fill_normal_values<__nv_bfloat16>(p);
}

struct FillAwqGroupsParams {
    uint8_t* group_data;  // [n_chunks][groups * GROUP_BYTES], as repack.cu writes it
    uint64_t n_chunks;    // of all tiles
    uint64_t seed;
    float scale;          // the mean of the scales, which are uniform in 0.5 .. 1.5 of it
    int32_t groups;
};

// Scales, and zero points random in every bit.
extern "C" __global__ void __launch_bounds__(THREADS) fill_awq_groups(const __grid_constant__ FillAwqGroupsParams p) {
    const uint64_t per_chunk = p.groups * (TILE_COLUMNS + GROUP_ZERO_BYTES);  // scales, bytes of zeros
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < p.n_chunks * per_chunk; i += gridDim.x * 256ull) {
        uint8_t* chunk = p.group_data + i / per_chunk * p.groups * GROUP_BYTES;
        const int at = static_cast<int>(i % per_chunk), n_scales = p.groups * TILE_COLUMNS;
        const uint32_t bits = hashed(p.seed, i);
        if (at < n_scales)
            reinterpret_cast<__half*>(chunk)[at] = __float2half_rn(p.scale * (0.5f + (bits & 0xffff) / 65536.f));
        else
            chunk[p.groups * GROUP_SCALE_BYTES + at - n_scales] = static_cast<uint8_t>(bits);
    }
}

struct FillGroupsParams {
    uint8_t* group_data;  // [n_groups][bytes of a group], as weight_layout.cuh has them
    uint64_t n_groups;    // of all tiles and chunks
    uint64_t seed;
    float scale;          // the mean of the scales
    float minimum;        // a minimum over its scale
    int32_t has_minimum;
    int32_t is_float;
};

extern "C" __global__ void __launch_bounds__(THREADS) fill_groups(const __grid_constant__ FillGroupsParams p) {
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < p.n_groups * TILE_COLUMNS; i += gridDim.x * 256ull) {
        const uint64_t group = i / TILE_COLUMNS;
        const int pair = static_cast<int>(i % TILE_COLUMNS) / 2, high = static_cast<int>(i % 2);
        const float scale = p.scale * (0.5f + (hashed(p.seed, i) & 0xffff) / 65536.f);
        if (p.is_float) {
            reinterpret_cast<float*>(p.group_data + group * FLOAT_GROUP_BYTES)[pair * 2 + high] = scale;
        } else if (p.has_minimum) {
            __half* to = reinterpret_cast<__half*>(p.group_data + group * MIN_GROUP_BYTES) + pair * 4 + high;
            to[0] = __float2half_rn(scale), to[2] = __float2half_rn(p.minimum * scale);
        } else {
            reinterpret_cast<__half*>(p.group_data + group * GROUP_SCALE_BYTES)[pair * 2 + high] = __float2half_rn(scale);
        }
    }
}
