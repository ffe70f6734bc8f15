// Convolution of packed u4 activations (NHWC) with packed s4 weights, fused with bias, residual, ReLU and
// requantisation, on the 4-bit tensor cores of sm_75 (mma.sync.m8n8k32) and of sm_80 to sm_89 (m16n8k64), on the tile
// of conv_tile.cuh.
//
// Nothing is unpacked: a word of a packed row is eight places of K, which is an A register, and ldmatrix brings it to
// its thread. The 16-byte pieces of a row change places with its number, so that eight rows of a piece lie in different
// banks. The host orders the weights so that a thread's operands are 16 consecutive bytes, and channels so that it ends
// up with consecutive outputs.
//
// Compile-time constants: MMA_M (8: m8n8k32, 16: m16n8k64), ASYNC (1: cp.async), WARPS_M, WARPS_N, WARP_M, WARP_N,
// STAGES (2 without cp.async), K_BYTES, OUTPUT (0 u4, 1 u7 bytes), RESIDUAL (0 none, 1 a u4 tensor, 2 a 1x1 convolution
// of one), WIDE, BLOCKS_AT_ONCE (that a multiprocessor
// should hold).
#include "conv_tile.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma_u4s4.cuh"

template <class Cut, int MMA_M>
struct Mma4Operands {
  using Tile = Cut;
  static constexpr int PIECES = Tile::K_BYTES / 16;           // of a row; a thread reads a word of each
  static constexpr int STEP_WORDS = PIECES < 2 ? PIECES : 2;  // pieces a step of K
  static constexpr int STEPS = PIECES / STEP_WORDS;           // a block of K
  static constexpr int WEIGHT_BYTES = Tile::TILE_N * Tile::K_BYTES;

  static __device__ __forceinline__ int place_of(int row, int piece) {
    return row * Tile::K_BYTES + (piece ^ row * Tile::K_BYTES / 128 % PIECES) * 16;
  }

  static __device__ __forceinline__ void multiply(int (&sums)[Tile::SUBS][Tile::WARP_N / 2], const unsigned char* stage,
                                                  unsigned address, int warp_m, int warp_n, int lane) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      // Operands of two 8-column tiles are consecutive.
      constexpr int PAIR_WORDS = 2 * STEP_WORDS, PAIRS = Tile::WARP_N / 16;
      const unsigned char* const operands = stage + Tile::TILE_M * Tile::K_BYTES +
                                            ((step * Tile::WARPS_N + warp_n) * PAIRS * 32 + lane) * (PAIR_WORDS * 4);
      unsigned a[Tile::SUBS][2 * STEP_WORDS], b[2 * PAIRS][STEP_WORDS];
#pragma unroll
      for (int j = 0; j < PAIRS; ++j) {
        unsigned pair[PAIR_WORDS];
        read_words(pair, operands + j * (32 * PAIR_WORDS * 4));
#pragma unroll
        for (int i = 0; i < PAIR_WORDS; ++i) b[2 * j + i / STEP_WORDS][i % STEP_WORDS] = pair[i];
      }
      // Lanes 0 to 7 address the upper rows of a piece, 8 to 15 the lower ones, the others the same of the next piece.
      const int row = warp_m * Tile::WARP_M + lane % 16, piece = step * STEP_WORDS + lane / 16 % STEP_WORDS;
#pragma unroll
      for (int sub = 0; sub < Tile::SUBS; ++sub)
        load_tiles(a[sub], address + place_of(row, piece) + sub * 16 * Tile::K_BYTES);
      mma_u4s4<MMA_M, STEP_WORDS>(sums, a, b);
    }
  }
};

template <int MMA_M, bool ASYNC, int WARPS_M, int WARPS_N, int WARP_M, int WARP_N, int STAGES, int K_BYTES, int OUTPUT,
          int RESIDUAL, bool WIDE, int BLOCKS_AT_ONCE>
struct ConvMma4 {
  using EpiloguePair = typename Requantization<WIDE>::Pair;
  using EpilogueResidualPair = typename Requantization<WIDE>::Residual;
  using Operands = Mma4Operands<TileOf<WARPS_M, WARPS_N, WARP_M, WARP_N, K_BYTES>, MMA_M>;

  static constexpr int THREADS = Operands::Tile::THREADS;
  static constexpr int BLOCKS = BLOCKS_AT_ONCE;

  static __device__ __forceinline__ void run(const unsigned char* __restrict__ input,
                                             const unsigned char* __restrict__ residual,
                                             const unsigned char* __restrict__ weights,
                                             const EpiloguePair* __restrict__ channels,
                                             const EpilogueResidualPair* __restrict__ residual_channels,
                                             unsigned char* __restrict__ output, const ConvShape& shape) {
    convolve_tile<Operands, STAGES, ASYNC, OUTPUT, RESIDUAL>(input, residual, weights, channels, residual_channels,
                                                             output, shape);
  }
};
