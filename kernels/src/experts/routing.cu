// The way of tokens to experts and back: which experts a token goes to (`choose_experts`, with the norm before it),
// their places in the order of the experts (`group_places`), and the weighted sum of what experts made of a token,
// added to the residual (`add_experts`). The meaning is that of mod.rs.
//
// choose_experts: h [m][hidden] f32 -> x [m][x_stride] elements, the normalised rows; logits = x router^T with f32 sums;
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
constexpr int ROUTER_EXPERTS = 16;  // whose logits a block computes at a time
constexpr int ROW_PADDING = 32;  // elements between rows in shared memory: two rows of 16 bytes a lane are in other banks
constexpr int NORM_WARPS = ROUTER_WARPS / ROUTER_TOKENS;  // of a token
constexpr int MAX_EXPERTS = 512, MAX_ACTIVE = 32;
constexpr int GROUP_THREADS = 1024, GROUP_WARPS = GROUP_THREADS / 32;
constexpr int ADD_THREADS = 256;

struct ChooseExpertsParams {
    const float* h;
    const elem* norm;     // [hidden]
    const elem* router;   // [n_experts][hidden]
    elem* x;              // [m][x_stride]
    int32_t* experts;     // [m][n_active]
    float* weights;       // [m][n_active]
    int4* jobs;           // of one token, which needs no grouping: their number, then [n_active]
    int32_t* tokens;      // of one token: the token of each place
    int32_t* places;      // of one token: the place of each choice
    float eps;
    int32_t m, hidden, x_stride;  // hidden: a multiple of 8
    int32_t n_experts, n_active;
    int32_t normalise;    // divide the weights of those chosen by their sum
    int32_t padding;
};

// In the order of the values, and above 0. NaN comes first or last; its token's weights are NaN anyway.
DEVICE uint32_t ordered(float value) {
    const uint32_t bits = __float_as_uint(value == 0.f ? 0.f : value);  // -0 equals 0
    const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return max(order, 1u);
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

// The normalised rows of a cluster's tokens: in shared memory, and from one block of the cluster in x as well. Of up to
// KEPT vectors a lane nothing is read twice.
struct RowNorm {
    static constexpr int KEPT = 8, STEP = NORM_WARPS * 32;
    uint2 weights[KEPT];

    DEVICE int first_vector() const { return threadIdx.x % STEP; }
    DEVICE void load_weights(const ChooseExpertsParams& p) {
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
            const int v = i * STEP + first_vector();
            weights[i] = v < p.hidden / 4 ? reinterpret_cast<const uint2*>(p.norm)[v] : make_uint2(0, 0);
        }
    }
    DEVICE static void store(const ChooseExpertsParams& p, uint2* row, uint2* x, int v, float4 h, uint2 weight, float r) {
        const float2 w0 = elem2_to_float2(bits_elem2(weight.x)), w1 = elem2_to_float2(bits_elem2(weight.y));
        const uint2 pairs = make_uint2(elem2_bits(floats_to_elem2(h.x * r * w0.x, h.y * r * w0.y)),
                                       elem2_bits(floats_to_elem2(h.z * r * w1.x, h.w * r * w1.y)));
        row[v] = pairs;
        if (x != nullptr) x[v] = pairs;
    }
    DEVICE void normalise(const ChooseExpertsParams& p, elem* rows, int stride, int first, int n, bool stores) const {
        __shared__ float squares[ROUTER_WARPS];
        const int warp = threadIdx.x / 32, token = warp / NORM_WARPS, n_vectors = p.hidden / 4;
        const float4* h = reinterpret_cast<const float4*>(p.h + static_cast<int64_t>(first + min(token, n - 1)) * p.hidden);
        float4 kept[KEPT];
        float square = 0.f;
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
            const int v = i * STEP + first_vector();
            kept[i] = v < n_vectors ? h[v] : make_float4(0.f, 0.f, 0.f, 0.f);
        }
        auto add = [&](float4 v) { square += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; };
#pragma unroll
        for (int i = 0; i < KEPT; i++) add(kept[i]);
        for (int v = KEPT * STEP + first_vector(); v < n_vectors; v += STEP) add(h[v]);
        square = warp_sum(square);
        if (threadIdx.x % 32 == 0) squares[warp] = square;
        __syncthreads();
        if (token >= n) {
            // Multiplied, too; what comes of it is not used.
            uint2* row = reinterpret_cast<uint2*>(rows + token * stride);
            for (int v = first_vector(); v < n_vectors; v += STEP) row[v] = make_uint2(0, 0);
        } else {
            float total = 0.f;
#pragma unroll
            for (int i = 0; i < NORM_WARPS; i++) total += squares[token * NORM_WARPS + i];
            // A row whose sum of squares overflows f32 becomes NaN, not zero.
            const float r = total < INFINITY ? rsqrtf(total / p.hidden + p.eps) : NAN;
            uint2* row = reinterpret_cast<uint2*>(rows + token * stride);
            uint2* x = stores ? reinterpret_cast<uint2*>(p.x + static_cast<int64_t>(first + token) * p.x_stride) : nullptr;
#pragma unroll
            for (int i = 0; i < KEPT; i++) {
                const int v = i * STEP + first_vector();
                if (v < n_vectors) store(p, row, x, v, kept[i], weights[i], r);
            }
            for (int v = KEPT * STEP + first_vector(); v < n_vectors; v += STEP)
                store(p, row, x, v, h[v], reinterpret_cast<const uint2*>(p.norm)[v], r);
        }
        __syncthreads();
    }
};

