// A tile of 1x1 convolutions whose residual is a packed u4 tensor as wide as the outputs, on sm_90a: the outputs take
// the residual's place in shared memory and leave as whole boxes.
//
// The copy engine brings a tile's rows of the residual in boxes of 128 bytes a row: swizzle.cuh. A team, one warpgroup,
// takes CHUNK channels at a time; of every row a thread reads and writes a quarter of a chunk.
#pragma once
#include "epilogue/narrow.cuh"
#include "ptx/wgmma.cuh"
#include "stages.cuh"
#include "swizzle.cuh"

// A box has ROWS rows, and takes a whole number of BOX_ALIGNMENTs.
template <int C_IN, int SUBTILES, int CHUNK, int ROWS = SUBTILES * 64>
struct ResidualBoxes {
  static constexpr int TILE_M = SUBTILES * 64;    // pixels of a team's tile
  static constexpr int IN_WORDS = C_IN / 32;      // 32-bit words a thread reads of a row of the input
  static constexpr int CHUNK_WORDS = CHUNK / 32;  // and holds of a row of a chunk
  static constexpr int BOX_ROW = 128, BOX = (ROWS * BOX_ROW + BOX_ALIGNMENT - 1) / BOX_ALIGNMENT * BOX_ALIGNMENT;
  static constexpr bool BOXED_INPUT = C_IN % (2 * BOX_ROW) == 0;  // swizzled, too

  using Input = unsigned[SUBTILES][IN_WORDS][4];
  using Sums = int[SUBTILES][CHUNK / 2];
  using Words = unsigned[SUBTILES][2][CHUNK_WORDS];

  int quad, row;   // a thread's quarter, and the first of the rows it holds of each 64; the second is 8 further
  unsigned piece;  // where the quarter of the first chunk lies

  __device__ __forceinline__ ResidualBoxes(int warp, int lane) {
    const int group = lane / 4;
    const int row8 = dealt_row(group);
    quad = lane % 4;
    row = warp % 4 * 16 + row8;
    piece = row * BOX_ROW + ((quad * (CHUNK_WORDS * 4)) ^ (row8 << 4));
  }

  // The thread's part of a tile's input rows, unpacked.
  __device__ __forceinline__ void load_input(Input& a, unsigned rows) const {
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub) {
      unsigned upper[IN_WORDS], lower[IN_WORDS];
      load_row(upper, rows, row + sub * 64);
      load_row(lower, rows, row + sub * 64 + 8);
      unpack_rows(a[sub], upper, lower);
    }
  }

  __device__ __forceinline__ void load_row(unsigned (&words)[IN_WORDS], unsigned rows, int of) const {
    if constexpr (BOXED_INPUT) {
#pragma unroll
      for (int i = 0; i < IN_WORDS; i += 4)  // eight words of every box
        load_words(reinterpret_cast<unsigned (&)[4]>(words[i]),
                   rows + i / 8 * BOX + of * BOX_ROW + ((quad * (BOX_ROW / 4) + i % 8 * 4) ^ (of % 8 << 4)));
    } else {
      load_words(words, rows + of * (C_IN / 2) + quad * (C_IN / 8));
    }
  }

  // Begins the products of a chunk, ADDED to what the sums are or not: `weights` describes those of chunk 0.
  template <bool ADDED = false>
  static __device__ __forceinline__ void begin(Sums& sums, Input& a, unsigned long long weights, int chunk) {
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
      for (int i = 0; i < IN_WORDS; ++i) pin_registers(a[sub][i]);
    wgmma_fence();
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
      for (int i = 0; i < IN_WORDS; ++i)
        Wgmma<CHUNK>::mma(sums[sub], a[sub][i], weights + (chunk * IN_WORDS + i) * (CHUNK * 2), ADDED || i);
    wgmma_commit();
  }

  // A tile's chunks, one after the other: done(chunk, sums, kept, place) has a chunk's products and where its residual
  // lies. With AHEAD the products of the next chunk run under it. With BEGUN the residual is what the sums begin with:
  // an addition less an output. Else it is in `kept`, loaded under the products, with requantize's Residual 1.
  template <int CHUNKS, bool AHEAD, bool BEGUN, class Done>
  __device__ __forceinline__ void for_chunks(Input& a, unsigned long long weights, const ChannelPair* pairs,
                                             unsigned slot, Done done) const {
    Sums chunk_sums[AHEAD ? 2 : 1];
    auto multiply = [&](int chunk) {
      auto& sums = chunk_sums[AHEAD ? chunk % 2 : 0];
      if constexpr (BEGUN) {
        Words kept;
        load(kept, place(slot, chunk));
        begin_with_residual(sums, pairs + chunk * (CHUNK / 2), quad, kept);
#pragma unroll
        for (int sub = 0; sub < SUBTILES; ++sub) pin_registers(sums[sub]);
      }
      begin<BEGUN>(sums, a, weights, chunk);
    };
    if (AHEAD) multiply(0);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const bool more = AHEAD && chunk + 1 < CHUNKS;
      if (!AHEAD) multiply(chunk);
      if (more) multiply(chunk + 1);
      const unsigned chunk_place = place(slot, chunk);
      Words kept = {};
      if constexpr (!BEGUN) load(kept, chunk_place);
      // All groups but the one just begun are done: what `done` has multiplied of the chunk before, too.
      if (more) {
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      done(chunk, chunk_sums[AHEAD ? chunk % 2 : 0], kept, chunk_place);
    }
  }

  // Where a chunk of the boxes at `slot` lies: residual, then outputs.
  __device__ __forceinline__ unsigned place(unsigned slot, int chunk) const {
    const int byte = chunk * CHUNK / 2;
    return slot + byte / BOX_ROW * BOX + (piece ^ (byte % BOX_ROW));
  }

  static __device__ __forceinline__ void load(Words& words, unsigned place) {
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) load_words(words[sub][half], place + (sub * 64 + half * 8) * BOX_ROW);
  }

  static __device__ __forceinline__ void share(unsigned place, const Words& words) {
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) share_words(place + (sub * 64 + half * 8) * BOX_ROW, words[sub][half]);
  }

  // A chunk's outputs, u4 or for Output 1 u7, from its sums, which are there: with the bias, or for Residual 1 without
  // it and the residual.
  template <int Output, int Residual, int WORDS>
  __device__ __forceinline__ void requantize(Sums& sums, const ChannelPair* pairs, int chunk, const Words& kept,
                                             unsigned (&packed)[SUBTILES][2][WORDS]) const {
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub) pin_registers(sums[sub]);
#pragma unroll
    for (int word = 0; word < WORDS; ++word)
      requantize_words<Output, Residual>(sums, pairs + chunk * (CHUNK / 2), quad, word, kept, packed);
  }
};
