// The end of a convolution on mma.sync: the residual tensor's part if there is one, and a warp's sums, requantised and
// written. A thread holds two rows, eight apart, of every 16, and of each a quarter of the channels, consecutive.
#pragma once
#include "epilogue/requantize.cuh"
#include "words.cuh"

// How a block of threads is cut: WARPS_M x WARPS_N warps of WARP_M pixels x WARP_N channels; K_BYTES packed bytes of a
// pixel are a block of K.
template <int WarpsM, int WarpsN, int WarpM, int WarpN, int KBytes>
struct TileOf {
  static constexpr int WARPS_M = WarpsM, WARPS_N = WarpsN, WARP_M = WarpM, WARP_N = WarpN, K_BYTES = KBytes;
  static constexpr int TILE_M = WARPS_M * WARP_M, TILE_N = WARPS_N * WARP_N, THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr int SUBS = WARP_M / 16;  // 16-row tiles per warp
};

// Words of the residual tensor that a thread takes of a row.
template <class Tile, int RESIDUAL>
constexpr int KEPT_WORDS = RESIDUAL == 1 ? Tile::WARP_N / 32 : 1;

// Reads the residual tensor's pixels from `warp_pixel` on, of the channels from `first_channel` on; nothing if there is
// none.
template <class Tile, int RESIDUAL, class Shape>
__device__ __forceinline__ void read_kept(unsigned (&kept)[Tile::SUBS][2][KEPT_WORDS<Tile, RESIDUAL>],
                                          const unsigned char* residual, const Shape& shape, int warp_pixel,
                                          int first_channel, int lane) {
  if constexpr (RESIDUAL == 1) {
#pragma unroll
    for (int sub = 0; sub < Tile::SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = min(warp_pixel + lane / 4 + sub * 16 + half * 8, shape.pixels - 1);
        read_words(kept[sub][half], residual + (static_cast<size_t>(pixel) * shape.out_channels + first_channel) / 2 +
                                        lane % 4 * (KEPT_WORDS<Tile, RESIDUAL> * 4));
      }
  }
}

// Writes the outputs of the pixels from `warp_pixel` on and of the channels from `first_channel` on; `pairs` are those
// of these channels.
template <class Tile, int OUTPUT, int RESIDUAL, class Channels, class Shape>
__device__ __forceinline__ void store_tile(const int (&sums)[Tile::SUBS][Tile::WARP_N / 2], const Channels* pairs,
                                           const unsigned (&kept)[Tile::SUBS][2][KEPT_WORDS<Tile, RESIDUAL>],
                                           unsigned char* __restrict__ output, const Shape& shape, int warp_pixel,
                                           int first_channel, int lane) {
  constexpr int OUT_WORDS = Tile::WARP_N / (OUTPUT ? 16 : 32);  // 32-bit words a thread writes of a row
  constexpr int STORE_WORDS = OUT_WORDS < 4 ? OUT_WORDS : 4;    // at a time
  constexpr int PER_BYTE = OUTPUT ? 1 : 2;
  const int thread_pixel = warp_pixel + lane / 4, quad = lane % 4;
#pragma unroll
  for (int first = 0; first < OUT_WORDS; first += STORE_WORDS) {
    unsigned packed[Tile::SUBS][2][STORE_WORDS];
#pragma unroll
    for (int word = first; word < first + STORE_WORDS; ++word)
      requantize_words<OUTPUT, RESIDUAL>(sums, pairs, quad, word, kept, packed);
#pragma unroll
    for (int sub = 0; sub < Tile::SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = thread_pixel + sub * 16 + half * 8;
        unsigned char* const row =
            output + (static_cast<size_t>(pixel) * shape.out_channels + first_channel) / PER_BYTE;
        if (pixel < shape.pixels) write_words(row + (quad * OUT_WORDS + first) * 4, packed[sub][half]);
      }
  }
}
