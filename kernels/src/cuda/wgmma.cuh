// Warpgroup matrix instructions of sm_90a: d[64 x N] += a[64 x 16] b[16 x N] for the four warps of
// a warpgroup. a is in registers as for mma_16816 (warp w has rows 16 w ..), b in shared memory.
#pragma once
#include "element.cuh"

// The descriptor of b: N rows of 64 k, 128 bytes per row, the index of a 16-byte piece xor-ed with the row mod
// 8 (128-byte swizzle), aligned to 1024 bytes. Add 2 for each further 16 k.
DEVICE uint64_t wgmma_operand(uint32_t address) {
    constexpr uint64_t EIGHT_ROWS = 1024 >> 4, SWIZZLE_128B = 1;
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{1} << 16 | EIGHT_ROWS << 32 | SWIZZLE_128B << 62;
}
// Before the first product, and after every write to registers that products read.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `PENDING` committed groups still run.
template <int PENDING>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Move registers between the warpgroups of a block; N is a multiple of 8. By all four warps.
template <int N>
DEVICE void release_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
DEVICE void claim_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// The sums as operands of an instruction: of 8 columns, 32 and 128, and their names.
#define SUMS_8(r) "+f"(d[r][0]), "+f"(d[r][1]), "+f"(d[r][2]), "+f"(d[r][3])
#define SUMS_32(r) SUMS_8(r), SUMS_8(r + 1), SUMS_8(r + 2), SUMS_8(r + 3)
#define SUMS_128 SUMS_32(0), SUMS_32(4), SUMS_32(8), SUMS_32(12)
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
    " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
    NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
    " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d[r][i]: column 8 r + 2 (lane % 4) + i % 2, row of the warp lane / 4 + 8 (i / 2).
DEVICE void wgmma(float (&d)[3][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{ .reg .pred accumulate; setp.eq.u32 accumulate, 0, 0; wgmma.mma_async.sync.aligned.m64n24k16.f32." ELEMENT_PTX "." ELEMENT_PTX " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
        "}, {%12, %13, %14, %15}, %16, accumulate, 1, 1, 0; }"
        : SUMS_8(0), SUMS_8(1), SUMS_8(2)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
DEVICE void wgmma(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{ .reg .pred accumulate; setp.eq.u32 accumulate, 0, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32." ELEMENT_PTX "." ELEMENT_PTX " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, accumulate, 1, 1, 0; }"
        : SUMS_32(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
DEVICE void wgmma(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{ .reg .pred accumulate; setp.eq.u32 accumulate, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." ELEMENT_PTX "." ELEMENT_PTX " {"
        NAMES_32
        "}, {%32, %33, %34, %35}, %36, accumulate, 1, 1, 0; }"
        : SUMS_32(0), SUMS_32(4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
DEVICE void wgmma(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{ .reg .pred accumulate; setp.eq.u32 accumulate, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." ELEMENT_PTX "." ELEMENT_PTX " {"
        NAMES_64
        "}, {%64, %65, %66, %67}, %68, accumulate, 1, 1, 0; }"
        : SUMS_128
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// The same with a in shared memory, 64 rows laid out as b. Otherwise than by `accumulates`, d is overwritten.
DEVICE void wgmma(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulates) {
    asm volatile(
        "{ .reg .pred accumulate; setp.ne.u32 accumulate, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." ELEMENT_PTX "." ELEMENT_PTX " {"
        NAMES_64
        "}, %64, %65, accumulate, 1, 1, 0, 0; }"
        : SUMS_128
        : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulates)));
}
