// Chooses each row's next token from its logits: bias and penalties, temperature, top-k, top-p,
// min-p, draw; log-probabilities of the choice and of the likeliest tokens. The same order, ranking
// and random numbers as the engine's sampler on the CPU:
//   - larger logit first, then lower id; 0 and -0 are equal
//   - weight = exp((logit - largest) / temperature), in f32
//   - top-p counts among the top k; min-p compares with the likeliest
//   - the draw adds up the kept tokens' weights by ascending id until the sum passes u * total,
//     u from Philox4x32-10 of (seed, output index)
//   - log-probabilities come from the logits before bias and penalties
// Weights are summed as integers (units of 2^-40), so the order does not matter: the same seed gives the
// same token every time. Only the rounding of exp differs from the CPU.
//
// The last kept token of a row is a rank (64-bit key: ordered logit, then inverted id). It is found without
// a sort: a histogram over the distance from the largest logit, then histograms over the keys of the
// one bin that holds the cut, 11 bits per pass.
//
// Layout: logits [m][stride] f32. A cluster of up to 8 blocks has a row, or one block if there are many rows.
// Each block has a part of the ids. It keeps their logits in shared memory if they fit, so that device memory
// is read once. Every block follows the same path and finds the same results; histograms, maxima and sums are
// combined through distributed shared memory.
//
// Penalties come from a list of the row's tokens on the GPU. Each chosen token is added to it, so that steps
// may follow each other without the host. Logits that do not fit shared memory are changed in place.
// Bytes: 4 n per row if the logits fit shared memory, else 4 n per pass. Passes: one for a greedy row, some six
// more each for top-k and top-p.
// Grid: m clusters of 1 to MAX_RANKS blocks of THREADS threads. Architectures: sm_90, sm_120.
#include "advance.cuh"

struct SamplingRow {
    uint64_t seed;
    uint64_t output_index;  // of the token to choose; incremented
    float temperature;      // 0: greedy
    int32_t top_k;          // 0: all
    float top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t n_logprobs;     // -1: none
    int32_t n_penalized;    // entries of the row's list; grows
    int32_t tracks_output;  // chosen tokens enter the list
};

struct PenalizedToken {
    int32_t token;
    int32_t n_generated;  // 0: in the prompt only, -1: in neither, it only has a bias
    float bias;
    float logit;          // written: the model's, before bias and penalties
};

struct SampleParams {
    float* logits;              // [m][stride]
    int32_t n, stride;
    Advance to;                 // history holds a negative error where a row has none to choose
    SamplingRow* rows;          // [m]
    PenalizedToken* penalized;  // [m][max_penalized]
    float* logprob;             // [n_steps][m] or null
    int32_t* top_ids;           // [n_steps][m][max_top] or null
    float* top_logprob;         // [n_steps][m][max_top] or null
    int32_t max_penalized, max_top;
    int32_t cached;             // logits that a block's dynamic shared memory has room for
    int32_t padding;
};

constexpr int MAX_RANKS = 8;  // blocks of a cluster
constexpr int THREADS = 1024, WARPS = 32, BINS = 2048, MAX_TOP = 20;
constexpr double ONE = 1099511627776.0;  // 2^40

