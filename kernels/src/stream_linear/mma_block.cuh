// What a block of mma.cu and of mma_int8.cu does besides its products: it feeds weights and x, adds up the sums
// of tiles that several blocks share, and writes the output. The source defines `WARPS`, the warps of a block,
// before it includes this file.
#pragma once
#include "epilogue.cuh"
#include "split_k.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int WARP_TILES = 2;  // of TILE_COLUMNS columns
constexpr int BLOCK_TILES = WARPS * WARP_TILES;
constexpr int X_ROW_BYTES = 128;  // bytes of a row of x in a stage

struct MmaLinearParams {
    const uint8_t* weights;  // [n_tiles][n_chunks][CHUNK_BYTES]
    const uint8_t* scales;   // [n_tiles][n_chunks][SCALE_BYTES]
    const uint8_t* x;        // tiled, x_rows rows; columns from k to n_chunks * K are zero
    const float* x_scales;   // of 8-bit x: [k / 128][x_rows]; else null
    void* out;               // by epilogue
    const elem* bias;        // [n] or null
    float4* parts;           // [blocks][2][WARP_TILES * N][THREADS]
    int32_t* tickets;        // [tiles that are cut], zero before and after
    int32_t m, x_rows;
    int32_t n, n_tiles, n_chunks;
    int32_t out_tile_rows;   // of a tiled SiLU output; 0 for plain rows
    int32_t epilogue;
    int32_t shared_bytes;    // of the launch
};

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(uint32_t (&d)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}

DEVICE uint4 load_16(const void* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

// Shared addresses of the rings.
struct Places {
    uint32_t x, scales, x_scales;
};

// A lane's words of one stage.
template <class R>
struct Words {
    uint4 w[WARP_TILES][R::WORDS];
};

// Addresses of the next stage of the block's work. They are those of its chunk; a stage adds an offset that the
// compiler knows. Only a new run costs divisions. All threads of a block are at the same stage.
// F: format of the weights. R: `Ring` of the source.
template <class F, class R>
struct Feed {
    const uint8_t* weights;  // the chunk: this lane's first 16 bytes of the warp's first tile
    const uint8_t* scales;   // this lane's 16 bytes of the two tiles' scales
    const uint8_t* x;        // this thread's first 16 bytes
    const uint8_t* x_scales; // the same of the rows' scales, if x is in 8 bits
    int second_tile = 0;     // bytes from the first tile to the second
    int left = 0;            // chunks of this run after this one
    int stage = 0, slot = R::SLOTS - 1;
    int x_rows;
    Runs runs;

    DEVICE Feed(const MmaLinearParams& p, const Schedule& schedule) : x_rows(p.x_rows), runs(schedule) {}

    // Moves to the next chunk. After the last one it stays there: what is then copied is not used.
    DEVICE bool next_chunk(const MmaLinearParams& p, const Schedule& schedule, int n_row_tiles) {
        if (left > 0) {
            left--;
            weights += CHUNK_BYTES;
            scales += F::SCALE_BYTES;
            x += static_cast<int64_t>(R::PER_CHUNK) * x_rows * X_ROW_BYTES;
            x_scales += static_cast<int64_t>(R::PER_CHUNK) * x_rows * R::X_SCALE_BYTES;
        } else {
            int work, chunk, n;
            if (!runs.next(schedule, work, chunk, n)) return false;
            left = n - 1;
            start_run(p, work / n_row_tiles, work % n_row_tiles, chunk);
        }
        if (++slot == R::SLOTS) slot = 0;
        return true;
    }
    DEVICE void start_run(const MmaLinearParams& p, int columns, int rows, int chunk) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        // Beyond the last tile the last one again: its products are dropped.
        const int tile = min(columns * BLOCK_TILES + warp * WARP_TILES, p.n_tiles - 1);
        const bool has_second = tile + 1 < p.n_tiles;
        const int64_t index = static_cast<int64_t>(tile) * p.n_chunks + chunk;
        weights = p.weights + index * CHUNK_BYTES + lane * LANE_BYTES;
        second_tile = has_second ? p.n_chunks * CHUNK_BYTES : 0;
        if constexpr (F::SCALE_BYTES > 0) {
            // One lane copies 16 bytes of scales.
            constexpr int PARTS = F::SCALE_BYTES / 16;
            const int t = lane / PARTS;
            scales = p.scales + (index + (t == 1 && has_second ? p.n_chunks : 0)) * F::SCALE_BYTES + lane % PARTS * 16;
        }
        const int64_t row = static_cast<int64_t>(chunk) * R::PER_CHUNK * p.x_rows + rows * R::ROWS;
        x = p.x + row * X_ROW_BYTES + threadIdx.x * 16;
        x_scales = reinterpret_cast<const uint8_t*>(p.x_scales) + row * R::X_SCALE_BYTES + threadIdx.x * 16;
    }

    DEVICE void load_words(Words<R>& words, int part) const {
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
            for (int i = 0; i < R::WORDS; i++)
                words.w[t][i] = load_16(weights + (t == 0 ? 0 : second_tile) + part * R::W_TILE + i * WARP_BYTES);
    }
    // The same to shared memory, where only this lane reads them: [WARP_TILES][WORDS][32 lanes].
    DEVICE void copy_words(uint32_t to, int part) const {
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
            for (int i = 0; i < R::WORDS; i++)
                copy_16(to + (t * R::WORDS + i) * WARP_BYTES, weights + (t == 0 ? 0 : second_tile) + part * R::W_TILE + i * WARP_BYTES);
    }
    DEVICE void copy_scales(const Places& at, bool is_wanted) const {
        if constexpr (F::SCALE_BYTES > 0) {
            constexpr int PARTS = F::SCALE_BYTES / 16;
            static_assert(PARTS <= 32);
            const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
            const uint32_t to = at.scales + (slot * WARPS + warp) * WARP_TILES * F::SCALE_BYTES + lane * 16;
            if constexpr (WARP_TILES * PARTS <= 32) {
                copy_16(to, scales, is_wanted && lane < WARP_TILES * PARTS);
            } else {
                copy_16(to, scales, is_wanted && lane < PARTS);
                copy_16(to + F::SCALE_BYTES, scales + second_tile / CHUNK_BYTES * F::SCALE_BYTES, is_wanted && lane < PARTS);
            }
        }
    }
    DEVICE void copy_x(const Places& at, int part) const {
        const uint32_t to = at.x + stage * R::X_STAGE + threadIdx.x * 16;
        const uint8_t* from = x + static_cast<int64_t>(part) * x_rows * X_ROW_BYTES;
        if constexpr (R::X_STAGE < THREADS * 16) {
            copy_16(to, from, threadIdx.x < R::X_STAGE / 16);
        } else {
            static_assert(R::X_STAGE % (THREADS * 16) == 0, "copies would reach into the next stage");
#pragma unroll
            for (int c = 0; c < R::X_STAGE; c += THREADS * 16) copy_16(to + c, from + c);
        }
        if constexpr (R::X_SCALE_BYTES > 0)
            copy_16(at.x_scales + stage * R::ROWS * R::X_SCALE_BYTES + threadIdx.x * 16,
                    x_scales + static_cast<int64_t>(part) * x_rows * R::X_SCALE_BYTES,
                    threadIdx.x < R::ROWS * R::X_SCALE_BYTES / 16);
    }
    DEVICE void step() {
        if (++stage == R::STAGES) stage = 0;
    }
};

