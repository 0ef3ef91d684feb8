// A ring of stages in shared memory, each with mbarriers: a thread or a copy fills a stage, warps read it.
// Shared by stream_linear.cu and wgmma.cu.
#pragma once
#include "../cuda/device.cuh"

constexpr int BARRIER_BYTES = 8;

// The barriers of a ring's stages lie next to each other.
DEVICE uint32_t barrier_of(uint32_t barriers, int stage) { return barriers + stage * BARRIER_BYTES; }
DEVICE void init_barriers(uint32_t barriers, int n_stages, uint32_t count) {
    for (int s = 0; s < n_stages; s++) barrier_init(barrier_of(barriers, s), count);
}

// The next stage, and the parity that its barrier waits for. A reader starts with READER, since it waits for
// the first fill; a writer starts with WRITER, since every stage is free in the first round.
struct RingPlace {
    static constexpr int READER = 0, WRITER = 1;
    int stage = 0, parity;

    DEVICE explicit RingPlace(int parity) : parity(parity) {}
    DEVICE void step(int n_stages) {
        if (++stage == n_stages) stage = 0, parity ^= 1;
    }
};