// A logit's order as an integer.
DEVICE uint32_t ordered(float value) {
    const uint32_t bits = __float_as_uint(value == 0.f ? 0.f : value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

DEVICE float from_ordered(uint32_t bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

DEVICE uint64_t integer_weight(float weight) {
    return weight > 0.f ? __float2ull_rn(weight * static_cast<float>(ONE)) : 0;
}

// Top 53 bits of Philox4x32-10 of (index, seed), shifted up: u * 2^64.
DEVICE uint64_t uniform_bits(uint64_t seed, uint64_t index) {
    uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t left = __umulhi(0xD2511F53u, c0), left_low = 0xD2511F53u * c0;
        const uint32_t right = __umulhi(0xCD9E8D57u, c2), right_low = 0xCD9E8D57u * c2;
        c0 = right ^ c1 ^ k0, c1 = right_low, c2 = left ^ c3 ^ k1, c3 = left_low;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return (static_cast<uint64_t>(c1) << 32 | c0) & ~0x7ffull;
}

struct Shared {
    unsigned long long bins[BINS];
    uint64_t warp_sums[WARPS];
    uint64_t before, lowest, highest;
    int32_t found;
    uint64_t top[MAX_TOP];
    uint64_t shared_values[2][MAX_RANKS];  // one of each rank, double-buffered: read while the next arrive
    int32_t turn;
    int32_t entry;  // of the chosen token in the row's list, or -1
    double log_total;
};

DEVICE int32_t add_remote(uint32_t at, int32_t v) {
    int32_t before;
    asm volatile("atom.relaxed.cluster.shared::cluster.add.s32 %0, [%1], %2;" : "=r"(before) : "r"(at), "r"(v) : "memory");
    return before;
}

// Exchanges every block's `value` (the same in all its threads): entry r is rank r's. The result must be read
// before the second call after this one.
DEVICE const uint64_t* exchange(Shared& sh, uint64_t value) {
    __syncthreads();  // the previous call has written `turn`
    uint64_t* values = sh.shared_values[sh.turn];
    if (threadIdx.x < cluster_size()) store_remote(remote_address(shared_address(&values[cluster_rank()]), threadIdx.x), value);
    cluster_sync();
    if (threadIdx.x == 0) sh.turn ^= 1;
    return values;
}

// One value a thread -> their sum over the threads before; *total gets the sum over all.
DEVICE uint64_t sum_before(Shared& sh, uint64_t value, uint64_t* total) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint64_t inclusive = value;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint64_t other = __shfl_up_sync(~0u, inclusive, d);
        if (lane >= d) inclusive += other;
    }
    __syncthreads();
    if (lane == 31) sh.warp_sums[warp] = inclusive;
    __syncthreads();
    uint64_t before = 0, all = 0;
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? sh.warp_sums[w] : 0;
        all += sh.warp_sums[w];
    }
    *total = all;
    return before + inclusive - value;
}

DEVICE uint64_t largest_of_cluster(Shared& sh, uint64_t value) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) value = max(value, __shfl_xor_sync(~0u, value, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh.warp_sums[threadIdx.x / 32] = value;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) value = max(value, sh.warp_sums[w]);
    const uint64_t* values = exchange(sh, value);
    for (int r = 0; r < cluster_size(); r++) value = max(value, values[r]);
    return value;
}

// One value a thread -> the sum over all threads of the cluster.
DEVICE uint64_t sum_of_cluster(Shared& sh, uint64_t value) {
    uint64_t total, sum = 0;
    sum_before(sh, value, &total);
    const uint64_t* values = exchange(sh, total);
    for (int r = 0; r < cluster_size(); r++) sum += values[r];
    return sum;
}

// This block's logits of one row, ids `first .. first + n`, under a temperature.
struct Row {
    float* logits;
    int first, n, id_bits;
    float largest, inverse_temperature;

    DEVICE float weight(float logit) const {
        const float distance = logit - largest;
        return distance == 0.f ? 1.f : expf(distance * inverse_temperature);
    }
    // Larger is better. Never 0 for a token. `i`: place in this block's part.
    DEVICE uint64_t key(float logit, int i) const {
        return static_cast<uint64_t>(ordered(logit)) << id_bits | (((1u << id_bits) - 1u) - static_cast<uint32_t>(first + i));
    }
    DEVICE float logit_of(uint64_t key) const { return from_ordered(static_cast<uint32_t>(key >> id_bits)); }
    DEVICE int id_of(uint64_t key) const {
        const uint32_t mask = (1u << id_bits) - 1u;
        return static_cast<int>(mask - (static_cast<uint32_t>(key) & mask));
    }
    // Bins over 30 temperatures, where weights end; every bin holds a range of ranks.
    DEVICE int bin(float logit, float scale) const {
        return static_cast<int>(fminf((largest - logit) * scale, static_cast<float>(BINS - 1)));
    }
};

// After all blocks have filled their bins: the bin in which the running sum reaches `target`, and the sum
// before it. -1 if the sum over all bins is less. The same in every thread of the cluster.
DEVICE int cut_bin(Shared& sh, uint64_t target, uint64_t* before) {
    cluster_sync();
    uint64_t a = 0, b = 0;
    for (int r = 0; r < cluster_size(); r++) {
        const uint32_t bins = remote_address(shared_address(&sh.bins[2 * threadIdx.x]), r);
        a += load_remote(bins), b += load_remote(bins + 8);
    }
    uint64_t total;
    const uint64_t start = sum_before(sh, a + b, &total);
    if (threadIdx.x == 0) sh.found = -1;
    __syncthreads();
    if (start < target && start + a >= target) sh.found = 2 * threadIdx.x, sh.before = start;
    else if (start + a < target && start + a + b >= target) sh.found = 2 * threadIdx.x + 1, sh.before = start + a;
    __syncthreads();
    *before = sh.before;
    return sh.found;
}

