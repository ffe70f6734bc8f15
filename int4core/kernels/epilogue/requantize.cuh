// Requantisation, two ways with one interface: `requantize_words` and `rescale_residual` on a pair of channels.
//
// - ChannelPair, ResidualPair (narrow.cuh): one rounded multiply-add an output, exact for the factors, shifts
//   and sums that `epilogue.channel_constants` and `check_sums` accept: those of any trained network.
// - WidePair, WideResidualPair (epilogue.py): the definition itself, sign(v) * ((|v| + half) >> shift) with v = x *
// factor in
//   64 bits, for everything else the format allows.
#pragma once
#include "epilogue/narrow.cuh"

// magnitude * factor / 2^shift, halves up; shift 0..47.
__device__ __forceinline__ unsigned long long rescale_magnitude(unsigned magnitude, unsigned factor, int shift) {
  const unsigned long long half = (1ull << shift) >> 1;
  return (static_cast<unsigned long long>(magnitude) * factor + half) >> shift;
}

// The residual convolution's accumulator, to s8 and back, without its own bias.
__device__ __forceinline__ int rescale_residual(int x, const WideResidualPair& pair, int odd) {
  const int sum = x + pair.bias[odd];
  const unsigned long long narrow = rescale_magnitude(sum < 0 ? -sum : sum, pair.down[odd], pair.down_shift);
  const unsigned limit = sum < 0 ? 128 : 127;
  const unsigned magnitude = narrow < limit ? static_cast<unsigned>(narrow) : limit;
  const int wide = static_cast<int>(rescale_magnitude(magnitude, pair.up[odd], pair.up_shift));
  return sum < 0 ? -wide : wide;
}

template <int Output, int Residual, int COUNT>
__device__ __forceinline__ int requantize_wide(int x, const WidePair& pair, int odd, const unsigned (&kept)[COUNT],
                                               int channel) {
  int sum = x + pair.bias[odd];
  if constexpr (Residual == 1) {
    const unsigned value = (kept[channel / 8] >> (4 * (channel % 8))) & 15u;
    sum += static_cast<int>(rescale_magnitude(value, pair.residual_factor[odd], pair.residual_shift));
  }
  const unsigned long long scaled = rescale_magnitude(sum < 0 ? 0 : sum, pair.factor[odd], pair.shift);
  return scaled < 128 ? static_cast<int>(scaled) : 127;  // the pack saturates further
}

// As the other `requantize_words`: word `word` of every row a thread holds.
template <int Output, int Residual, int SUBS, int SUMS, int KEPT, int WORDS_OUT>
__device__ __forceinline__ void requantize_words(const int (&sums)[SUBS][SUMS], const WidePair* pairs, int quad,
                                                 int word, const unsigned (&kept)[SUBS][2][KEPT],
                                                 unsigned (&packed)[SUBS][2][WORDS_OUT]) {
  constexpr int PAIRS = Output ? 2 : 4;
#pragma unroll
  for (int j = PAIRS - 1; j >= 0; --j) {
    const WidePair pair = pairs[(word * PAIRS + j) * 4 + quad];
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int first = (word * PAIRS + j) * 4 + half * 2, channel = (word * PAIRS + j) * 2;
        const int low = requantize_wide<Output, Residual>(sums[sub][first], pair, 0, kept[sub][half], channel);
        const int high = requantize_wide<Output, Residual>(sums[sub][first + 1], pair, 1, kept[sub][half], channel + 1);
        unsigned& target = packed[sub][half][word % WORDS_OUT];
        target = pack<Output>(high, low, j == PAIRS - 1 ? 0 : target);
      }
  }
}

// The pairs that a kernel takes: of 64 bits if `Wide`.
template <bool Wide>
struct Requantization {
  using Pair = ChannelPair;
  using Residual = ResidualPair;
};
template <>
struct Requantization<true> {
  using Pair = WidePair;
  using Residual = WideResidualPair;
};
