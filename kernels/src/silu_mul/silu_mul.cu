// out[r][c] = gate[r][c] / (1 + exp(-gate[r][c])) * up[r][c], the middle of a SwiGLU block.
//
// gate, up: [m][stride] elements, often two halves of one matrix; out: [m][out_stride] elements. In f32.
// Bytes: 4 n read, 2 n written per row. Grid: (n / 2048, m), 256 threads of 8 values.
// Architectures: sm_90, sm_120. Elements: f16, bf16.
#include "../cuda/element.cuh"

constexpr int THREADS = 256, VECTOR = 8;  // values of a thread

struct SiluMulParams {
    const elem* gate;
    const elem* up;
    elem* out;
    int32_t n, stride, out_stride, m;
};

DEVICE uint32_t silu_mul_pair(uint32_t gate, uint32_t up) {
    const float2 g = elem2_to_float2(bits_elem2(gate)), u = elem2_to_float2(bits_elem2(up));
    return elem2_bits(floats_to_elem2(silu(g.x) * u.x, silu(g.y) * u.y));
}

extern "C" __global__ void __launch_bounds__(THREADS) silu_mul(const __grid_constant__ SiluMulParams p) {
    launch_dependents();
    wait_for_previous();
    const int column = (blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (column >= p.n) return;
    for (int64_t row = blockIdx.y; row < p.m; row += gridDim.y) {
        const uint4 g = *reinterpret_cast<const uint4*>(p.gate + row * p.stride + column);
        const uint4 u = *reinterpret_cast<const uint4*>(p.up + row * p.stride + column);
        *reinterpret_cast<uint4*>(p.out + row * p.out_stride + column) =
            make_uint4(silu_mul_pair(g.x, u.x), silu_mul_pair(g.y, u.y), silu_mul_pair(g.z, u.z), silu_mul_pair(g.w, u.w));
    }
}