DEVICE void clear_bins(Shared& sh) {
    cluster_sync();  // all blocks have read them
    for (int i = threadIdx.x; i < BINS; i += THREADS) sh.bins[i] = 0;
    __syncthreads();
}

// The key of the last token that is kept when tokens with keys of at least `floor` are taken by
// rank until their count (or weight) reaches `target`, which is at least 1. `floor` if it never does.
template <bool BY_WEIGHT>
DEVICE uint64_t cutoff(Shared& sh, const Row& row, uint64_t floor, uint64_t target) {
    auto amount = [&](float logit) -> unsigned long long { return BY_WEIGHT ? integer_weight(row.weight(logit)) : 1ull; };
    // Masked tokens are infinitely far; with an infinite temperature all others are in bin 0.
    const float scale = fminf(BINS / 30.f * row.inverse_temperature, 1e30f);
    clear_bins(sh);
    for (int i = threadIdx.x; i < row.n; i += THREADS) {
        const float logit = row.logits[i];
        if (logit > -INFINITY && row.key(logit, i) >= floor) atomicAdd(&sh.bins[row.bin(logit, scale)], amount(logit));
    }
    uint64_t before;
    const int bin = cut_bin(sh, target, &before);
    if (bin < 0) return floor;
    target -= before;

    // The keys of that bin.
    uint64_t lowest = ~0ull, highest = 0;
    for (int i = threadIdx.x; i < row.n; i += THREADS) {
        const float logit = row.logits[i];
        const uint64_t key = row.key(logit, i);
        if (logit > -INFINITY && key >= floor && row.bin(logit, scale) == bin) lowest = min(lowest, key), highest = max(highest, key);
    }
    highest = largest_of_cluster(sh, highest);
    lowest = ~largest_of_cluster(sh, ~lowest);

    for (;;) {
        const int shift = max(0, 64 - __clzll(highest - lowest) - 11);
        clear_bins(sh);
        for (int i = threadIdx.x; i < row.n; i += THREADS) {
            const float logit = row.logits[i];
            const uint64_t key = row.key(logit, i);
            if (key >= lowest && key <= highest) atomicAdd(&sh.bins[(highest - key) >> shift], amount(logit));
        }
        const int next = cut_bin(sh, target, &before);
        if (next < 0) return floor;  // cannot happen: the previous bin had enough
        target -= before;
        highest -= static_cast<uint64_t>(next) << shift;
        if (shift == 0) return highest;
        lowest = max(lowest, highest - ((uint64_t{1} << shift) - 1));
    }
}

// Bias and penalties of this block's tokens. Keeps the model's logits in the list.
DEVICE void penalize(const Row& row, const SamplingRow& params, PenalizedToken* list, int n_listed) {
    for (int i = threadIdx.x; i < n_listed; i += THREADS) {
        const PenalizedToken entry = list[i];
        const uint32_t at = static_cast<uint32_t>(entry.token) - static_cast<uint32_t>(row.first);
        if (at >= static_cast<uint32_t>(row.n)) continue;
        float logit = row.logits[at];
        list[i].logit = logit;
        logit += entry.bias;
        if (entry.n_generated >= 0) logit = logit > 0.f ? __fdiv_rn(logit, params.repetition_penalty) : __fmul_rn(logit, params.repetition_penalty);
        if (entry.n_generated > 0)
            logit -= __fadd_rn(params.presence_penalty, __fmul_rn(params.frequency_penalty, static_cast<float>(entry.n_generated)));
        row.logits[at] = logit;
    }
    __syncthreads();
}

// Largest key of the row, over all blocks; 0 if a logit is NaN or +inf.
DEVICE uint64_t best_key(Shared& sh, const Row& row) {
    constexpr uint64_t BROKEN = ~0ull;  // larger than any key
    uint64_t best = 0;
    for (int i = threadIdx.x; i < row.n; i += THREADS) {
        const float logit = row.logits[i];
        best = max(best, logit < INFINITY ? row.key(logit, i) : BROKEN);
    }
    best = largest_of_cluster(sh, best);
    return best == BROKEN ? 0 : best;
}

