// Average pool: the mean over SIZE x SIZE pixels of u7 NHWC values, rounded half up, at most 127.
//
// A thread makes four channels of one image, ROWS_AT_ONCE rows of it at a time. Output rows have `features` >=
// `channels` values, zeros at the end. Compile-time constants: SIZE, WARPS, ROWS_AT_ONCE.
#include "ptx/dependency.cuh"

template <int SIZE, int WARPS, int ROWS_AT_ONCE>
struct Mean {
  static constexpr int THREADS = 32 * WARPS;

  static __device__ __forceinline__ void run(const unsigned* __restrict__ input, unsigned* __restrict__ output,
                                             const MeanShape& shape) {
    let_next_start();
    wait_for_previous();
    const int words = shape.features / 4, pixel_words = shape.channels / 4;
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= shape.n * words) return;
    const int n = i / words, word = i - n * words;
    unsigned mean = 0;
    if (word < pixel_words) {
      constexpr unsigned COUNT = SIZE * SIZE;
      unsigned totals[4] = {};
      const unsigned* const image = input + static_cast<size_t>(n) * shape.h * shape.w * pixel_words + word;
#pragma unroll ROWS_AT_ONCE
      for (int row = 0; row < SIZE; ++row)
#pragma unroll
        for (int column = 0; column < SIZE; ++column) {
          const unsigned values = image[(row * shape.w + column) * pixel_words];
#pragma unroll
          for (int j = 0; j < 4; ++j) totals[j] += (values >> (8 * j)) & 0xFFu;
        }
#pragma unroll
      for (int j = 0; j < 4; ++j) mean |= min((2 * totals[j] + COUNT) / (2 * COUNT), 127u) << (8 * j);
    }
    output[i] = mean;
  }
};