// By one warp: the experts of a token and their weights.
DEVICE void choose(const ChooseExpertsParams& p, const float* logits, int token) {
    constexpr int PER_LANE = MAX_EXPERTS / 32;
    const int lane = threadIdx.x % 32;
    uint32_t orders[PER_LANE];  // 0: chosen, or none
    float most = -INFINITY, total = 0.f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        orders[i] = 0;
        const int expert = i * 32 + lane;
        if (i * 32 >= p.n_experts || expert >= p.n_experts) continue;
        orders[i] = ordered(logits[expert]);
        most = fmaxf(most, logits[expert]);
    }
    most = over_warp(most, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (i * 32 < p.n_experts && i * 32 + lane < p.n_experts) total += expf(logits[i * 32 + lane] - most);
    total = warp_sum(total);
    int own = 0;  // lane s keeps choice s
    for (int s = 0; s < p.n_active; s++) {
        uint32_t best = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (i * 32 < p.n_experts) best = max(best, orders[i]);
        best = __reduce_max_sync(~0u, best);
        uint32_t expert = ~0u;  // the lowest of those with this logit
#pragma unroll
        for (int i = PER_LANE - 1; i >= 0; i--)
            if (i * 32 < p.n_experts && orders[i] == best) expert = i * 32 + lane;
        expert = __reduce_min_sync(~0u, expert);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (i * 32 + lane == expert) orders[i] = 0;
        if (lane == s) own = static_cast<int>(expert);
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
    p.jobs[1 + lane] = make_int4(own, lane, 1, 0);
    if (lane == 0) p.jobs[0] = make_int4(p.n_active, 0, 0, 0);
    p.tokens[lane] = 0;
    p.places[lane] = lane;
}

// A warp's share of k of 16 experts' logits: 32 k at a time, of which a lane has 8 of experts g and g + 8, and of token
// g. Products may take k in any order that both operands share.
struct RouterTile {
    static constexpr int AHEAD = 4;  // times 32 k that are loaded before griddepcontrol.wait
    uint4 w[AHEAD][2];
    const uint4* rows[2];
    int first, last;  // times 32 k

    DEVICE RouterTile(const ChooseExpertsParams& p, int expert) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = p.hidden / 32;
        first = n * warp / ROUTER_WARPS, last = n * (warp + 1) / ROUTER_WARPS;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = min(expert + lane / 4 + 8 * h, p.n_experts - 1);
            rows[h] = reinterpret_cast<const uint4*>(p.router + static_cast<int64_t>(row) * p.hidden) + lane % 4;
        }
    }
    DEVICE void load(int from) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                w[i][h] = from + i < last ? __ldg(rows[h] + (from + i) * 4) : make_uint4(0, 0, 0, 0);
    }
    // Value i: expert g + 8 (i / 2), token 2 j + i % 2. `x`: rows of ROUTER_TOKENS tokens, `stride` elements apart.
    DEVICE void multiply(float (&sums)[4], const elem* x, int stride) {
        const int lane = threadIdx.x % 32;
        const uint4* row = reinterpret_cast<const uint4*>(x + lane / 4 * stride) + lane % 4;
        float chains[2][4] = {};
        for (int from = first; from < last; from += AHEAD) {
            if (from > first) load(from);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (from + i >= last) break;
                const uint4 b = row[(from + i) * 4];
                const uint4 &lo = w[i][0], &hi = w[i][1];
                const uint32_t first_half[4] = {lo.x, hi.x, lo.y, hi.y}, second_half[4] = {lo.z, hi.z, lo.w, hi.w};
                mma_16816(chains[0], first_half, b.x, b.y);
                mma_16816(chains[1], second_half, b.z, b.w);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = chains[0][i] + chains[1][i];
    }
};

