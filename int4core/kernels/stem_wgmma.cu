// First convolution of the network with its 3x3 maximum of stride 2, as stem_strips.cu computes it, on wgmma.
//
// A block is one warpgroup: POOL_ROWS rows of one image's maxima, four strips of columns, 64 channels. Its warps'
// strips are the 64 rows of a wgmma; the weights are the B operand, in shared memory. While the tensor cores work on
// one row of the convolution, the row before goes into the maxima: rows alternate between two sets of sums.
//
// Compile-time constants: TAPS_H, TAPS_W, STRIDE_H, STRIDE_W, WIDTH of the image, LEFT, LEAD, PITCH: see
// stem_strips.cu, POOL_ROWS.
#include "epilogue/narrow.cuh"
#include "ptx/dependency.cuh"
#include "ptx/wgmma.cuh"
#include "stages.cuh"
#include "stem_pixels.cuh"
#include "words.cuh"

template <int TAPS_H, int TAPS_W, int STRIDE_H, int STRIDE_W, int WIDTH, int LEFT, int LEAD, int PITCH, int POOL_ROWS>
struct StemWgmma {
  static constexpr int STEPS_W = (LEAD + TAPS_W + 7) / 8;
  static constexpr int STEPS = TAPS_H * STEPS_W;
  static constexpr int LINES = 2 * POOL_ROWS * STRIDE_H + TAPS_H;
  static constexpr int THREADS = 128, TILE_N = 64;
  static constexpr int WEIGHT_BYTES = STEPS * 32 * TILE_N;
  static constexpr int STRIP = 7, STRIPS = 4;
  static constexpr int NOTHING = -2147483647 - 1;  // less than every sum
  static constexpr int BLOCKS = 3;                 // a multiprocessor

  static __device__ __forceinline__ void run(const signed char* __restrict__ images, const uint4* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const StripShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ ChannelPair pairs[TILE_N / 2];
    unsigned* const pixels = reinterpret_cast<unsigned*>(memory + WEIGHT_BYTES);
    const int n = blockIdx.y, first_pooled = blockIdx.x * POOL_ROWS;
    const int parts = shape.out_channels / TILE_N, part = blockIdx.z % parts, first_strip = blockIdx.z / parts * STRIPS;
    const int first_row = 2 * first_pooled - shape.pool_pad;  // of the convolution's outputs
    // Of the columns whose windows the block reads, in words of a line; a line begins LEFT pixels before the image.
    const int first_word = max(2 * (first_strip * STRIP - 1) + 1 - shape.pool_pad, 0) * STRIDE_W / 4 * 4;

    for (int i = threadIdx.x; i < WEIGHT_BYTES / 16; i += THREADS)
      reinterpret_cast<uint4*>(memory)[i] = weights[part * (WEIGHT_BYTES / 16) + i];
    if (threadIdx.x < TILE_N / 2) pairs[threadIdx.x] = channels[part * (TILE_N / 2) + threadIdx.x];
    let_next_start();
    wait_for_previous();
    lay_pixels<WIDTH, LINES, PITCH, THREADS>(pixels, images + static_cast<size_t>(n) * 3 * shape.height * WIDTH,
                                             shape.height, first_row * STRIDE_H - shape.pad_h, first_word - LEFT);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads the weights
    __syncthreads();

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const int pooled_column = (first_strip + warp) * STRIP + group - 1, column = 2 * pooled_column + 1 - shape.pool_pad;
    const bool exists[2] = {static_cast<unsigned>(column) < static_cast<unsigned>(shape.q),
                            static_cast<unsigned>(column + 1) < static_cast<unsigned>(shape.q)};
    const bool whole = __all_sync(0xFFFFFFFFu, exists[0] && exists[1]);
    const unsigned* const windows[2] = {pixels + max(column, 0) * STRIDE_W - first_word + 2 * quad,
                                        pixels + max(column + 1, 0) * STRIDE_W - first_word + 2 * quad};
    const unsigned long long descriptor =
        wgmma_descriptor(static_cast<unsigned>(__cvta_generic_to_shared(memory)), TILE_N * 16, 128);

    int sums[2][TILE_N / 2];
    // Starts the products of a row of the convolution's outputs, counted from `first_row`.
    auto begin = [&](auto set, int row) {
      unsigned fragments[STEPS][4];
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        const int place = row * STRIDE_H * PITCH + step / STEPS_W * PITCH + step % STEPS_W * 8;
        const uint2 second = two_words<STRIDE_W>(windows[0] + place), third = two_words<STRIDE_W>(windows[1] + place);
        fragments[step][0] = second.x;
        fragments[step][1] = third.x;
        fragments[step][2] = second.y;
        fragments[step][3] = third.y;
      }
#pragma unroll
      for (int step = 0; step < STEPS; ++step) pin_registers(fragments[step]);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
        wgmma_s8s8(sums[decltype(set)::value], fragments[step], descriptor + step * (2 * TILE_N), step);
      wgmma_commit();
    };
    // Waits for the row that is under way, and starts the next one.
    auto turn = [&](auto set, int row, bool more) {
      constexpr int SET = decltype(set)::value;
      wgmma_wait<0>();
      pin_registers(sums[SET]);
      if (more) begin(Constant<1 - SET>{}, row + 1);
      if (static_cast<unsigned>(first_row + row) >= static_cast<unsigned>(shape.p)) {
#pragma unroll
        for (int i = 0; i < TILE_N / 2; ++i) sums[SET][i] = NOTHING;
      }
    };

    int best[TILE_N / 2];  // of the rows so far
    begin(Constant<0>{}, 0);
    turn(Constant<0>{}, 0, true);
#pragma unroll
    for (int i = 0; i < TILE_N / 2; ++i) best[i] = sums[0][i];
#pragma unroll 1
    for (int row = 0; row < POOL_ROWS; ++row) {
      turn(Constant<1>{}, 2 * row + 1, true);
#pragma unroll
      for (int i = 0; i < TILE_N / 2; ++i) best[i] = max(best[i], sums[1][i]);
      turn(Constant<0>{}, 2 * row + 2, row + 1 < POOL_ROWS);
      int maxima[1][TILE_N / 2] = {};
#pragma unroll
      for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          int second = max(best[4 * j + odd], sums[0][4 * j + odd]),
              third = max(best[4 * j + 2 + odd], sums[0][4 * j + 2 + odd]);
          if (!whole) {
            if (!exists[0]) second = NOTHING;
            if (!exists[1]) third = NOTHING;
          }
          const int first = __shfl_up_sync(0xFFFFFFFFu, third, 4);
          maxima[0][4 * j + odd] = max(max(first, second), third);
        }
#pragma unroll
      for (int i = 0; i < TILE_N / 2; ++i) best[i] = sums[0][i];
      unsigned packed[1][2][TILE_N / 32];
#pragma unroll
      for (int word = 0; word < TILE_N / 32; ++word) {
        const unsigned unused[1][2][1] = {};
        requantize_words<0, 0>(maxima, pairs, quad, word, unused, packed);
      }
      const int pooled_row = first_pooled + row;
      const size_t pixel = (static_cast<size_t>(n) * shape.pooled_h + pooled_row) * shape.pooled_w + pooled_column;
      if (group > 0 && pooled_column < shape.pooled_w && pooled_row < shape.pooled_h)
        write_words(output + pixel * (shape.out_channels / 2) + part * (TILE_N / 2) + quad * (TILE_N / 8),
                    packed[0][0]);
    }
  }
};
