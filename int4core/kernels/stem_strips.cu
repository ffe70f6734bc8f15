// First convolution of the network, as stem_mma.cu computes it, for a maximum over 3x3 windows with stride 2: the sums
// stay in registers until they are maxima, a quarter as many values are requantised, and no output crosses shared
// memory.
//
// A block makes POOL_ROWS rows of one image's maxima. It lays the lines it needs into shared memory with four bytes a
// pixel (the fourth meets zero weights), so that eight words of a window's line are a k-step of mma.m16n8k32. A warp
// works down a strip of sixteen columns, WARP_N channels, whose weights stay in registers. The rows of its mma are
// columns of the image: row g and row g + 8 are the second and the third column of the maximum that group g makes. The
// first is the third one of group g - 1, so a strip yields seven maxima per row: group 0 is there for group 1's sake.
// Requantisation does not decrease where its input increases, so the maximum may come first.
//
// Compile-time constants: TAPS_H, TAPS_W, STRIDE_H, STRIDE_W, WIDTH of the image, LEFT: pixels of zeros before it,
// LEAD: those of a window's words before its first tap, PITCH: words of a line in shared memory, POOL_ROWS, WARP_N,
// WARPS, WIDE.
#include "epilogue/requantize.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mma.cuh"
#include "stem_pixels.cuh"
#include "words.cuh"

template <int TAPS_H, int TAPS_W, int STRIDE_H, int STRIDE_W, int WIDTH, int LEFT, int LEAD, int PITCH, int POOL_ROWS,
          int WARP_N, int WARPS, bool WIDE>
struct StemStrips {
  using EpiloguePair = typename Requantization<WIDE>::Pair;

  static constexpr int STEPS_W = (LEAD + TAPS_W + 7) / 8;  // k-steps of a line of the window
  static constexpr int STEPS = TAPS_H * STEPS_W;
  static constexpr int LINES = 2 * POOL_ROWS * STRIDE_H + TAPS_H;
  static constexpr int THREADS = 32 * WARPS;
  static constexpr int TILES = WARP_N / 8;         // mma tiles of columns a warp
  static constexpr int SUMS = TILES * 4;           // of a thread
  static constexpr int OUT_WORDS = WARP_N / 32;    // words a thread makes of a pixel
  static constexpr int STRIP = 7;                  // maxima per row of a strip
  static constexpr int NOTHING = -2147483647 - 1;  // less than every sum

  static_assert(POOL_ROWS % 2 == 0, "two rows of maxima are requantised together");
  static_assert(LEFT % 4 == 0 && PITCH % 4 == 0, "lines are written four pixels at a time");

  static __device__ __forceinline__ void run(const signed char* __restrict__ images, const uint4* __restrict__ weights,
                                             const EpiloguePair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const StripShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    EpiloguePair* const pairs = reinterpret_cast<EpiloguePair*>(memory);
    unsigned* const pixels = reinterpret_cast<unsigned*>(pairs + shape.out_channels / 2);
    const int n = blockIdx.y, first_pooled = blockIdx.x * POOL_ROWS;
    const int first_row = 2 * first_pooled - shape.pool_pad;  // of the convolution's outputs
    const int first_line = first_row * STRIDE_H - shape.pad_h;

    for (int i = threadIdx.x; i < shape.out_channels / 2; i += THREADS) pairs[i] = channels[i];
    let_next_start();
    wait_for_previous();
    const signed char* const image = images + static_cast<size_t>(n) * 3 * shape.height * WIDTH;
    lay_pixels<WIDTH, LINES, PITCH, THREADS>(pixels, image, shape.height, first_line, -LEFT);
    __syncthreads();

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const int units = shape.strips * (shape.out_channels / WARP_N);
    for (int unit = warp; unit < units; unit += WARPS) {
      const int part = unit / shape.strips, strip = unit - part * shape.strips;
      uint4 operands[STEPS][TILES / 2];
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
#pragma unroll
        for (int j = 0; j < TILES / 2; ++j)
          operands[step][j] = weights[((part * STEPS + step) * (TILES / 2) + j) * 32 + lane];

      const int pooled_column = strip * STRIP + group - 1, column = 2 * pooled_column + 1 - shape.pool_pad;
      const bool exists[2] = {static_cast<unsigned>(column) < static_cast<unsigned>(shape.q),
                              static_cast<unsigned>(column + 1) < static_cast<unsigned>(shape.q)};
      const bool whole = __all_sync(0xFFFFFFFFu, exists[0] && exists[1]);
      const unsigned* const windows[2] = {pixels + max(column, 0) * STRIDE_W + 2 * quad,
                                          pixels + max(column + 1, 0) * STRIDE_W + 2 * quad};

      // The sums of one row of the convolution's outputs, counted from `first_row`.
      auto convolve = [&](int row, int (&sums)[SUMS]) {
        const bool inside = static_cast<unsigned>(first_row + row) < static_cast<unsigned>(shape.p);
#pragma unroll
        for (int i = 0; i < SUMS; ++i) sums[i] = inside ? 0 : NOTHING;
        if (!inside) return;
        const int place = row * STRIDE_H * PITCH;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
          const int offset = step / STEPS_W * PITCH + step % STEPS_W * 8;
          const uint2 second = two_words<STRIDE_W>(windows[0] + place + offset),
                      third = two_words<STRIDE_W>(windows[1] + place + offset);
          const unsigned a[4] = {second.x, third.x, second.y, third.y};
#pragma unroll
          for (int j = 0; j < TILES / 2; ++j) {
            mma_s8s8(&sums[8 * j], a, operands[step][j].x, operands[step][j].y);
            mma_s8s8(&sums[8 * j + 4], a, operands[step][j].z, operands[step][j].w);
          }
        }
      };

      int carried[SUMS];  // the third row of the maxima before, the first of the next
      convolve(0, carried);
      for (int row = 0; row < POOL_ROWS && first_pooled + row < shape.pooled_h; row += 2) {
        int maxima[1][SUMS];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int best[SUMS];
          convolve(2 * (row + half) + 1, best);
#pragma unroll
          for (int i = 0; i < SUMS; ++i) best[i] = max(best[i], carried[i]);
          convolve(2 * (row + half) + 2, carried);
#pragma unroll
          for (int i = 0; i < SUMS; ++i) best[i] = max(best[i], carried[i]);
          if (!whole) {
#pragma unroll
            for (int i = 0; i < SUMS; ++i)
              if (!exists[i / 2 % 2]) best[i] = NOTHING;
          }
#pragma unroll
          for (int j = 0; j < TILES; ++j)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
              const int second = best[4 * j + odd], third = best[4 * j + 2 + odd];
              const int first = __shfl_up_sync(0xFFFFFFFFu, third, 4);
              maxima[0][4 * j + 2 * half + odd] = max(max(first, second), third);
            }
        }
        unsigned packed[1][2][OUT_WORDS];
#pragma unroll
        for (int word = 0; word < OUT_WORDS; ++word) {
          const unsigned unused[1][2][1] = {};
          requantize_words<0, 0>(maxima, pairs + part * (WARP_N / 2), quad, word, unused, packed);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int pooled_row = first_pooled + row + half;
          const size_t pixel = (static_cast<size_t>(n) * shape.pooled_h + pooled_row) * shape.pooled_w + pooled_column;
          if (group > 0 && pooled_column < shape.pooled_w && pooled_row < shape.pooled_h)
            write_words(output + pixel * (shape.out_channels / 2) + part * (WARP_N / 2) + quad * (OUT_WORDS * 4),
                        packed[0][half]);
        }
      }
    }
  }
};