// Shared memory: rows [ROUTER_TOKENS][hidden + ROW_PADDING] elements   logits [ROUTER_TOKENS][n_experts] f32
extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, 1)
    choose_experts(const __grid_constant__ ChooseExpertsParams p) {
    extern __shared__ __align__(16) uint8_t smem[];
    __shared__ float parts[ROUTER_WARPS][ROUTER_TOKENS][ROUTER_EXPERTS + 1];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, j = lane % 4;
    const int ranks = cluster_size(), rank = cluster_rank();
    const int first = blockIdx.x / ranks * ROUTER_TOKENS, n = min(ROUTER_TOKENS, p.m - first);
    const int stride = p.hidden + ROW_PADDING;
    elem* rows = reinterpret_cast<elem*>(smem);
    float* logits = reinterpret_cast<float*>(smem + ROUTER_TOKENS * stride * sizeof(elem));
    const int expert0 = p.n_experts * rank / ranks, expert1 = p.n_experts * (rank + 1) / ranks;

    launch_dependents();
    cluster_arrive();
    RouterTile tile(p, expert0);
    tile.load(tile.first);
    RowNorm norm;
    norm.load_weights(p);
    wait_for_previous();
    norm.normalise(p, rows, stride, first, n, rank == 0);
    cluster_wait();  // all blocks have started, so their memory may be written
    for (int expert = expert0; expert < expert1; expert += ROUTER_EXPERTS) {
        if (expert > expert0) {
            tile = RouterTile(p, expert);
            tile.load(tile.first);
        }
        float sums[4];
        tile.multiply(sums, rows, stride);
#pragma unroll
        for (int i = 0; i < 4; i++) parts[warp][2 * j + i % 2][g + 8 * (i / 2)] = sums[i];
        __syncthreads();
        const int token = threadIdx.x / ROUTER_EXPERTS, e = threadIdx.x % ROUTER_EXPERTS;
        if (token < n && expert + e < expert1) {
            float logit = 0.f;
#pragma unroll
            for (int w = 0; w < ROUTER_WARPS; w++) logit += parts[w][token][e];
            store_remote(remote_address(shared_address(logits + token * p.n_experts + expert + e), token % ranks), logit);
        }
        __syncthreads();
    }
    cluster_sync();
    const int token = warp * ranks + rank;
    if (token < n) choose(p, logits + token * p.n_experts, first + token);
}

struct GroupPlacesParams {
    const int32_t* experts;  // [n_places]
    int4* jobs;              // their number; then [n_jobs]: expert, first place, places, 0; without places after the last
    int32_t* tokens;         // [n_places]: the token of each place
    int32_t* places;         // [n_places]: the place of each choice
    int32_t n_places, n_experts, n_active;
    int32_t job_rows, n_jobs;
    int32_t padding;
};

