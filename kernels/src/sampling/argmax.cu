// The end of a greedy step, on the GPU: chooses the likeliest token of each row and advances the row by one
// token, so that the next step can start without the host.
//
// logits: [m][n] f32. One cluster of up to 8 blocks per row: each takes a part, the first merges. Ties go to
// the lowest id, whatever the order of arrival. A row with a NaN or +inf, or with only -inf, has no token: an
// error is recorded (advance.cuh), and the row advances with token 0. Bytes: 4 n per row.
// Grid: m clusters of 1 to 8 blocks of 256 threads. Architectures: sm_90, sm_120.
#include "advance.cuh"

struct ArgmaxAdvanceParams {
    const float* logits;
    int32_t n, stride;
    Advance to;
};

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int MAX_RANKS = 8;  // blocks of a cluster
constexpr uint64_t BROKEN = ~0ull;                 // larger than the rank of any number
constexpr uint32_t ORDER_OF_MINUS_INF = 0x007fffffu;

// Larger value first, then lower id: one integer order for both.
DEVICE uint64_t ranked(float value, int32_t id) {
    uint32_t bits = __float_as_uint(value == 0.f ? 0.f : value);  // -0 equals 0
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    const uint64_t rank = static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
    return value < INFINITY ? rank : BROKEN;  // false for NaN
}

extern "C" __global__ void __launch_bounds__(THREADS)
    argmax_advance(const __grid_constant__ ArgmaxAdvanceParams p) {
    const int ranks = cluster_size(), row = blockIdx.x / ranks, rank = cluster_rank();
    launch_dependents();
    cluster_arrive();
    wait_for_previous();
    const float* logits = p.logits + static_cast<int64_t>(row) * p.stride;
    uint64_t best = 0;
    for (int i = rank * THREADS + threadIdx.x; i < p.n; i += ranks * THREADS) {
        const uint64_t r = ranked(logits[i], i);
        best = r > best ? r : best;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const uint64_t other = __shfl_xor_sync(~0u, best, d);
        best = other > best ? other : best;
    }
    __shared__ uint64_t warps[WARPS];
    __shared__ uint64_t of_ranks[MAX_RANKS];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    cluster_wait();  // all blocks have started, so their memory may be written
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < WARPS; w++) best = warps[w] > best ? warps[w] : best;
        store_remote(remote_address(shared_address(&of_ranks[rank]), 0), best);
    }
    cluster_sync();
    if (rank != 0 || threadIdx.x != 0) return;
    for (int r = 0; r < ranks; r++) best = of_ranks[r] > best ? of_ranks[r] : best;
    const uint32_t order = static_cast<uint32_t>(best >> 32);
    const int32_t error = best == BROKEN ? NOT_FINITE : order == ORDER_OF_MINUS_INF ? ALL_MASKED : 0;
    const int32_t token = error < 0 ? 0 : static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
    advance_row(p.to, row, token, error < 0 ? error : token);
}
