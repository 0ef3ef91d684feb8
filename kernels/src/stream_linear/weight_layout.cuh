// The layout of packed weights in memory. repack.cu writes it, the other sources read it, and the host has the
// same numbers (mod.rs; a test compares them by name).
//
//   weights [n_tiles][n_chunks][CHUNK_BYTES]
//   groups  [n_tiles][n_chunks][groups of the chunk * GROUP_BYTES], for AWQ only: for each group
//           GROUP_SCALE_BYTES of fp16 scales, and after those of all groups GROUP_ZERO_BYTES each
#pragma once

constexpr int TILE_COLUMNS = 16;  // of W in a tile: rows of the matrix instruction's A operand
constexpr int CHUNK_BYTES = 2048;
constexpr int AWQ_CHUNK_K = 256, HALF_CHUNK_K = 64;  // k of a chunk: in 4 bits, in 16
constexpr int LANE_BYTES = 16, WARP_BYTES = 32 * LANE_BYTES;  // of a chunk that a lane, a warp loads at once
constexpr int GROUP_SCALE_BYTES = TILE_COLUMNS * 2, GROUP_ZERO_BYTES = TILE_COLUMNS / 2;
constexpr int GROUP_BYTES = GROUP_SCALE_BYTES + GROUP_ZERO_BYTES;