// Each warp takes a run of choices, 32 at a time: choices of the same expert find each other with match.any. Shared
// memory: counts [GROUP_WARPS][n_experts], of the warps' runs; then the first place of each.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 1) group_places(const __grid_constant__ GroupPlacesParams p) {
    extern __shared__ __align__(16) uint8_t smem[];
    int* counts = reinterpret_cast<int*>(smem);
    __shared__ int totals[MAX_EXPERTS], first_places[MAX_EXPERTS], first_jobs[MAX_EXPERTS];
    __shared__ int n_used;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int per_warp = (p.n_places + GROUP_THREADS - 1) / GROUP_THREADS * 32;
    const int from = min(warp * per_warp, p.n_places), to = min(from + per_warp, p.n_places);
    int* own = counts + warp * p.n_experts;
    launch_dependents();
    for (int i = threadIdx.x; i < GROUP_WARPS * p.n_experts; i += GROUP_THREADS) counts[i] = 0;
    wait_for_previous();
    __syncthreads();
    // Calls fn(choice, expert, how many of its 32 before it have the same, how many have it) for the run.
    auto each = [&](auto&& fn) {
        for (int at = from; at < to; at += 32) {
            const int i = at + lane, expert = i < to ? p.experts[i] : -1;
            const uint32_t same = __match_any_sync(~0u, expert);
            fn(i, expert, __popc(same & ((1u << lane) - 1)), __popc(same));
            __syncwarp();
        }
    };
    each([&](int, int expert, int before, int n) {
        if (expert >= 0 && before == 0) own[expert] += n;
    });
    __syncthreads();
    for (int e = threadIdx.x; e < p.n_experts; e += GROUP_THREADS) {
        int total = 0;
        for (int w = 0; w < GROUP_WARPS; w++) {
            const int n = counts[w * p.n_experts + e];
            counts[w * p.n_experts + e] = total;
            total += n;
        }
        totals[e] = total;
    }
    __syncthreads();
    if (warp == 0) {
        // Each lane adds up its experts, then the lanes before it.
        const int per_lane = (p.n_experts + 31) / 32;
        const int first = lane * per_lane, end = min(first + per_lane, p.n_experts);
        int places = 0, jobs = 0;
        for (int e = first; e < end; e++) {
            first_places[e] = places, first_jobs[e] = jobs;
            places += totals[e];
            jobs += (totals[e] + p.job_rows - 1) / p.job_rows;
        }
        int places_before = places, jobs_before = jobs;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int a = __shfl_up_sync(~0u, places_before, d), b = __shfl_up_sync(~0u, jobs_before, d);
            if (lane >= d) places_before += a, jobs_before += b;
        }
        if (lane == 31) n_used = jobs_before;
        for (int e = first; e < end; e++) first_places[e] += places_before - places, first_jobs[e] += jobs_before - jobs;
    }
    __syncthreads();
    each([&](int i, int expert, int before, int n) {
        const int of_run = expert >= 0 ? own[expert] : 0;
        __syncwarp();
        if (expert < 0) return;
        const int place = first_places[expert] + of_run + before;
        p.tokens[place] = i / p.n_active;
        p.places[i] = place;
        if (before == n - 1) own[expert] = of_run + n;
    });
    for (int e = threadIdx.x; e < p.n_experts; e += GROUP_THREADS)
        for (int from = 0, job = first_jobs[e]; from < totals[e] && job < p.n_jobs; from += p.job_rows, job++)
            p.jobs[1 + job] = make_int4(e, first_places[e] + from, min(p.job_rows, totals[e] - from), 0);
    for (int job = n_used + threadIdx.x; job < p.n_jobs; job += GROUP_THREADS) p.jobs[1 + job] = make_int4(0, 0, 0, 0);
    if (threadIdx.x == 0) p.jobs[0] = make_int4(min(n_used, p.n_jobs), 0, 0, 0);
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
