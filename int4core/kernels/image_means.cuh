// The mean over every image of a convolution's u7 outputs, in place of the outputs, on sm_90a.
//
// A tile's rows are pixels one after the other, of several images. The threads that have computed a tile leave it in
// shared memory; a warp that does nothing else adds it up, on the tensor cores, by a matrix of zeros and ones that says
// which row is of which image:
//
//   sums (channels x images) = outputs (channels x rows) * chosen (rows x images)
//
// K being in any order, four places of it are the four rows that a thread holds: it writes words of one channel each,
// and nothing moves between threads before.
//
// An image that is not in a tile as a whole is completed in device memory: `partial` has a word for four channels of an
// image, their sums and above these the number of rows that are in, and one atomic addition counts and adds. Whoever is
// the last, as the number says, then has all of the sums in a register: it writes the mean, and zero to the word, for
// the next run. So there is no second kernel, nothing to clear before a run, and no fence: all that one thread needs of
// another is in the word itself. The sums are integers, the same in any order.
#pragma once
#include "epilogue/narrow.cuh"
#include "ptx/byte_signs.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma.cuh"
#include "stages.cuh"

// The outputs that a thread makes sixteen at a time, u7: four words of what it holds of 4 / (2 * SUBS) channels, two
// rows of each in every 64. Of SUBS = 2 a word has one channel; of SUBS = 1 it has two channels, which are two apart.
template <int Residual, int SUBS, int SUMS, int KEPT>
__device__ __forceinline__ void requantize_rows(const int (&sums)[SUBS][SUMS], const ChannelPair* pairs, int quad,
                                                int sixteen, const unsigned (&kept)[SUBS][2][KEPT],
                                                unsigned (&words)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int values[2][4];  // of two words
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int sub = SUBS == 2 ? half : 0, index = SUBS == 2 ? sixteen * 2 + i : sixteen * 4 + 2 * i + half;
      const ChannelPair pair = pairs[index * 4 + quad];
#pragma unroll
      for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd)
          values[odd][2 * half + row] =
              requantize<Residual>(sums[sub][index * 4 + row * 2 + odd], pair, odd, kept[sub][row], index * 2 + odd);
    }
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const auto& four = values[odd];
      const unsigned packed = pack_s8(four[1], four[0], pack_s8(four[3], four[2], 0));
      words[2 * i + odd] = packed & ~byte_signs(packed);  // ReLU
    }
  }
}

// IMAGE: pixels of an image; 0 where there are no means, and nothing but BYTES is used.
template <int TILE_N, int SUBTILES, int WARPGROUPS, int IMAGE>
struct ImageMeans {
  static constexpr int WARPS = 4 * WARPGROUPS;  // that share a tile
  static constexpr int TILE_M = WARPGROUPS * SUBTILES * 64;
  static constexpr int GROUP_BYTES = 2 * SUBTILES * TILE_N, BYTES = IMAGE ? WARPS * 8 * GROUP_BYTES : 0;
  static constexpr int PARTS = 4, PART_BYTES = GROUP_BYTES / PARTS;  // the channels of a quad
  static constexpr int PIECES = 2 / SUBTILES;                        // words of `partial` in 16 bytes
  static constexpr int IMAGES = 2 * SUBTILES;                        // at a time
  static constexpr int SUM_BITS = 14, ROWS_AT = 4 * SUM_BITS;        // in a word of `partial`
  using Word = unsigned long long;

  static_assert(!IMAGE || (SUBTILES <= 2 && PART_BYTES == 128), "a part is all banks");
  static_assert(IMAGE * 127 < 1 << SUM_BITS && IMAGE < 1 << (64 - ROWS_AT));

  unsigned first_piece;  // that the lane reads
  int group, quad;
  unsigned words, first_word;  // of all channels of an image, and the lane's first one
  unsigned* output;
  Word* partial;

  // Pieces of 16 bytes are at other places of a part in each group of rows and in each part, so that
  // eight threads in a row meet all banks where they write and where they read.
  static __device__ __forceinline__ unsigned swizzle(int group_of_rows) { return (group_of_rows & 3) * 32; }
  static __device__ __forceinline__ unsigned swizzle_part(int part) { return ((part & 1) | (part & 2) * 2) * 16; }

  // Where a thread of a team writes: its piece i is at place ^ (16 * i).
  static __device__ __forceinline__ unsigned place(unsigned base, int warp, int group, int quad) {
    return base + (warp % WARPS * 8 + group) * GROUP_BYTES + quad * PART_BYTES + (swizzle(group) ^ swizzle_part(quad));
  }

  __device__ __forceinline__ ImageMeans(unsigned base, int lane, unsigned channels, int tile_n, unsigned char* means,
                                        Word* partial_sums) {
    group = lane / 4;
    quad = lane % 4;
    words = channels / 4;
    first_word = tile_n * (TILE_N / 4) + group * PIECES + (SUBTILES == 2 ? 0 : quad / 2);
    first_piece = base + quad * GROUP_BYTES + ((group * 16) ^ swizzle(quad));
    output = reinterpret_cast<unsigned*>(means);
    partial = partial_sums;
  }

