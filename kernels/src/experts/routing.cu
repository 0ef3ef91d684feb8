// The way of tokens to experts and back: which experts a token goes to (`choose_experts`, with the norm before it),
// their places in the order of the experts (`group_places`), and the weighted sum of what experts made of a token,
// added to the residual (`add_experts`). The meaning is that of mod.rs.
//
// choose_experts: h [m][hidden] f32 -> x [m][x_stride] elements, the normalised rows; logits = x router^T in f32;
// the n_active largest, of equal ones the lower number; their softmax over all experts. A cluster of up to 8 blocks
// takes 8 tokens: each block has all their rows and a share of the experts, and sends a token's logits to the block
// that chooses for it. Router weights are loaded before griddepcontrol.wait. A token's numbers do not depend on the
// other tokens.
// group_places: one block. Places of an expert are in the order of tokens; a job is up to job_rows of them.
// add_experts: a token's experts in the order of its choice, hence the same bits in every run.
//
// Bytes: choose_experts reads 2 n_experts hidden of router weights for 8 tokens, mostly from the L2; add_experts
// 4 n_active hidden a token. Grid: m / 8 clusters of 512 threads; 1 block of 1,024; (hidden / 1,024, m) of 256.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "../cuda/element.cuh"

constexpr int ROUTER_THREADS = 512, ROUTER_WARPS = ROUTER_THREADS / 32;
constexpr int ROUTER_TOKENS = 8;  // of a cluster
constexpr int NORM_WARPS = ROUTER_WARPS / ROUTER_TOKENS;  // of a token
constexpr int MAX_EXPERTS = 512, MAX_ACTIVE = 32;
constexpr int GROUP_THREADS = 1024;
constexpr int ADD_THREADS = 256;

struct ChooseExpertsParams {
    const float* h;
    const elem* norm;     // [hidden]
    const elem* router;   // [n_experts][hidden]
    elem* x;              // [m][x_stride]
    int32_t* experts;     // [m][n_active]
    float* weights;       // [m][n_active]
    int4* jobs;           // of one token, which needs no grouping: [n_active]
    int32_t* tokens;      // of one token: the token of each place
    int32_t* places;      // of one token: the place of each choice
    float eps;
    int32_t m, hidden, x_stride;  // hidden: a multiple of 8
    int32_t n_experts, n_active;
    int32_t normalise;    // divide the weights of those chosen by their sum
    int32_t padding;
};

// Larger value first, then lower id, as one integer. NaN comes first or last; its token's weights are NaN anyway.
DEVICE uint64_t ranked(float value, int32_t id) {
    uint32_t bits = __float_as_uint(value == 0.f ? 0.f : value);  // -0 equals 0
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

template <class T, class Fn>
DEVICE T over_warp(T value, Fn&& merge) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) value = merge(value, __shfl_xor_sync(~0u, value, d));
    return value;
}
DEVICE float warp_sum(float value) {
    return over_warp(value, [](float a, float b) { return a + b; });
}

// The normalised rows of a cluster's tokens: in shared memory, and from one block of the cluster in x as well.
DEVICE void normalise_rows(const ChooseExpertsParams& p, elem* rows, int first, int n, bool stores) {
    __shared__ float squares[ROUTER_WARPS];
    const int warp = threadIdx.x / 32, token = warp / NORM_WARPS;
    const int at = threadIdx.x % (NORM_WARPS * 32), n_vectors = p.hidden / 4;
    const float4* h = reinterpret_cast<const float4*>(p.h + static_cast<int64_t>(first + min(token, n - 1)) * p.hidden);
    float square = 0.f;
#pragma unroll 8
    for (int v = at; v < n_vectors; v += NORM_WARPS * 32) {
        const float4 value = h[v];
        square += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
    }
    square = warp_sum(square);
    if (threadIdx.x % 32 == 0) squares[warp] = square;
    __syncthreads();
    if (token < n) {
        float total = 0.f;
#pragma unroll
        for (int i = 0; i < NORM_WARPS; i++) total += squares[token * NORM_WARPS + i];
        // A row whose sum of squares overflows f32 becomes NaN, not zero.
        const float r = total < INFINITY ? rsqrtf(total / p.hidden + p.eps) : NAN;
        const uint2* norm = reinterpret_cast<const uint2*>(p.norm);
        uint2* row = reinterpret_cast<uint2*>(rows + token * p.hidden);
        uint2* x = reinterpret_cast<uint2*>(p.x + static_cast<int64_t>(first + token) * p.x_stride);
#pragma unroll 4
        for (int v = at; v < n_vectors; v += NORM_WARPS * 32) {
            const float4 value = h[v];
            const float2 w0 = elem2_to_float2(bits_elem2(norm[v].x)), w1 = elem2_to_float2(bits_elem2(norm[v].y));
            const uint2 pairs = make_uint2(elem2_bits(floats_to_elem2(value.x * r * w0.x, value.y * r * w0.y)),
                                           elem2_bits(floats_to_elem2(value.z * r * w1.x, value.w * r * w1.y)));
            row[v] = pairs;
            if (stores) x[v] = pairs;
        }
    }
    __syncthreads();
}

