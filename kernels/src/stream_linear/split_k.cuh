// Split-K: how the blocks of a launch share the tiles of work, the last of which are cut along k. Shared by
// wgmma.cu, mma.cu and mma_int8.cu.
#pragma once
#include "../cuda/device.cuh"

// What a block works on: first its run of chunks of the tiles that do not fill a whole wave of blocks, then
// whole tiles, one of every wave. The runs come first, so that the other parts of a shared tile are in memory
// when this block adds them up.
struct Schedule {
    int units;        // chunks of the tiles that are cut; units * blocks fits an int
    int first, last;  // this block's
    int blocks, n_chunks;
    int whole_tiles;  // of all blocks

    DEVICE Schedule(int n_tiles, int n_chunks) : n_chunks(n_chunks) {
        const int grid = gridDim.x, cut_tiles = n_tiles % grid;
        whole_tiles = n_tiles - cut_tiles;
        units = cut_tiles * n_chunks;
        // If that leaves few blocks idle, every tile gets the same number of blocks, so that no run
        // has parts of two tiles.
        const int even = cut_tiles == 0 ? 0 : cut_tiles * min(grid / cut_tiles, n_chunks);
        blocks = even * 8 >= grid * 7 ? even : min(grid, units);
        const int b = min(static_cast<int>(blockIdx.x), blocks);
        first = blocks == 0 ? 0 : units * b / blocks;
        last = blocks == 0 ? 0 : units * min(b + 1, blocks) / blocks;
    }
    // Calls fn(tile, first chunk, last chunk) one after the other.
    template <class Fn>
    DEVICE void each(Fn&& fn) const {
        for (int at = first; at < last;) {
            const int tile = at / n_chunks, chunk = at - tile * n_chunks;
            const int end = min(n_chunks, chunk + last - at);
            fn(whole_tiles + tile, chunk, end);
            at += end - chunk;
        }
        for (int tile = blockIdx.x; tile < whole_tiles; tile += gridDim.x) fn(tile, 0, n_chunks);
    }
};

// The same runs one by one, for a producer that is ahead of the products.
struct Runs {
    int at, tile;  // next unit of the tiles that are cut, next whole tile
    DEVICE Runs(const Schedule& s) : at(s.first), tile(blockIdx.x) {}
    // False if there are no more. Otherwise a tile, its first chunk, and the number of chunks.
    DEVICE bool next(const Schedule& s, int& work, int& chunk, int& n) {
        if (at < s.last) {
            const int cut = at / s.n_chunks;
            chunk = at - cut * s.n_chunks, n = min(s.n_chunks - chunk, s.last - at);
            work = s.whole_tiles + cut, at += n;
            return true;
        }
        if (tile >= s.whole_tiles) return false;
        work = tile, chunk = 0, n = s.n_chunks, tile += gridDim.x;
        return true;
    }
};

// Which blocks work on a tile that is cut, blocks being contiguous runs of units.
struct SharedTile {
    int start;
    int first_block, n_blocks;
    DEVICE SharedTile(const Schedule& s, int tile) : start((tile - s.whole_tiles) * s.n_chunks) {
        first_block = (s.blocks * (start + 1) - 1) / s.units;
        n_blocks = (s.blocks * (start + s.n_chunks) - 1) / s.units - first_block + 1;
    }
    // Where this thread's values of a block's part lie. `parts`: [blocks][2][part_values]; a block's run
    // begins in the tile (its second part) or before it (its first part).
    DEVICE float4* part_of(const Schedule& s, float4* parts, int part_values, int block) const {
        const bool begins_here = s.units * block / s.blocks >= start;
        return parts + (static_cast<int64_t>(block) * 2 + begins_here) * part_values + threadIdx.x;
    }
};

// Writes a thread's sums to its part: [T][R][THREADS].
template <int THREADS, int T, int R>
DEVICE void write_part(float4* part, const float (&acc)[T][R][4]) {
#pragma unroll
    for (int t = 0; t < T; t++)
#pragma unroll
        for (int r = 0; r < R; r++)
            __stcg(part + (t * R + r) * THREADS, make_float4(acc[t][r][0], acc[t][r][1], acc[t][r][2], acc[t][r][3]));
}