  // Of the 64 rows from `row` of a tile on, those of the image that begins at row `first`: a bit each.
  static __device__ __forceinline__ Word rows_of(int first, int row) {
    auto below = [](int i) { return i <= 0 ? Word(0) : i >= 64 ? ~Word(0) : (Word(1) << i) - 1; };
    return below(first + IMAGE - row) & ~below(first - row);
  }

  // The tile whose first pixel is `pixel`, of `pixels`, once the barrier `full` says that it is there; `read` is the
  // barrier that takes its place as empty.
  __device__ __forceinline__ void add_up(int pixel, int pixels, unsigned full, unsigned parity, unsigned read) const {
    const int end = min(pixel + TILE_M, pixels);
    mbarrier_wait(full, parity);
#pragma unroll 1
    for (int image = pixel / IMAGE; image * IMAGE < end; image += IMAGES) {
      int sums[PARTS][4] = {};
      multiply(sums, image * IMAGE - pixel);
      if ((image + IMAGES) * IMAGE >= end) {
        __syncwarp();
        mbarrier_arrive(read);
      }
      finish(sums, image, pixel, end);
    }
  }

  // The sums of IMAGES images, the first of which begins at row `row` of the tile.
  //
  // A piece is an operand as it lies: its first two words have the first half of K, the others the second, and columns
  // 0 to 3 are zero for the second half, columns 4 to 7 for the first. Of four columns each is another image, or, where
  // a word has two channels, of two images two columns each.
  __device__ __forceinline__ void multiply(int (&sums)[PARTS][4], int row) const {
    const int begin = row + group % IMAGES * IMAGE;
    const unsigned places = SUBTILES == 2 ? 0x01010101u : group & 2 ? 0x01010000u : 0x00000101u;
    unsigned chosen[WARPS][2][2];
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
      const int first = warp / 4 * (SUBTILES * 64), shift = warp % 4 / 2 * 32;
      const unsigned upper = static_cast<unsigned>(rows_of(begin, first) >> shift);
      const unsigned lower = SUBTILES == 2 ? static_cast<unsigned>(rows_of(begin, first + 64) >> shift) : upper;
      const unsigned rows = __byte_perm(upper, lower, warp % 2 ? 0x7632 : 0x5410);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const unsigned word = rows >> (quad + 4 * step) & places;
        chosen[warp][step][0] = group < 4 ? word : 0;
        chosen[warp][step][1] = group < 4 ? 0 : word;
      }
    }
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp)
#pragma unroll
      for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          unsigned a[4];
          load_words(a, (first_piece ^ swizzle_part(part)) + (warp * 8 + step * 4) * GROUP_BYTES + part * PART_BYTES);
          mma_u8s8(sums[part], a, chosen[warp][step][0], chosen[warp][step][1]);
        }
  }

  // Lanes exchange what they have of two channels and two images for four channels of an image, and complete it or add
  // to it; the tile ends before pixel `end`.
  __device__ __forceinline__ void finish(const int (&sums)[PARTS][4], int first_image, int pixel, int end) const {
    const bool upper = SUBTILES == 2 ? quad / 2 : quad % 2;
    const int image = first_image + (SUBTILES == 2 ? quad % 2 * 2 : 0) + upper, first_pixel = image * IMAGE;
    const int rows = max(min(first_pixel + IMAGE, end) - max(first_pixel, pixel), 0);  // that the tile has of it
    const size_t first = static_cast<size_t>(image) * words + first_word;
    Word own[PARTS], before[PARTS] = {};
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      const unsigned even = sums[part][0] + (sums[part][2] << SUM_BITS);
      const unsigned odd = sums[part][1] + (sums[part][3] << SUM_BITS);
      const unsigned kept = upper ? odd : even;
      const unsigned got = __shfl_xor_sync(0xFFFFFFFFu, upper ? even : odd, SUBTILES == 2 ? 2 : 1);
      own[part] = (upper ? got : kept) + (static_cast<Word>(upper ? kept : got) << (2 * SUM_BITS)) +
                  (static_cast<Word>(rows) << ROWS_AT);
    }
    // What others have added so far, of an image that is not here as a whole.
    if (rows > 0 && rows < IMAGE) {
#pragma unroll
      for (int part = 0; part < PARTS; ++part)
        before[part] = atomicAdd(partial + first + part * (TILE_N / 16), own[part]);
    }
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      const Word total = own[part] + before[part];
      if (total >> ROWS_AT != IMAGE) continue;
      output[first + part * (TILE_N / 16)] = mean(total);
      if (rows < IMAGE) partial[first + part * (TILE_N / 16)] = 0;
    }
  }

  // Of four channels' sums, rounded half up as in mean.cu.
  static __device__ __forceinline__ unsigned mean(Word total) {
    unsigned packed = 0;
#pragma unroll
    for (int channel = 0; channel < 4; ++channel) {
      const unsigned sum = static_cast<unsigned>(total >> (channel * SUM_BITS)) & ((1u << SUM_BITS) - 1);
      packed |= (2 * sum + IMAGE) / (2 * IMAGE) << (8 * channel);
    }
    return packed;
  }
};
