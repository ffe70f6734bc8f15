// A residual convolution's accumulator through both of its requantisations, on chips that add and clamp in one
// instruction (sm_90): six instructions, where `rescale_residual` of narrow.cuh takes seven.
#pragma once

// `S8ResidualPair` comes from epilogue.py: ELEMENTS.

// The result is an integer; SHIFT is the second requantisation's, plus 8.
//
// The first requantisation is that of narrow.cuh: a float whose bits are the bits of 1.5 * 2^23 plus the rounded sum.
// Those bits less the constant are clamped as an integer: to 0 ... 255, 128 too high. The second is an integer product
// n * factor with a fraction of eight bits more, in which n itself is added: it moves a half away from zero, on either
// side, and nothing else across a half, since |n| <= 128 is less than the 2^8 that a unit of the product is.
//
// STARTED: the result is never negative, for `start` holds the offset of the last requantisation, too (narrow.cuh).
template <int SHIFT, bool STARTED>
__device__ __forceinline__ int rescale_residual(int x, const S8ResidualPair& pair, int odd) {
  constexpr float MAGIC = 12582912.0f;
  constexpr int MAGIC_BITS = 0x4B400000;
  const float sum = __int_as_float(x + pair.offset[odd]) - MAGIC;
  const int rounded = __float_as_int(__fmaf_rn(sum, pair.down[odd], MAGIC));
  const int narrow = __viaddmin_s32_relu(rounded, 128 - MAGIC_BITS, 255);
  const int product = narrow * pair.up[odd] + pair.start[odd];
  return STARTED ? static_cast<int>(static_cast<unsigned>(product) >> SHIFT) : product >> SHIFT;
}

// A thread's sums of SUBS times two rows, where they lie; `pairs` are those of its tile's channels.
template <int SHIFT, bool STARTED, int SUBS, int SUMS>
__device__ __forceinline__ void rescale_sums(int (&sums)[SUBS][SUMS], const S8ResidualPair* pairs, int quad) {
#pragma unroll
  for (int j = 0; j < SUMS / 4; ++j) {
    const S8ResidualPair pair = pairs[j * 4 + quad];
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[sub][j * 4 + i] = rescale_residual<SHIFT, STARTED>(sums[sub][j * 4 + i], pair, i % 2);
  }
}