DEVICE void add_products(float& sum, const uint4& w, const uint4& x) {
    const uint32_t ws[4] = {w.x, w.y, w.z, w.w}, xs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 a = elem2_to_float2(bits_elem2(ws[i])), b = elem2_to_float2(bits_elem2(xs[i]));
        sum = fmaf(a.x, b.x, sum);
        sum = fmaf(a.y, b.y, sum);
    }
}

// By one warp: the experts of a token and their weights.
DEVICE void choose(const ChooseExpertsParams& p, const float* logits, int token) {
    constexpr int PER_LANE = MAX_EXPERTS / 32;
    const int lane = threadIdx.x % 32;
    uint64_t keys[PER_LANE];
    float most = -INFINITY, total = 0.f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int expert = i * 32 + lane;
        keys[i] = expert < p.n_experts ? ranked(logits[expert], expert) : 0;
        if (expert < p.n_experts) most = fmaxf(most, logits[expert]);
    }
    most = over_warp(most, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (i * 32 + lane < p.n_experts) total += expf(logits[i * 32 + lane] - most);
    total = warp_sum(total);
    int own = 0;  // lane s keeps choice s
    for (int s = 0; s < p.n_active; s++) {
        uint64_t best = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) best = keys[i] > best ? keys[i] : best;
        best = over_warp(best, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (keys[i] == best) keys[i] = 0;
        if (lane == s) own = static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
    }
    const bool has_own = lane < p.n_active;
    float weight = has_own ? expf(logits[own] - most) / total : 0.f;
    if (p.normalise) {
        float sum = 0.f;
        for (int s = 0; s < p.n_active; s++) sum += __shfl_sync(~0u, weight, s);
        weight /= sum;
    }
    if (!has_own) return;
    const int at = token * p.n_active + lane;
    p.experts[at] = own;
    p.weights[at] = weight;
    if (p.m > 1) return;
    p.jobs[lane] = make_int4(own, lane, 1, 0);
    p.tokens[lane] = 0;
    p.places[lane] = lane;
}

// Shared memory: rows [ROUTER_TOKENS][hidden] elements   logits [ROUTER_TOKENS][n_experts] f32
extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, 1)
    choose_experts(const __grid_constant__ ChooseExpertsParams p) {
    extern __shared__ __align__(16) uint8_t smem[];
    constexpr int AHEAD = 8;  // vectors of a router row that a lane loads before it waits
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int ranks = cluster_size(), rank = cluster_rank();
    const int first = blockIdx.x / ranks * ROUTER_TOKENS, n = min(ROUTER_TOKENS, p.m - first);
    elem* rows = reinterpret_cast<elem*>(smem);
    float* logits = reinterpret_cast<float*>(smem + ROUTER_TOKENS * p.hidden * sizeof(elem));
    const int expert0 = p.n_experts * rank / ranks, expert1 = p.n_experts * (rank + 1) / ranks;
    const int n_vectors = p.hidden / 8;

    launch_dependents();
    cluster_arrive();
    uint4 w[AHEAD];
    auto load = [&](int expert, int from) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int v = from + i * 32 + lane;
            const bool is_there = expert < expert1 && v < n_vectors;
            w[i] = is_there ? __ldg(reinterpret_cast<const uint4*>(p.router + static_cast<int64_t>(expert) * p.hidden) + v)
                            : make_uint4(0, 0, 0, 0);
        }
    };
    load(expert0 + warp, 0);
    wait_for_previous();
    normalise_rows(p, rows, first, n, rank == 0);
    cluster_wait();  // all blocks have started, so their memory may be written
    for (int expert = expert0 + warp; expert < expert1; expert += ROUTER_WARPS) {
        float sums[ROUTER_TOKENS] = {};
        for (int from = 0; from < n_vectors; from += AHEAD * 32) {
            if (from > 0 || expert != expert0 + warp) load(expert, from);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const int v = from + i * 32 + lane;
                if (v >= n_vectors) continue;
#pragma unroll
                for (int t = 0; t < ROUTER_TOKENS; t++)
                    if (t < n) add_products(sums[t], w[i], reinterpret_cast<const uint4*>(rows + t * p.hidden)[v]);
            }
        }
#pragma unroll
        for (int t = 0; t < ROUTER_TOKENS; t++) {
            const float logit = warp_sum(sums[t]);
            if (lane == t && t < n)
                store_remote(remote_address(shared_address(logits + t * p.n_experts + expert), t % ranks), logit);
        }
    }
    cluster_sync();
    const int token = warp * ranks + rank;
    if (token < n) choose(p, logits + token * p.n_experts, first + token);
}

