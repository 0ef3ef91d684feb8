// What multiply.cu and multiply_wgmma.cu take.
#pragma once
#include "../cuda/device.cuh"

struct MultiplyParams {
    float* out;  // [1]: written where a sum is one that does not occur, so that none is left out
    int32_t n_rounds;
    int32_t padding;
};
