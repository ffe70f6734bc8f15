// The second of two 1x1 convolutions at once, on sm_90a: what a thread has just packed of the first one's outputs is,
// as it lies in its registers, A of the second product.
#pragma once
#include "epilogue/narrow.cuh"
#include "ptx/wgmma.cuh"
#include "stages.cuh"

// Of a team, one warpgroup, SUBTILES * 64 pixels: K_OUT channels of what comes CHUNK channels at a time.
template <int K_OUT, int SUBTILES, int CHUNK>
struct NarrowRows {
  static constexpr int CHUNK_WORDS = CHUNK / 32;
  static constexpr int ROW = K_OUT / 2;  // bytes

  int sums[SUBTILES][K_OUT / 2];

  // Begins the products of a chunk: `weights` describes those of chunk 0.
  __device__ __forceinline__ void begin(const unsigned (&packed)[SUBTILES][2][CHUNK_WORDS], unsigned long long weights,
                                        int chunk) {
    unsigned a[SUBTILES][CHUNK_WORDS][4];
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub) {
      unpack_rows(a[sub], packed[sub][0], packed[sub][1]);
#pragma unroll
      for (int i = 0; i < CHUNK_WORDS; ++i) pin_registers(a[sub][i]);
    }
    wgmma_fence();
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
      for (int i = 0; i < CHUNK_WORDS; ++i)
        Wgmma<K_OUT>::mma(sums[sub], a[sub][i], weights + (chunk * CHUNK_WORDS + i) * (2 * K_OUT), chunk + i);
    wgmma_commit();
  }

  // When all products are done: a thread's parts of the rows, packed.
  __device__ __forceinline__ void requantize(const ChannelPair* pairs, int quad,
                                             unsigned (&packed)[SUBTILES][2][K_OUT / 32]) {
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub) pin_registers(sums[sub]);
    const unsigned unused[SUBTILES][2][1] = {};
#pragma unroll
    for (int word = 0; word < K_OUT / 32; ++word) requantize_words<0, 0>(sums, pairs, quad, word, unused, packed);
  }

  // To shared memory, where the tile's rows follow one another; `row` is the first of the thread's.
  static __device__ __forceinline__ void share(const unsigned (&packed)[SUBTILES][2][K_OUT / 32], unsigned rows,
                                               int row, int quad) {
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        share_words(rows + (row + sub * 64 + half * 8) * ROW + quad * (ROW / 4), packed[sub][half]);
  }
};
