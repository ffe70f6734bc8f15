// Products of packed u4 rows with s8 operands on mma.sync: nibbles are unpacked in registers, the low ones of a word
// are one A register, the high ones another.
#pragma once
#include "ptx/mma.cuh"
#include "words.cuh"

// Adds a block of K: `packed` are this thread's words of two rows, eight apart, of every 16; `operands` its part of the
// block's weights, those of the k-steps K_STEP bytes apart. The host lays them out (`arrange_mma`): 16 bytes a pair of
// column tiles, 512 a warp.
template <int K_STEP, int SUBS, int SUMS, int WORDS>
__device__ __forceinline__ void multiply_packed(int (&sums)[SUBS][SUMS], const unsigned (&packed)[SUBS][2][WORDS],
                                                const unsigned char* operands) {
  constexpr int PAIRS = SUMS / 8;  // of column tiles
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
    unsigned b[PAIRS][4];
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) read_words(b[j], operands + i * K_STEP + j * 512);
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub) {
      const unsigned upper = packed[sub][0][i], lower = packed[sub][1][i];
      const unsigned a[4] = {upper & 0x0F0F0F0Fu, lower & 0x0F0F0F0Fu, (upper >> 4) & 0x0F0F0F0Fu,
                             (lower >> 4) & 0x0F0F0F0Fu};
#pragma unroll
      for (int j = 0; j < PAIRS; ++j) {
        mma_u8s8(&sums[sub][8 * j], a, b[j][0], b[j][1]);
        mma_u8s8(&sums[sub][8 * j + 4], a, b[j][2], b[j][3]);
      }
    }
  }
}
