// out ^= the xor of all words of data: a plain read of device memory.
//
// No kernel that reads a matrix once can be faster, so such kernels are compared with its rate. What it reads
// stays in the L2 and need not be written back, so it is also how other data are evicted from the L2 before a
// measurement.
//
// Bytes: 16 n. Grid: two blocks of 512 threads per SM, grid-stride. Architectures: sm_90, sm_120.
#include "../cuda/device.cuh"

struct ReadParams {
    const uint4* data;  // [n]
    uint32_t* out;      // [1]
    uint64_t n;
};

constexpr int THREADS = 512;
// Loads of a thread in flight: 128 KiB per SM, several times what the latency needs.
constexpr int AT_ONCE = 8;

DEVICE uint32_t folded(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

extern "C" __global__ void __launch_bounds__(THREADS, 2) roofline_read(const __grid_constant__ ReadParams p) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * THREADS;
    uint64_t i = static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x;
    uint32_t sum = 0;
    for (; i + (AT_ONCE - 1) * step < p.n; i += AT_ONCE * step) {
        uint4 v[AT_ONCE];
#pragma unroll
        for (int a = 0; a < AT_ONCE; a++) v[a] = p.data[i + a * step];
#pragma unroll
        for (int a = 0; a < AT_ONCE; a++) sum ^= folded(v[a]);
    }
    for (; i < p.n; i += step) sum ^= folded(p.data[i]);
    __syncwarp();
    sum = __reduce_xor_sync(0xffffffff, sum);
    if (threadIdx.x % 32 == 0) atomicXor(p.out, sum);
}
