// libjpeg's accurate integer IDCT ("islow"): 13 bits of constants, 2 bits kept between the passes.
//
// libjpeg-turbo's vector code holds 16 bits between its steps, wraps sums of two and saturates between the passes. With
// inputs of each pass within +-LIMIT neither happens, and all of them give what this gives.
#pragma once
#include "image.cuh"

constexpr int LIMIT = 16383;
constexpr int SAFE_SUM = 2900;  // of a block's absolute values: the first pass multiplies by less than 5.6

// One row or column, DESCALE bits taken away at the end.
template <int DESCALE>
__device__ __forceinline__ void idct_line(const int (&in)[8], int (&out)[8]) {
  // Even part.
  const int common = (in[2] + in[6]) * 4433;
  const int even2 = common - in[6] * 15137, even3 = common + in[2] * 6270;
  const int sum = (in[0] + in[4]) * 8192, difference = (in[0] - in[4]) * 8192;
  const int even[4] = {sum + even3, difference + even2, difference - even2, sum - even3};
  // Odd part.
  const int z3 = in[7] + in[3], z4 = in[5] + in[1], z5 = (z3 + z4) * 9633;
  const int a = (in[7] + in[1]) * -7373, b = (in[5] + in[3]) * -20995;
  const int c = z3 * -16069 + z5, d = z4 * -3196 + z5;
  const int odd[4] = {in[1] * 12299 + a + d, in[3] * 25172 + b + c, in[5] * 16819 + b + d, in[7] * 2446 + a + c};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = (even[i] + odd[i] + (1 << (DESCALE - 1))) >> DESCALE;
    out[7 - i] = (even[i] - odd[i] + (1 << (DESCALE - 1))) >> DESCALE;
  }
}

// `block`: 64 values, in natural order, `STRIDE` apart; used up. Rows of 8 bytes to `out`. Returns whether a value left
// the limit between the passes, looked for only where `check` is set.
template <int STRIDE>
__device__ __forceinline__ bool idct_block(short* block, bool check, u8* out, int pitch) {
  bool beyond = false;
#pragma unroll 1
  for (int column = 0; column < 8; ++column) {
    int in[8], middle[8];
#pragma unroll
    for (int row = 0; row < 8; ++row) in[row] = block[(row * 8 + column) * STRIDE];
    idct_line<11>(in, middle);
    if (check) {
#pragma unroll
      for (int row = 0; row < 8; ++row) beyond |= middle[row] > LIMIT || middle[row] < -LIMIT;
    }
#pragma unroll
    for (int row = 0; row < 8; ++row) block[(row * 8 + column) * STRIDE] = static_cast<short>(middle[row]);
  }
#pragma unroll 1
  for (int row = 0; row < 8; ++row) {
    int in[8], pixels[8];
#pragma unroll
    for (int column = 0; column < 8; ++column) in[column] = block[(row * 8 + column) * STRIDE];
    idct_line<18>(in, pixels);
#pragma unroll
    for (int column = 0; column < 8; ++column) pixels[column] += 128;
    const u32 low = pack_bytes(pixels[1], pixels[0], pack_bytes(pixels[3], pixels[2], 0));
    const u32 high = pack_bytes(pixels[5], pixels[4], pack_bytes(pixels[7], pixels[6], 0));
    *reinterpret_cast<uint2*>(out + static_cast<size_t>(row) * pitch) = make_uint2(low, high);
  }
  return beyond;
}
