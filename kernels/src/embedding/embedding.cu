// h[r][:] = table[ids[r]][:]   table: [vocab][n] elements, h: [m][n] f32, the start of the residual stream.
// The first kernel of a step, and its gate: later kernels may start only after this one has waited for the
// previous step, so they may read what that step wrote (lengths, page tables, older pages) at once.
// Bytes: 2 n read, 4 n written per row. Grid: m blocks of 256 threads. Architectures: sm_90, sm_120.
// Elements: f16, bf16.
#include "../cuda/element.cuh"

constexpr int THREADS = 256;

struct EmbeddingParams {
    const int32_t* ids;
    const elem* table;
    float* h;
    int32_t n, vocab;  // an id outside the vocabulary gives row 0
};

extern "C" __global__ void __launch_bounds__(THREADS) embedding(const __grid_constant__ EmbeddingParams p) {
    wait_for_previous();
    launch_dependents();
    const uint32_t asked = p.ids[blockIdx.x], id = asked < static_cast<uint32_t>(p.vocab) ? asked : 0;
    const uint4* from = reinterpret_cast<const uint4*>(p.table + static_cast<int64_t>(id) * p.n);
    float4* to = reinterpret_cast<float4*>(p.h + static_cast<int64_t>(blockIdx.x) * p.n);
    for (int v = threadIdx.x; v < p.n / 8; v += THREADS) {
        const uint4 e = from[v];
        const float2 a = elem2_to_float2(bits_elem2(e.x)), b = elem2_to_float2(bits_elem2(e.y));
        const float2 c = elem2_to_float2(bits_elem2(e.z)), d = elem2_to_float2(bits_elem2(e.w));
        to[2 * v] = make_float4(a.x, a.y, b.x, b.y);
        to[2 * v + 1] = make_float4(c.x, c.y, d.x, d.y);
    }
}
