// The greedy step's end, on the device: the likeliest token of each row, and the row moved on by
// one token, so that the next step can start without the host.
//
// logits: [m][n] f32. One cluster of 8 blocks a row: each takes an eighth, the first merges. Ties go
// to the lowest id, whatever the order of arrival. Bytes: 4 n a row.
// Grid: 8 m blocks of 256 threads, cluster 8. Architectures: sm_90, sm_120.
#include "advance.cuh"

struct ArgmaxAdvanceParams {
    const float* logits;
    int32_t n, stride;
    Advance to;
};

// Larger value first, then lower id: one integer order for both.
DEVICE uint64_t ranked(float value, int32_t id) {
    uint32_t bits = __float_as_uint(value == 0.f ? 0.f : value);  // -0 equals 0
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

extern "C" __global__ void __launch_bounds__(256)
    argmax_advance(const __grid_constant__ ArgmaxAdvanceParams p) {
    const int row = blockIdx.x / 8, rank = blockIdx.x % 8;
    launch_dependents();
    cluster_arrive();
    wait_for_previous();
    const float* logits = p.logits + static_cast<int64_t>(row) * p.stride;
    uint64_t best = 0;
    for (int i = rank * 256 + threadIdx.x; i < p.n; i += 8 * 256) {
        const uint64_t r = ranked(logits[i], i);
        best = r > best ? r : best;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const uint64_t other = __shfl_xor_sync(~0u, best, d);
        best = other > best ? other : best;
    }
    __shared__ uint64_t warps[8];
    __shared__ uint64_t ranks[8];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    cluster_wait();  // all blocks have started, so their memory may be written
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; w++) best = warps[w] > best ? warps[w] : best;
        store_remote(remote_address(shared_address(&ranks[rank]), 0), best);
    }
    cluster_sync();
    if (rank != 0 || threadIdx.x != 0) return;
    for (int r = 0; r < 8; r++) best = ranks[r] > best ? ranks[r] : best;
    const int32_t token = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
    advance_row(p.to, row, token, token);
}
