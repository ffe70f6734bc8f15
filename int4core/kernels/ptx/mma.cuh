// mma.sync m16n8k32: s32 accumulators += 8-bit A (row major) x s8 B (column major), a warp at a time.
//
// Lane 4 * group + quad holds, of A, rows `group` (a[0], a[2]) and group + 8 (a[1], a[3]), places 4 * quad ... + 3 of K
// (a[0], a[1]) and the same 16 further (a[2], a[3]); of B, column `group`, the same places; of D, the same rows
// (d[0], d[1]; d[2], d[3]), columns 2 * quad and 2 * quad + 1.
//
// It is one instruction from sm_80 on, and four of m8n8k16 before.
#pragma once
#include "ptx/mma_s8_sm75.cuh"

__device__ __forceinline__ void mma_u8s8(int* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  mma_m8n8k16_u8s8(d, a[0], b0);
  mma_m8n8k16_u8s8(d + 2, a[1], b0);
  mma_m8n8k16_u8s8(d, a[2], b1);
  mma_m8n8k16_u8s8(d + 2, a[3], b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ __forceinline__ void mma_s8s8(int* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  mma_m8n8k16_s8s8(d, a[0], b0);
  mma_m8n8k16_s8s8(d + 2, a[1], b0);
  mma_m8n8k16_s8s8(d, a[2], b1);
  mma_m8n8k16_s8s8(d + 2, a[3], b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
