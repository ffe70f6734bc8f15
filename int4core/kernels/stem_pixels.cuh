// Images for the stem kernels: lines of a planar int8 image in shared memory, a 32-bit word a pixel: red, green, blue,
// and any byte. WIDTH is the image's.
#pragma once

// Bytes x ... x + 3 of a line; zeros beyond WIDTH.
template <int WIDTH>
__device__ __forceinline__ unsigned four_pixels(const signed char* line, int x) {
  if constexpr (WIDTH % 4 == 0) return *reinterpret_cast<const unsigned*>(line + x);
  unsigned word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (x + i < WIDTH) word |= static_cast<unsigned>(static_cast<unsigned char>(line[x + i])) << (8 * i);
  return word;
}

// Pixel i of three planes' words becomes word i: red, green, blue, and any byte.
__device__ __forceinline__ uint4 interleave(unsigned red, unsigned green, unsigned blue) {
  const unsigned low = __byte_perm(red, green, 0x5140), high = __byte_perm(red, green, 0x7362);
  return make_uint4(__byte_perm(low, blue, 0x4410), __byte_perm(low, blue, 0x5532), __byte_perm(high, blue, 0x6610),
                    __byte_perm(high, blue, 0x7732));
}

// A thread's two words of a k-step: neighbouring pixels.
template <int STRIDE_W>
__device__ __forceinline__ uint2 two_words(const unsigned* words) {
  if constexpr (STRIDE_W % 2 == 0) return *reinterpret_cast<const uint2*>(words);
  return make_uint2(words[0], words[1]);
}

// LINES lines from `first_line` on, WORDS words each from column `first_x` on (a multiple of four); zeros outside
// the image.
template <int WIDTH, int LINES, int WORDS, int THREADS>
__device__ __forceinline__ void lay_pixels(unsigned* pixels, const signed char* image, int height, int first_line,
                                           int first_x) {
  constexpr int QUADS = WORDS / 4;
  const int plane = height * WIDTH;
#pragma unroll 4
  for (int i = threadIdx.x; i < LINES * QUADS; i += THREADS) {
    const int line = i / QUADS, x = (i - line * QUADS) * 4 + first_x, y = first_line + line;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (static_cast<unsigned>(y) < static_cast<unsigned>(height) && static_cast<unsigned>(x) < WIDTH) {
      const signed char* const red = image + y * WIDTH;
      words = interleave(four_pixels<WIDTH>(red, x), four_pixels<WIDTH>(red + plane, x),
                         four_pixels<WIDTH>(red + 2 * plane, x));
    }
    reinterpret_cast<uint4*>(pixels)[i] = words;
  }
}