// Records the likeliest tokens of the row and their log-probabilities.
DEVICE void write_top_logprobs(Shared& sh, const Row& row, const SampleParams& p, int r, int32_t step, int n_top) {
    // The first block collects them.
    const uint64_t last = cutoff<false>(sh, row, 0, n_top);
    __syncthreads();  // all have read `found`
    if (threadIdx.x == 0) sh.found = 0;
    cluster_sync();
    for (int i = threadIdx.x; i < row.n; i += THREADS) {
        const uint64_t key = row.key(row.logits[i], i);
        if (key < last || row.logits[i] == -INFINITY) continue;
        const int at = add_remote(remote_address(shared_address(&sh.found), 0), 1);
        if (at < n_top) store_remote(remote_address(shared_address(&sh.top[at]), 0), key);
    }
    cluster_sync();
    // Fewer than asked when the others are masked.
    const int n_found = min(sh.found, n_top);
    const int64_t out = static_cast<int64_t>(step) * p.to.m + r;
    if (cluster_rank() != 0) {
    } else if (threadIdx.x < n_found) {
        const uint64_t key = sh.top[threadIdx.x];
        int place = 0;
        for (int i = 0; i < n_found; i++) place += sh.top[i] > key;
        p.top_ids[out * p.max_top + place] = row.id_of(key);
        p.top_logprob[out * p.max_top + place] = static_cast<float>(row.logit_of(key) - sh.log_total);
    } else if (threadIdx.x < n_top) {
        p.top_ids[out * p.max_top + threadIdx.x] = -1;
        p.top_logprob[out * p.max_top + threadIdx.x] = -INFINITY;
    }
}

// The sum of all weights, for log-probabilities, and the likeliest tokens where some are asked for.
DEVICE void write_logprobs(Shared& sh, const Row& row, const SampleParams& p, int r, int32_t step) {
    uint64_t sum = 0;
    for (int i = threadIdx.x; i < row.n; i += THREADS) sum += integer_weight(row.weight(row.logits[i]));
    const uint64_t total = sum_of_cluster(sh, sum);
    if (threadIdx.x == 0) sh.log_total = static_cast<double>(row.largest) + log(static_cast<double>(total) / ONE);
    const int n_top = min(min(p.rows[r].n_logprobs, p.n), min(p.max_top, MAX_TOP));
    if (n_top > 0) write_top_logprobs(sh, row, p, r, step, n_top);
}

// The key of the last token that top-k and top-p keep; 0 keeps all.
DEVICE uint64_t kept_floor(Shared& sh, const Row& row, const SamplingRow& params, int n) {
    uint64_t floor = 0;
    if (params.top_k > 0 && params.top_k < n) floor = cutoff<false>(sh, row, 0, params.top_k);
    if (params.top_p < 1.f) {
        uint64_t sum = 0;
        for (int i = threadIdx.x; i < row.n; i += THREADS)
            if (row.key(row.logits[i], i) >= floor) sum += integer_weight(row.weight(row.logits[i]));
        const uint64_t total = sum_of_cluster(sh, sum);
        const double target = ceil(static_cast<double>(params.top_p) * static_cast<double>(total));
        floor = cutoff<true>(sh, row, floor, max(1ull, static_cast<unsigned long long>(target)));
    }
    return floor;
}

// Draws one of the tokens with keys of at least `floor` that min-p keeps: its key, in every block.
DEVICE uint64_t draw(Shared& sh, const Row& row, const SamplingRow& params, uint64_t floor) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = cluster_rank();
    auto kept = [&](int i) -> uint64_t {
        if (i >= row.n || row.key(row.logits[i], i) < floor) return 0;
        const float weight = row.weight(row.logits[i]);
        return weight >= params.min_p ? integer_weight(weight) : 0;
    };
    // A warp has a stretch of ids, so that sums over warps are in the order of ids.
    const int stretch = (row.n + THREADS - 1) / THREADS * 32;
    uint64_t sum = 0, own_total;
    for (int i = 0; i < stretch; i += 32) sum += kept(warp * stretch + i + lane);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    uint64_t passed = sum_before(sh, lane == 0 ? sum : 0, &own_total);
    passed = __shfl_sync(~0u, passed, 0);
    const uint64_t* totals = exchange(sh, own_total);
    uint64_t total = 0;
    for (int other = 0; other < cluster_size(); other++) {
        passed += other < rank ? totals[other] : 0;
        total += totals[other];
    }
    const uint64_t target = __umul64hi(uniform_bits(params.seed, params.output_index), total);
    if (passed <= target && passed + sum > target) {  // the token is one of this warp's
        for (int i = 0; i < stretch; i += 32) {
            uint64_t inclusive = kept(warp * stretch + i + lane);
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const uint64_t other = __shfl_up_sync(~0u, inclusive, d);
                if (lane >= d) inclusive += other;
            }
            const uint32_t hit = __ballot_sync(~0u, passed + inclusive > target);
            if (hit != 0) {
                const int at = warp * stretch + i + __ffs(hit) - 1;
                if (lane == 0) store_remote(remote_address(shared_address(&sh.top[0]), 0), row.key(row.logits[at], at));
                break;
            }
            passed += __shfl_sync(~0u, inclusive, 31);
        }
    }
    cluster_sync();
    return sh.top[0];
}

