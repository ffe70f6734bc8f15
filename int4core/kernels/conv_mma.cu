// Convolution of packed u4 activations (NHWC) with s8 weights, fused with bias, residual, ReLU and requantisation, for
// every chip from sm_80 on: mma.sync.m16n8k32.u8.s8 on the tile of conv_tile.cuh.
//
// Activations are unpacked in registers: packed_mma.cuh. The weights are laid out by the host so that a thread's
// operands are 16 consecutive bytes, and so that it ends up with consecutive output channels.
//
// Compile-time constants: WARPS_M, WARPS_N, WARP_M, WARP_N, STAGES, K_BYTES, OUTPUT (0 u4, 1 u7 bytes), RESIDUAL
// (0 none, 1 a u4 tensor, 2 a 1x1 convolution of one), WIDE.
#include "conv_tile.cuh"
#include "packed_mma.cuh"

template <class Cut>
struct MmaOperands {
  using Tile = Cut;
  static constexpr int WORDS = Tile::K_BYTES / 16;  // 32-bit words a thread reads of a row: k-steps per block of K
  static constexpr int WEIGHT_BYTES = WORDS * 32 * Tile::TILE_N;

  static __device__ __forceinline__ int place_of(int row, int piece) { return row * Tile::K_BYTES + piece * 16; }

  static __device__ __forceinline__ void multiply(int (&sums)[Tile::SUBS][Tile::WARP_N / 2], const unsigned char* stage,
                                                  unsigned, int warp_m, int warp_n, int lane) {
    const int group = lane / 4, quad = lane % 4;
    unsigned packed[Tile::SUBS][2][WORDS];
#pragma unroll
    for (int sub = 0; sub < Tile::SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        read_words(packed[sub][half], stage + (warp_m * Tile::WARP_M + sub * 16 + half * 8 + group) * Tile::K_BYTES +
                                          quad * (Tile::K_BYTES / 4));
    constexpr int WARP = Tile::WARP_N / 16 * 512;  // bytes of a warp's operands of a k-step
    multiply_packed<Tile::WARPS_N * WARP>(sums, packed,
                                          stage + Tile::TILE_M * Tile::K_BYTES + warp_n * WARP + lane * 16);
  }
};

template <int WARPS_M, int WARPS_N, int WARP_M, int WARP_N, int STAGES, int K_BYTES, int OUTPUT, int RESIDUAL,
          bool WIDE>
struct ConvMma {
  using EpiloguePair = typename Requantization<WIDE>::Pair;
  using EpilogueResidualPair = typename Requantization<WIDE>::Residual;
  using Operands = MmaOperands<TileOf<WARPS_M, WARPS_N, WARP_M, WARP_N, K_BYTES>>;

  static constexpr int THREADS = Operands::Tile::THREADS;

  static __device__ __forceinline__ void run(const unsigned char* __restrict__ input,
                                             const unsigned char* __restrict__ residual,
                                             const unsigned char* __restrict__ weights,
                                             const EpiloguePair* __restrict__ channels,
                                             const EpilogueResidualPair* __restrict__ residual_channels,
                                             unsigned char* __restrict__ output, const ConvShape& shape) {
    convolve_tile<Operands, STAGES, true, OUTPUT, RESIDUAL>(input, residual, weights, channels, residual_channels,
                                                            output, shape);
  }
};
