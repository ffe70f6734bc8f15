// mma.sync on 4-bit values: s32 accumulators += u4 A (row major) x s4 B (column major), a warp at a time. Eight values
// lie in a 32-bit word, the first in the lowest bits.
//
// Lane 4 * group + quad holds, of a step of 64 (WORDS 2) or 32 (WORDS 1) places of K: of A, rows `group` (a[0], a[2])
// and group + 8 (a[1], a[3]), places 8 * quad ... + 7 (a[0], a[1]) and the same 32 further (a[2], a[3]); of B, column
// `group`, the same places (b[0]; b[1]); of D, the same rows (d[0], d[1]; d[2], d[3]), columns 2 * quad and 2 * quad
// + 1. This is how m16n8k64 (sm_80 and later) wants them, and each word by itself is an operand of m8n8k32 (sm_75 and
// later).
//
// ROWS chooses the instruction: 16 or 8.
#pragma once

__device__ __forceinline__ void mma_m8n8k32(int* d, unsigned a, unsigned b) {
  asm("mma.sync.aligned.m8n8k32.row.col.s32.u4.s4.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(a), "r"(b));
}

__device__ __forceinline__ void mma_m16n8k32(int* d, const unsigned (&a)[2], unsigned b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u4.s4.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ __forceinline__ void mma_m16n8k64(int* d, const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A step for TILES_M x TILES_N tiles of 16 x 8: `d[sub][4 * j ...]` += a[sub] * b[j]. Instructions that follow one
// another add to different accumulators.
template <int ROWS, int WORDS, int TILES_M, int TILES_N, int SUMS>
__device__ __forceinline__ void mma_u4s4(int (&d)[TILES_M][SUMS], const unsigned (&a)[TILES_M][2 * WORDS],
                                         const unsigned (&b)[TILES_N][WORDS]) {
  if constexpr (ROWS == 8) {
#pragma unroll
    for (int word = 0; word < WORDS; ++word)
#pragma unroll
      for (int sub = 0; sub < TILES_M; ++sub)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int j = 0; j < TILES_N; ++j) mma_m8n8k32(&d[sub][4 * j + 2 * half], a[sub][2 * word + half], b[j][word]);
  } else {
#pragma unroll
    for (int sub = 0; sub < TILES_M; ++sub)
#pragma unroll
      for (int j = 0; j < TILES_N; ++j) {
        if constexpr (WORDS == 2) {
          mma_m16n8k64(&d[sub][4 * j], a[sub], b[j]);
        } else {
          mma_m16n8k32(&d[sub][4 * j], a[sub], b[j][0]);
        }
      }
  }
}