struct GroupPlacesParams {
    const int32_t* experts;  // [n_places]
    int4* jobs;              // [n_jobs]: expert, first place, places, 0; without places after the last
    int32_t* tokens;         // [n_places]: the token of each place
    int32_t* places;         // [n_places]: the place of each choice
    int32_t n_places, n_experts, n_active;
    int32_t job_rows, n_jobs;
    int32_t padding;
};

// Shared memory: the expert of each choice, 16 bits.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 1) group_places(const __grid_constant__ GroupPlacesParams p) {
    extern __shared__ __align__(16) uint8_t smem[];
    uint16_t* experts = reinterpret_cast<uint16_t*>(smem);
    __shared__ int counts[GROUP_THREADS], starts[MAX_EXPERTS], first_jobs[MAX_EXPERTS];
    __shared__ int n_used;
    int columns = 32;  // of counts: the experts, rounded up to a power of two
    while (columns < p.n_experts) columns *= 2;
    const int parts = GROUP_THREADS / columns, part = threadIdx.x / columns, expert = threadIdx.x % columns;
    launch_dependents();
    wait_for_previous();
    for (int i = threadIdx.x; i < p.n_places; i += GROUP_THREADS) experts[i] = static_cast<uint16_t>(p.experts[i]);
    __syncthreads();
    const int from = p.n_places * part / parts, to = p.n_places * (part + 1) / parts;
    int count = 0;
    for (int i = from; i < to; i++) count += experts[i] == expert;
    counts[threadIdx.x] = count;
    __syncthreads();
    if (threadIdx.x < 32) {
        // Each lane adds up its experts, then the lanes before it.
        const int per_lane = columns / 32;
        int places = 0, jobs = 0;
        for (int e = threadIdx.x * per_lane; e < (threadIdx.x + 1) * per_lane; e++) {
            int of_expert = 0;
            for (int s = 0; s < parts; s++) of_expert += counts[s * columns + e];
            if (e < p.n_experts) starts[e] = places, first_jobs[e] = jobs;
            places += of_expert;
            jobs += (of_expert + p.job_rows - 1) / p.job_rows;
        }
        int places_before = places, jobs_before = jobs;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int a = __shfl_up_sync(~0u, places_before, d), b = __shfl_up_sync(~0u, jobs_before, d);
            if (threadIdx.x >= d) places_before += a, jobs_before += b;
        }
        if (threadIdx.x == 31) n_used = jobs_before;
        places_before -= places, jobs_before -= jobs;
        for (int e = threadIdx.x * per_lane; e < min((threadIdx.x + 1) * per_lane, p.n_experts); e++)
            starts[e] += places_before, first_jobs[e] += jobs_before;
    }
    __syncthreads();
    if (expert < p.n_experts) {
        int place = starts[expert];
        for (int s = 0; s < part; s++) place += counts[s * columns + expert];
        for (int i = from; i < to; i++) {
            if (experts[i] != expert) continue;
            p.tokens[place] = i / p.n_active;
            p.places[i] = place++;
        }
    }
    if (part == 0 && expert < p.n_experts) {
        const int end = expert + 1 < p.n_experts ? starts[expert + 1] : p.n_places;
        int job = first_jobs[expert];
        for (int place = starts[expert]; place < end && job < p.n_jobs; place += p.job_rows)
            p.jobs[job++] = make_int4(expert, place, min(p.job_rows, end - place), 0);
    }
    for (int job = n_used + threadIdx.x; job < p.n_jobs; job += GROUP_THREADS) p.jobs[job] = make_int4(0, 0, 0, 0);
}

struct AddExpertsParams {
    float* h;               // [m][hidden]
    const float* made;      // [places][hidden]
    const float* weights;   // [m][n_active]
    const int32_t* places;  // [m][n_active]
    int32_t hidden, n_active;  // hidden: a multiple of 4
};

extern "C" __global__ void __launch_bounds__(ADD_THREADS) add_experts(const __grid_constant__ AddExpertsParams p) {
    launch_dependents();
    wait_for_previous();
    const int vector = blockIdx.x * ADD_THREADS + threadIdx.x, token = blockIdx.y;
    if (vector >= p.hidden / 4) return;
    float4* h = reinterpret_cast<float4*>(p.h + static_cast<int64_t>(token) * p.hidden) + vector;
    const float4 before = *h;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int s = 0; s < p.n_active; s++) {
        const int at = token * p.n_active + s;
        const float weight = p.weights[at];
        const float4 y = reinterpret_cast<const float4*>(p.made + static_cast<int64_t>(p.places[at]) * p.hidden)[vector];
        sum.x = fmaf(weight, y.x, sum.x), sum.y = fmaf(weight, y.y, sum.y);
        sum.z = fmaf(weight, y.z, sum.z), sum.w = fmaf(weight, y.w, sum.w);
    }
    *h = make_float4(before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w);
}
