// The layout of packed weights in memory. repack.cu writes it, the other sources read it, and the host has the
// same numbers (mod.rs; a test compares them by name).
//
//   weights [n_tiles][n_chunks][CHUNK_BYTES]
//   scales  [n_tiles][n_chunks][bytes of a chunk's groups], of formats that have scales
//
// A chunk is 16 columns by 256 k in 4 bits, 128 k in 8, 64 k in 16. Lane (g, j) of a warp holds columns g and g + 8
// and, of every 32 k, those from 8 j on (repack.cu). Columns beyond n and k beyond the matrix have scale and code 0.
//
//   format          codes of a weight w                                scales of a group
//   awq             4 bits, w = s (q - z); groups of 32, 64, 128       GROUP_SCALE_BYTES: fp16 [8 g][s of g, of g + 8];
//                                                                      after those of all groups GROUP_ZERO_BYTES each
//   min             4 bits, w = s q + m; groups of 32                  MIN_GROUP_BYTES: fp16 [8 g][s, s, m, m]
//   bytes           8 bits, w = s (q - 128); groups of 16, 32          GROUP_SCALE_BYTES: fp16 [8 g][s, s]
//   bytes_min       8 bits, w = s (q - 128) + m; groups of 16          MIN_GROUP_BYTES: fp16 [8 g][s, s, m, m]
//   fp8             8 bits, w = s e4m3(q); groups of 128               FLOAT_GROUP_BYTES: fp32 [8 g][s, s]
//   half            the element                                        none
//
// 4-bit codes: 16 bytes of a lane are four words, one product each (repack.cu). 8-bit codes: 16 bytes of a lane
// are 32 k, two products of 8 bytes: columns g, g, g + 8, g + 8 with k 0, 1, 0, 1, then the same with k 2, 3.
#pragma once

constexpr int TILE_COLUMNS = 16;  // of W in a tile: rows of the matrix instruction's A operand
constexpr int CHUNK_BYTES = 2048;
constexpr int AWQ_CHUNK_K = 256, BYTE_CHUNK_K = 128, HALF_CHUNK_K = 64;  // k of a chunk: in 4 bits, in 8, in 16
constexpr int LANE_BYTES = 16, WARP_BYTES = 32 * LANE_BYTES;  // of a chunk that a lane, a warp loads at once
constexpr int GROUP_SCALE_BYTES = TILE_COLUMNS * 2, GROUP_ZERO_BYTES = TILE_COLUMNS / 2;
constexpr int GROUP_BYTES = GROUP_SCALE_BYTES + GROUP_ZERO_BYTES;
constexpr int MIN_GROUP_BYTES = 2 * GROUP_SCALE_BYTES;        // scales and minima in fp16
constexpr int FLOAT_GROUP_BYTES = TILE_COLUMNS * 4;           // scales in fp32