// Of a cluster's first block: records the chosen token and moves the row on.
DEVICE void record(Shared& sh, const Row& row, const SampleParams& p, int r, PenalizedToken* list, int n_listed, int32_t step,
                   bool has_logprobs, uint64_t best) {
    const SamplingRow& params = p.rows[r];
    const int token = row.id_of(best);
    if (threadIdx.x == 0) sh.entry = -1;
    __syncthreads();
    for (int i = threadIdx.x; i < n_listed; i += THREADS)
        if (list[i].token == token) sh.entry = i;
    __syncthreads();
    if (threadIdx.x != 0) return;
    const int entry = sh.entry;
    if (has_logprobs) {
        const float logit = entry >= 0 ? list[entry].logit : row.logit_of(best);
        p.logprob[static_cast<int64_t>(step) * p.to.m + r] = static_cast<float>(logit - sh.log_total);
    }
    int32_t recorded = token;
    if (params.tracks_output) {
        if (entry >= 0) {
            list[entry].n_generated = max(list[entry].n_generated, 0) + 1;
        } else if (n_listed < p.max_penalized) {
            list[n_listed] = {token, 1, 0.f, 0.f};
            p.rows[r].n_penalized = n_listed + 1;
        } else {
            recorded = LIST_FULL;
        }
    }
    p.rows[r].output_index = params.output_index + 1;
    advance_row(p.to, r, token, recorded);
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ SampleParams p) {
    __shared__ Shared sh;
    extern __shared__ float cache[];
    const int ranks = cluster_size(), r = blockIdx.x / ranks, rank = cluster_rank();
    if (threadIdx.x == 0) sh.turn = 0;
    launch_dependents();
    wait_for_previous();
    const SamplingRow& params = p.rows[r];  // read when needed: registers are scarce
    const int part = (p.n + ranks - 1) / ranks, first = min(rank * part, p.n), n_own = min(part, p.n - first);
    float* logits = p.logits + static_cast<int64_t>(r) * p.stride + first;
    if (n_own <= p.cached) {
        for (int i = threadIdx.x; i < n_own; i += THREADS) cache[i] = logits[i];
        logits = cache;
    }
    cluster_sync();  // all blocks have started, so their memory may be written
    PenalizedToken* list = p.penalized + static_cast<int64_t>(r) * p.max_penalized;
    const int n_listed = max(0, min(params.n_penalized, p.max_penalized));
    const int32_t step = history_row(p.to);
    Row row = {logits, first, n_own, p.n > 1 ? 32 - __clz(p.n - 1) : 1, 0.f, 1.f};

    // Records an error instead of a token. The row advances, so that its shape stays right.
    auto fail = [&](int32_t error) {
        cluster_sync();
        if (rank == 0 && threadIdx.x == 0) advance_row(p.to, r, 0, error);
    };
    uint64_t best = best_key(sh, row);
    if (best == 0) return fail(NOT_FINITE);
    row.largest = row.logit_of(best);
    if (row.largest == -INFINITY) return fail(ALL_MASKED);

    const bool has_logprobs = params.n_logprobs >= 0 && p.logprob != nullptr && step >= 0;
    if (has_logprobs) write_logprobs(sh, row, p, r, step);
    if (n_listed > 0) {
        __syncthreads();
        penalize(row, params, list, n_listed);
        best = best_key(sh, row);
        if (best == 0) return fail(NOT_FINITE);
        row.largest = row.logit_of(best);
        if (row.largest == -INFINITY) return fail(ALL_MASKED);
    }
    if (params.temperature > 0.f) {
        row.inverse_temperature = 1.f / params.temperature;
        best = draw(sh, row, params, kept_floor(sh, row, params, p.n));
    } else {
        cluster_sync();
    }
    if (rank != 0) return;  // no block reads another's memory from here on
    record(sh, row, p, r, list, n_listed, step, has_logprobs, best);
}
