// A norm between two projections that has no launch of its own: y = W (h r w), r = 1 / rms(h), is
// r (W (h w)), so the first projection writes h w beside h and the second multiplies its sums by r.
//
//   * h w alone may leave the range of fp16, so it is written as x = h w s / 64, where s is 1 / rms of the
//     previous norm, which is usually near r. A value then leaves fp16 only if it grows by a million between
//     two norms. Values that shrink to a hundredth stay as exact as those of a norm.
//   * The sum of squares of a row is built by integer additions of (h s)^2, so that it does not depend on
//     the order of the blocks: in units of 2^-24, and parts that are too large for those (one channel that
//     grows by 32,000) in a second sum with units of 2^16. Growth by 2 10^10 fits.
//   * A larger value or NaN makes the row's norm NaN, and so its logits: the row ends with an error instead
//     of going on with a wrong norm.
#pragma once
#include "../cuda/element.cuh"
#include "../cuda/tiled.cuh"

// One of a pair: while kernels read the norm of one, the other is prepared for the norm after it.
struct NormState {
    unsigned long long* squares;  // [rows][NORM_STRIDE]: the fine sum, the coarse sum, padding
    float* scale;                 // [rows]: s
};

// The sums of each row have a cache line of their own.
constexpr int NORM_STRIDE = 32;
constexpr float NORM_X_SCALE = 1.f / 64.f;
constexpr float NORM_UNIT = 16777216.f;        // of the fine sum: 2^-24
constexpr float NORM_COARSE = 1099511627776.f;  // 2^40 fine units are a coarse one
constexpr unsigned long long NORM_BROKEN = 1ull << 63;  // in the coarse sum, which never gets so large

enum NormRole : int32_t { NORM_NONE, NORM_READS, NORM_WRITES };

struct DeferredNorm {
    NormState state;
    NormState next;      // reader: scale is written, squares are zeroed
    const elem* weight;  // writer: [n]
    elem* x;             // writer: [m][x_stride], or tiled
    float eps;           // reader
    int32_t n;           // reader: columns of h
    int32_t x_stride, x_tile_rows;
    int32_t role;        // NormRole
    int32_t padding;
};

// Prepares the next norm of a row whose 1 / rms is `inverse`.
DEVICE void begin_norm(const NormState& next, int row, float inverse) {
    next.scale[row] = inverse;
    *reinterpret_cast<ulonglong2*>(next.squares + row * NORM_STRIDE) = ulonglong2{0, 0};
}

// The factor of all sums over a row of x. One block of the grid prepares the next norm.
DEVICE float factor_of_row(const DeferredNorm& p, int row, bool begins_next) {
    const float s = p.state.scale[row];
    const ulonglong2 sums = *reinterpret_cast<const ulonglong2*>(p.state.squares + row * NORM_STRIDE);
    const float units = static_cast<float>(sums.x) + static_cast<float>(sums.y) * NORM_COARSE;
    const float inverse = sums.y < NORM_BROKEN ? rsqrtf(units / NORM_UNIT / p.n / (s * s) + p.eps) : NAN;
    if (begins_next) begin_norm(p.next, row, inverse);
    return inverse / (s * NORM_X_SCALE);
}

// x of a value of h, and its square; s is the row's scale.
DEVICE elem norm_x(float h, float s, float weight) { return float_to_elem(h * s * NORM_X_SCALE * weight); }
DEVICE float norm_square(float h, float s) { return h * s * (h * s); }
DEVICE void add_squares(const DeferredNorm& p, int row, float sum) {
    // A sum of 2^10 parts of up to MOST fits 64 bits, one of up to MOST_COARSE fits 63.
    constexpr float MOST = 1.8e16f, MOST_COARSE = 9e15f;
    unsigned long long* squares = p.state.squares + row * NORM_STRIDE;
    const float units = sum * NORM_UNIT;
    if (units <= MOST) atomicAdd(squares, __float2ull_rn(units));
    else if (units <= MOST_COARSE * NORM_COARSE) atomicAdd(squares + 1, __float2ull_rn(units / NORM_COARSE));
    else atomicOr(squares + 1, NORM_BROKEN);  // NaN as well
}