template <Output O, int N>
DEVICE void store_tile(const MmaLinearParams& p, const float (&acc)[WARP_TILES][N][4], int row, int w_tile, int lane) {
    const Writer<O, WARP_TILES, MmaLinearParams> writer(p, Place{row, w_tile, lane >> 2, lane & 3});
    constexpr int AT_ONCE = N % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int r0 = 0; r0 < N; r0 += AT_ONCE) {
        if (row + r0 * 8 >= p.m) return;
        write_rows<AT_ONCE>(writer, acc, r0);
    }
}

// Writes this block's part of a shared tile to memory. True for the block that finishes last: then `acc` is
// the sum of all parts, in block order.
template <int N>
DEVICE bool add_parts(const MmaLinearParams& p, const Schedule& schedule, int work, float (&acc)[WARP_TILES][N][4]) {
    const SharedTile shared(schedule, work);
    auto part_of = [&](int block) { return shared.part_of(schedule, p.parts, WARP_TILES * N * THREADS, block); };
    write_part<THREADS>(part_of(blockIdx.x), acc);
    __syncthreads();
    bool is_last = false;
    if (threadIdx.x == 0) {
        int32_t* ticket = p.tickets + (work - schedule.whole_tiles);
        __threadfence();
        is_last = atomicAdd(ticket, 1) == shared.n_blocks - 1;
        __threadfence();
        if (is_last) *ticket = 0;
    }
    if (!__syncthreads_or(is_last)) return false;
#pragma unroll
    for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
        for (int r = 0; r < N; r++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[t][r][i] = 0.f;
    for (int block = shared.first_block; block < shared.first_block + shared.n_blocks; block++) {
        const float4* part = part_of(block);
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
            for (int r = 0; r < N; r++) {
                const float4 v = __ldcg(part + (t * N + r) * THREADS);
                acc[t][r][0] += v.x, acc[t][r][1] += v.y, acc[t][r][2] += v.z, acc[t][r][3] += v.w;
            }
    }
    return true;
}
