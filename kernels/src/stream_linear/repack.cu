// packed(tile, chunk, lane, product) = W[column][k]: lays weights out as stream_linear.cu, mma.cu and wgmma.cu
// read them, once at load.
//
// Layout: weight_layout.cuh. Lane (g, j) of a warp holds columns g and g + 8 of a tile. A product takes 16 k per
// warp, 4 per lane: product 2P + i of a chunk has k = P*32 + j*8 + i*4 + (0..3). So the lane's x for two
// products is one 16-byte vector. The four registers of the A operand are
//   (column g; k 0,1)  (column g + 8; k 0,1)  (column g; k 2,3)  (column g + 8; k 2,3).
// Columns beyond n and k beyond the matrix become zero.
//   * repack_awq: 4 bits from AutoAWQ's `gemm` order; a word is one product of a lane. Scales stay fp16, the
//     zero points of columns g and g + 8 share a byte.
//   * repack_half: 16 bits, fp16 or bf16 unchanged; 8 values of a lane are one product.
// Bytes: W read once and written once; AWQ reads a word per nibble, from the L2.
// Grid: n_tiles * n_chunks blocks of THREADS threads. Architectures: sm_90, sm_120.
#include "../cuda/device.cuh"
#include "weight_layout.cuh"

constexpr int THREADS = 128;  // of a block; each has one 16-byte vector of a chunk

struct RepackAwqParams {
    const uint32_t* qweight;  // [k][n / 8], nibble i of a word is column {0,2,4,6,1,3,5,7}[i]
    const uint32_t* qzeros;   // [k / group][n / 8], same order
    const __half* scales;     // [k / group][n]
    uint8_t* weights;         // [n tiles][n_chunks][CHUNK_BYTES]
    uint8_t* group_data;      // [n tiles][n_chunks][groups * GROUP_BYTES]
    int32_t n, k, group;
    int32_t n_chunks;
    int32_t tile_step, tile_offset;  // tile t lands at t * tile_step + tile_offset (2 interleaves gate and up)
};

DEVICE uint32_t awq_nibble(const uint32_t* words, int64_t row, int n, int column) {
    if (column >= n) return 0;
    const uint32_t word = words[row * (n / 8) + column / 8];
    const int c = column % 8, position = (c & 1) * 4 + (c >> 1);
    return (word >> (4 * position)) & 0xf;
}

// Shifts a nibble to its place in a word: value `high` (0 or 1) of register r's pair. So column g has the bits
// from 2 on of every byte and column g + 8 those from 6 on, both with their k in the order 0, 2, 1, 3.
DEVICE uint32_t place(uint32_t q, int r, int high) { return __funnelshift_l(q, q, 2 + 4 * r + 16 * high); }

// Thread = a 16-byte vector of the chunk: four products of a lane.
extern "C" __global__ void __launch_bounds__(THREADS) repack_awq(const __grid_constant__ RepackAwqParams p) {
    const int chunk = blockIdx.x % p.n_chunks, tile = blockIdx.x / p.n_chunks;
    const int lane = threadIdx.x & 31, quarter = threadIdx.x >> 5, g = lane >> 2, j = lane & 3;
    const int64_t home = static_cast<int64_t>(tile * p.tile_step + p.tile_offset) * p.n_chunks + chunk;
    uint32_t* out = reinterpret_cast<uint32_t*>(p.weights + home * CHUNK_BYTES) + threadIdx.x * 4;
    for (int word = 0; word < 4; word++) {
        const int product = quarter * 4 + word;
        const int k0 = chunk * AWQ_CHUNK_K + product / 2 * 32 + j * 8 + product % 2 * 4;
        uint32_t packed = 0;
        for (int r = 0; r < 4; r++)
            for (int high = 0; high < 2; high++) {
                const int k = k0 + (r / 2) * 2 + high, column = tile * TILE_COLUMNS + g + (r % 2) * 8;
                if (k < p.k) packed |= place(awq_nibble(p.qweight, k, p.n, column), r, high);
            }
        out[word] = packed;
    }
    const int groups = AWQ_CHUNK_K / p.group;
    uint8_t* group_data = p.group_data + home * groups * GROUP_BYTES;
    for (int i = threadIdx.x; i < groups * GROUP_ZERO_BYTES; i += THREADS) {
        const int index = i / 8, c = i % 8, row = chunk * groups + index;
        __half* scales = reinterpret_cast<__half*>(group_data) + i * 2;
        uint32_t zeros = 0;
        for (int high = 0; high < 2; high++) {
            const int column = tile * TILE_COLUMNS + c + high * 8;
            const bool valid = row < p.k / p.group && column < p.n;
            scales[high] = valid ? p.scales[static_cast<int64_t>(row) * p.n + column] : __float2half(0.f);
            if (valid) zeros |= awq_nibble(p.qzeros, row, p.n, column) << (4 * high);
        }
        group_data[groups * GROUP_SCALE_BYTES + i] = zeros;
    }
}

struct RepackHalfParams {
    const uint16_t* rows;  // [n][k] fp16 or bf16
    uint8_t* weights;      // [n tiles][n_chunks][CHUNK_BYTES]
    int32_t n, k, n_chunks;
    int32_t tile_step, tile_offset;
    int32_t padding;
};

// Thread = (product, lane).
extern "C" __global__ void __launch_bounds__(THREADS) repack_half(const __grid_constant__ RepackHalfParams p) {
    const int chunk = blockIdx.x % p.n_chunks, tile = blockIdx.x / p.n_chunks;
    const int lane = threadIdx.x & 31, product = threadIdx.x >> 5, g = lane >> 2, j = lane & 3;
    const int64_t home = static_cast<int64_t>(tile * p.tile_step + p.tile_offset) * p.n_chunks + chunk;
    uint16_t* out = reinterpret_cast<uint16_t*>(p.weights + home * CHUNK_BYTES) + threadIdx.x * 8;
    const int k0 = chunk * HALF_CHUNK_K + product / 2 * 32 + j * 8 + product % 2 * 4;
    for (int r = 0; r < 4; r++)
        for (int high = 0; high < 2; high++) {
            const int k = k0 + (r / 2) * 2 + high, column = tile * TILE_COLUMNS + g + (r % 2) * 8;
            out[r * 2 + high] = k < p.k && column < p.n ? p.rows[static_cast<int64_t>(column) * p.k + k] : uint16_t{0};
        }
}
