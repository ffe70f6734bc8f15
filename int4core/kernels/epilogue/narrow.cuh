// Requantisation of wgmma accumulators in one rounded multiply-add an output.
//
// A float whose bits are an integer i in [0, 2^24) has the value i * 2^-149 exactly: below 2^24, bits and value of a
// float are proportional. So an accumulator becomes a float by an integer addition alone: x + bias + offset, with
// `offset` large enough that the sum is never negative. One fused multiply-add then gives an integer again:
//
//   fma_down(sum * 2^-149, factor / 2^shift, -floor(offset * factor / 2^shift) * 2^-149)
//     = floor(x * factor / 2^shift + 1/2) * 2^-149
//
// because the host chooses, for each channel, an offset with offset * factor / 2^shift = integer + 1/2, and rounding
// down happens in units of 2^-149. The bits of the result, as a signed integer, are the rounded value, or negative for
// a negative one, so the saturating pack does ReLU and clamp. Both instructions handle denormals at full rate.
#pragma once

// `ChannelPair` and `ResidualPair` come from epilogue.py: ELEMENTS.

// Two s32 saturated to u4, `high` in bits 4..7, above them `rest` << 8.
__device__ __forceinline__ unsigned pack_u4(int high, int low, unsigned rest) {
  unsigned packed;
  asm("cvt.pack.sat.u4.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(high), "r"(low), "r"(rest));
  return packed;
}

// Two s32 saturated to s8, `high` in bits 8..15, above them `rest` << 16.
__device__ __forceinline__ unsigned pack_s8(int high, int low, unsigned rest) {
  unsigned packed;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(high), "r"(low), "r"(rest));
  return packed;
}

// An accumulator through both requantisations of a residual convolution, halves rounded away from zero, as an integer
// plus the bits of 1.5 * 2^23. Adding 1.5 * 2^23 rounds to the nearest integer, halves to even; a factor one float too
// large moves halves away from zero first, and moves nothing else across a half: results below 2^7 of multiples of
// 2^-16 (then below 2^7 * 2^16 of multiples of 2^-shift) change by less than that multiple.
__device__ __forceinline__ int rescale_residual(int x, const ResidualPair& pair, int odd) {
  constexpr float MAGIC = 12582912.0f;
  const float sum = __int_as_float(x + pair.offset[odd]) - MAGIC;
  const float narrow = fminf(fmaxf(__fmaf_rn(sum, pair.down[odd], MAGIC), MAGIC - 128.0f), MAGIC + 127.0f) - MAGIC;
  return __float_as_int(__fmaf_rn(narrow, pair.up[odd], MAGIC));
}

// The sum (a float in units of 2^-149) plus the rescaled residual of channel `index` of the words a thread keeps.
template <int COUNT>
__device__ __forceinline__ float add_residual(float sum, float factor, const unsigned (&words)[COUNT], int index) {
  // The masked nibble is v * 16^position * 2^-149. The sum rounds to the nearest integer; the host gives the float
  // above the factor, so that halves go up, and 15 times that difference moves nothing else across a half.
  const int position = index % 8;
  const unsigned word = words[index / 8];
  const unsigned nibble =
      position < 6 ? word & (0xFu << (4 * position)) : (word >> 24) & (0xFu << (4 * (position - 6)));
  return __fmaf_rn(__uint_as_float(nibble), factor, sum);
}

// What a thread's sums of SUBS times two rows begin with where the residual is a tensor: the rescaled residual, the
// bias and the offset. `kept` are its words of the residual, `pairs` those of its tile's channels.
template <int SUBS, int SUMS, int KEPT>
__device__ __forceinline__ void begin_with_residual(int (&sums)[SUBS][SUMS], const ChannelPair* pairs, int quad,
                                                    const unsigned (&kept)[SUBS][2][KEPT]) {
#pragma unroll
  for (int j = 0; j < SUMS / 4; ++j) {
    const ChannelPair pair = pairs[j * 4 + quad];
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[sub][j * 4 + i] = __float_as_int(add_residual(
            __int_as_float(pair.offset[i % 2]), pair.residual_factor[i % 2], kept[sub][i / 2], j * 2 + i % 2));
  }
}

// Residual 3: x has the bias and the offset already, as rescale_s8.cuh or `begin_with_residual` leave them.
template <int Residual, int COUNT>
__device__ __forceinline__ int requantize(int x, const ChannelPair& pair, int odd, const unsigned (&kept)[COUNT],
                                          int index) {
  float sum = __int_as_float(Residual == 3 ? x : x + pair.offset[odd]);
  if constexpr (Residual == 1) sum = add_residual(sum, pair.residual_factor[odd], kept, index);
  return __float_as_int(__fmaf_rd(sum, pair.factor[odd], pair.correction[odd]));
}

// Two results of neighbouring channels, saturated, below what `rest` holds of the channels above them.
template <int Output>
__device__ __forceinline__ unsigned pack(int high, int low, unsigned rest) {
  if constexpr (Output == 0) {
    return pack_u4(high, low, rest);
  } else {
    return pack_s8(max(high, 0), max(low, 0), rest);
  }
}

// Word `word` of every row a thread holds: SUBS x 2 rows, 8 u4 or 4 u7 channels a word; it goes to place
// word % WORDS_OUT. `kept` holds the words of the residual tensor (Residual 1) and is not read otherwise.
template <int Output, int Residual, int SUBS, int SUMS, int KEPT, int WORDS_OUT>
__device__ __forceinline__ void requantize_words(const int (&sums)[SUBS][SUMS], const ChannelPair* pairs, int quad,
                                                 int word, const unsigned (&kept)[SUBS][2][KEPT],
                                                 unsigned (&packed)[SUBS][2][WORDS_OUT]) {
  constexpr int PAIRS = Output ? 2 : 4;
#pragma unroll
  for (int j = PAIRS - 1; j >= 0; --j) {
    const ChannelPair pair = pairs[(word * PAIRS + j) * 4 + quad];
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int first = (word * PAIRS + j) * 4 + half * 2, channel = (word * PAIRS + j) * 2;
        const int low = requantize<Residual>(sums[sub][first], pair, 0, kept[sub][half], channel);
        const int high = requantize<Residual>(sums[sub][first + 1], pair, 1, kept[sub][half], channel + 1);
        unsigned& target = packed[sub][half][word % WORDS_OUT];
        target = pack<Output>(high, low, j == PAIRS - 1 ? 0 : target);
      }
  }
}
