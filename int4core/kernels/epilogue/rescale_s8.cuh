// A residual convolution's accumulator through both of its requantisations on sm_90: in four instructions, or six for
// factors that have no saturating line.
#pragma once

// `S8ResidualPair` comes from epilogue.py: ELEMENTS.

// The result is an integer that is not negative, for `start` holds the offset of the last requantisation (narrow.cuh).
//
// SATURATED: the first requantisation is a multiply-add that saturates to 0 ... 1 and another one, to integers of 0 ...
// 255 in units of 2^-149: plan/saturate.py proves that it is the same for all sums. If not, it is that of narrow.cuh, a
// float whose bits are the bits of 1.5 * 2^23 plus the rounded sum; those bits less the constant are clamped as an
// integer.
//
// Both give n + 128 + BASE, which is n + 2^(7 + shift) for the shift of the second requantisation. That is a product
// with U / 2^shift + 2^-(8 + shift), where U is its factor: the power is then 128 * U + 1/2, so rounding down rounds
// n's part to the nearest, and n * 2^-(8 + shift) moves a half away from zero, on either side, and nothing else across
// a half, since |n| <= 128.
template <int BASE, bool SATURATED>
__device__ __forceinline__ int rescale_residual(int x, const S8ResidualPair& pair, int odd) {
  float narrow;
  if constexpr (SATURATED) {
    const float share = __saturatef(__fmaf_rn(__int2float_rn(x), pair.down[odd], pair.begin[odd]));
    narrow = __fmaf_rd(share, __int_as_float(255), __int_as_float(BASE));
  } else {
    constexpr float MAGIC = 12582912.0f;
    constexpr int MAGIC_BITS = 0x4B400000;
    const float sum = __int_as_float(x + __float_as_int(pair.begin[odd])) - MAGIC;
    const int rounded = __float_as_int(__fmaf_rn(sum, pair.down[odd], MAGIC));
    narrow = __int_as_float(__viaddmin_s32_relu(rounded, 128 - MAGIC_BITS, 255) + BASE);
  }
  return __float_as_int(__fmaf_rd(narrow, pair.up[odd], pair.start[odd]));
}

// A thread's sums of SUBS times two rows, where they lie; `pairs` are those of its tile's channels.
template <int BASE, bool SATURATED, int SUBS, int SUMS>
__device__ __forceinline__ void rescale_sums(int (&sums)[SUBS][SUMS], const S8ResidualPair* pairs, int quad) {
#pragma unroll
  for (int j = 0; j < SUMS / 4; ++j) {
    // Otherwise ptxas converts most sums before any constants are there, and runs out of registers with three teams.
    if (SUBS == 1 && j % 8 == 0) __syncwarp();
    const S8ResidualPair pair = pairs[j * 4 + quad];
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[sub][j * 4 + i] = rescale_residual<BASE, SATURATED>(sums[sub][j * 4 + i], pair, i % 2);
  }
}
