// The parameters of multiply.cu, multiply_int8.cu and multiply_wgmma.cu.
#pragma once
#include "../cuda/device.cuh"

struct MultiplyParams {
    float* out;  // [1]: written if a sum has a value that does not occur, so that the compiler keeps the products
    int32_t n_rounds;
    int32_t padding;
};
