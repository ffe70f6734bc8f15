// The 8-bit mma of Turing: s32 accumulators += 8-bit A (row major) x s8 B (column major), 8 x 8 x 16, a warp at a time
// (sm_75 and later).
//
// Lane 4 * group + quad holds, of A, row `group`, of B, column `group`, of both places 4 * quad ... + 3 of K; of D, row
// `group`, columns 2 * quad and 2 * quad + 1. So the operands of m16n8k32 (mma.cuh) are those of four of these.
#pragma once

__device__ __forceinline__ void mma_m8n8k16_u8s8(int* d, unsigned a, unsigned b) {
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a), "r"(b));
}

__device__ __forceinline__ void mma_m8n8k16_s8s8(int* d, unsigned a, unsigned b) {
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a), "r"(b));
}
