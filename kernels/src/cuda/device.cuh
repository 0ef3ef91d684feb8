// What all kernels share: asynchronous copies, barriers, clusters, launch overlap. It compiles for sm_90 and
// sm_120.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda/std/cstdint>

using cuda::std::int32_t;
using cuda::std::uint16_t;
using cuda::std::uint32_t;
using cuda::std::uint64_t;
using cuda::std::uint8_t;

#define DEVICE __device__ __forceinline__

// For sources that choose by chip. It is defined for sm_120, and for another chip that runs sm_120's choices
// under a card profile (`Profiles: sm_120.` in the source's header has them compiled).
#if defined(PROFILE_SM_120) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000)
#define FOR_SM_120
#endif

DEVICE uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- jitter ------------------------------------------------------------------------------

// In a build with JITTER, warps sleep up to 2 us at random at every point where threads, copies or launches
// synchronise. If the right order was luck, other orders occur as well, and the results change.
DEVICE void jitter() {
#ifdef JITTER
    uint32_t x;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(x));
    x = (x ^ (threadIdx.x / 32 + 1) * 0x9e3779b9u ^ (blockIdx.x + 1) * 0x85ebca6bu) * 0xc2b2ae35u;
    x ^= x >> 15;
    // No branch: the warp must not diverge.
    __nanosleep(x % 8 == 0 ? x >> 21 : 0);
#endif
}

// ---- programmatic dependent launch -------------------------------------------------------

// Lets the next kernel of the stream start its blocks while this one still runs.
DEVICE void launch_dependents() {
    jitter();
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// Waits until the kernels before this one have finished and their writes are visible.
DEVICE void wait_for_previous() {
    jitter();
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// ---- device memory that blocks share -----------------------------------------------------

// By one thread, after a barrier of its block: it releases all that the block has written before.
DEVICE void add_release(int32_t* at, int32_t v) {
    jitter();
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}
DEVICE int32_t add_acquire_release(int32_t* at, int32_t v) {
    int32_t before;
    jitter();
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(v) : "memory");
    return before;
}
DEVICE int32_t load_acquire(const int32_t* at) {
    int32_t v;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
// Waits until other blocks have raised `*at` to `value`. They run at the same time, so this takes
// microseconds. If one of them is not on the GPU (another process has taken its place), the launch ends with
// an illegal address after some 15 s, instead of hanging. (`trap` would be clearer, but ptxas serialises wgmma
// in a kernel that has one.)
DEVICE void wait_for_blocks(const int32_t* at, int32_t value) {
    constexpr uint32_t EAGER_POLLS = 2048, MOST_POLLS = 1u << 24;
    jitter();
    for (uint32_t polls = 0; load_acquire(at) < value; polls++) {
        if (polls >= EAGER_POLLS) __nanosleep(200);
        if (polls == MOST_POLLS) asm volatile("st.global.u32 [%0], %1;" ::"l"(0ull), "r"(polls) : "memory");
    }
}

// ---- 16-byte copies from global to shared memory -----------------------------------------

DEVICE void copy_16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copy_16(uint32_t to, const void* from, bool is_wanted) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(to), "l"(from),
                 "r"(static_cast<int>(is_wanted))
                 : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's groups of copies are in flight.
template <int PENDING>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
DEVICE void copies_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- mbarrier + bulk copy ----------------------------------------------------------------

DEVICE void barrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
DEVICE void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void barrier_arrive(uint32_t bar) {
    jitter();
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
DEVICE void barrier_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}
DEVICE void barrier_wait(uint32_t bar, uint32_t parity) {
    uint32_t done = 0;
    jitter();
    while (!done) {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done) : "r"(bar), "r"(parity) : "memory");
    }
}
// Weights are read once a step: they leave the L2 first.
DEVICE uint64_t evict_first_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// bytes: a multiple of 16; both addresses aligned to 16.
DEVICE void bulk_copy(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, uint64_t policy) {
    jitter();
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4;" ::"r"(dst), "l"(src), "r"(bytes), "r"(bar), "l"(policy)
        : "memory");
}
DEVICE void bulk_copy(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
    jitter();
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar)
                 : "memory");
}

// Into the L2 only; bytes and address: multiples of 16.
DEVICE void bulk_prefetch(const void* src, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(src), "r"(bytes) : "memory");
}

// ---- clusters ----------------------------------------------------------------------------

DEVICE uint32_t cluster_rank() {
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
DEVICE uint32_t cluster_size() {
    uint32_t n;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
    return n;
}
DEVICE void cluster_arrive() {
    jitter();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void cluster_sync() {
    jitter();
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The address, in another block of the cluster, of what this block has at `address` of its shared memory.
DEVICE uint32_t remote_address(uint32_t address, uint32_t rank) {
    uint32_t remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}
DEVICE uint64_t load_remote(uint32_t remote) {
    uint64_t v;
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(v) : "r"(remote) : "memory");
    return v;
}
DEVICE void store_remote(uint32_t remote, uint64_t v) {
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(remote), "l"(v) : "memory");
}
DEVICE void store_remote(uint32_t remote, float v) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(v) : "memory");
}
DEVICE float cluster_load(uint32_t address, uint32_t rank) {
    float v;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(remote_address(address, rank)) : "memory");
    return v;
}

// ---- bits --------------------------------------------------------------------------------

// (a & mask) | bits, in one instruction.
template <uint32_t mask, uint32_t bits>
DEVICE uint32_t and_or(uint32_t a) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "n"(mask), "n"(bits));
    return r;
}
