// Convolution of packed u4 activations (NHWC) with s8 weights, fused with bias, residual, ReLU and requantisation, for
// every chip from sm_80 on: mma.sync.m16n8k32.u8.s8. One implicit GEMM for every window and stride:
//
//   outputs (pixels x channels) = windows (pixels x taps*C) * weights (taps*C x channels)
//
// A block computes TILE_M pixels x TILE_N channels. cp.async keeps STAGES buffers of one block of K filled: K_BYTES
// packed bytes of one tap of every pixel (zeros outside the image), and its weights. Activations are unpacked in
// registers: the low nibbles of a word are one A register, the high nibbles another. The weights are laid out by the
// host so that a thread's operands are 16 consecutive bytes, and so that it ends up with consecutive output channels.
//
// Compile-time constants: WARPS_M, WARPS_N, WARP_M, WARP_N, STAGES, K_BYTES, OUTPUT (0 u4, 1 u7 bytes), RESIDUAL
// (0 none, 1 a u4 tensor, 2 a 1x1 convolution of one: the first part of K, rescaled in the accumulators), WIDE.
#include "epilogue/requantize.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mma.cuh"
#include "words.cuh"

constexpr int TILE_M = WARPS_M * WARP_M, TILE_N = WARPS_N * WARP_N;
constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int SUBS = WARP_M / 16;                // 16-row tiles of mma a warp
constexpr int WORDS = K_BYTES / 16;              // 32-bit words a thread reads of a row: k-steps a block of K
constexpr int PIECES = K_BYTES / 16;             // 16-byte copies a row
constexpr int ROW_STEP = THREADS / PIECES;       // rows that all threads fetch at once
constexpr int FETCHED_ROWS = (TILE_M + ROW_STEP - 1) / ROW_STEP;  // a thread
constexpr int ACTIVATION_BYTES = TILE_M * K_BYTES;
constexpr int WEIGHT_BYTES = WORDS * 32 * TILE_N;
constexpr int WEIGHT_PIECES = (WEIGHT_BYTES / 16 + THREADS - 1) / THREADS;
constexpr int STAGE_BYTES = ACTIVATION_BYTES + WEIGHT_BYTES;
constexpr int OUT_WORDS = WARP_N / (OUTPUT ? 16 : 32);  // 32-bit words a thread writes of a row
constexpr int STORE_WORDS = OUT_WORDS < 4 ? OUT_WORDS : 4;
constexpr int KEPT_WORDS = RESIDUAL == 1 ? WARP_N / 32 : 1;

// How windows of a tensor are read.
struct Window {
  int h, w;
  int pieces;          // 16-byte pieces a pixel
  int stride, pad;
  int taps;            // window width and height
  int channel_blocks;  // blocks of K a tap
};

struct ConvShape {
  int pixels;  // n * p * q
  int p, q;    // output height and width
  Window input, residual;
  int residual_blocks;  // blocks of K of the residual convolution, before all others
  int blocks;           // of both
  int out_channels;
};

extern "C" __global__ void __launch_bounds__(THREADS)
conv_mma(const unsigned char* __restrict__ input, const unsigned char* __restrict__ residual,
              const unsigned char* __restrict__ weights, const EpiloguePair* __restrict__ channels,
              const EpilogueResidualPair* __restrict__ residual_channels, unsigned char* __restrict__ output,
              const ConvShape shape) {
  extern __shared__ __align__(128) unsigned char memory[];
  const unsigned stages = static_cast<unsigned>(__cvta_generic_to_shared(memory));
  EpiloguePair* const pairs = reinterpret_cast<EpiloguePair*>(memory + STAGES * STAGE_BYTES);
  EpilogueResidualPair* const residual_pairs = reinterpret_cast<EpilogueResidualPair*>(pairs + TILE_N / 2);

  // Blocks that follow one another read the same pixels.
  const int tiles_n = shape.out_channels / TILE_N;
  const int tile_n = blockIdx.x % tiles_n, first_pixel = blockIdx.x / tiles_n * TILE_M;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int warp_m = warp % WARPS_M, warp_n = warp / WARPS_M;
  const unsigned char* const tile_weights = weights + static_cast<size_t>(tile_n) * shape.blocks * WEIGHT_BYTES;

  for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) {
    pairs[i] = channels[tile_n * (TILE_N / 2) + i];
    if constexpr (RESIDUAL == 2) residual_pairs[i] = residual_channels[tile_n * (TILE_N / 2) + i];
  }

  // The windows of the rows this thread fetches: the first pixel, and where it lies in memory.
  const int piece = threadIdx.x % PIECES, first_row = threadIdx.x / PIECES;
  int window_h[FETCHED_ROWS], window_w[FETCHED_ROWS], window_piece[FETCHED_ROWS];
  Window window = RESIDUAL == 2 ? shape.residual : shape.input;  // of the block that is fetched next
  const unsigned char* source = RESIDUAL == 2 ? residual : input;
  auto locate_windows = [&] {
#pragma unroll
    for (int i = 0; i < FETCHED_ROWS; ++i) {
      constexpr int OUTSIDE = -(1 << 20);
      const int row = first_row + i * ROW_STEP, pixel = first_pixel + row;
      const int line = pixel / shape.q, n = line / shape.p;
      const bool exists = row < TILE_M && pixel < shape.pixels;
      window_h[i] = exists ? (line - n * shape.p) * window.stride - window.pad : OUTSIDE;
      window_w[i] = (pixel - line * shape.q) * window.stride - window.pad;
      window_piece[i] = exists ? ((n * window.h + window_h[i]) * window.w + window_w[i]) * window.pieces : 0;
    }
  };

  int tap_h = 0, tap_w = 0, channel_block = 0;
  auto fetch_block = [&](int block) {
    if (RESIDUAL == 2 && block == shape.residual_blocks) {
      window = shape.input;
      source = input;
      tap_h = tap_w = channel_block = 0;
      locate_windows();
    }
    const unsigned stage = stages + block % STAGES * STAGE_BYTES;
    const int offset = (tap_h * window.w + tap_w) * window.pieces + channel_block * PIECES + piece;
#pragma unroll
    for (int i = 0; i < FETCHED_ROWS; ++i) {
      const int row = first_row + i * ROW_STEP;
      const bool inside = static_cast<unsigned>(window_h[i] + tap_h) < static_cast<unsigned>(window.h) &&
                          static_cast<unsigned>(window_w[i] + tap_w) < static_cast<unsigned>(window.w);
      const size_t place = inside ? static_cast<size_t>(window_piece[i] + offset) * 16 : 0;
      if (TILE_M % ROW_STEP == 0 || row < TILE_M)
        cp_async(stage + (row * PIECES + piece) * 16, source + place, inside);
    }
    const unsigned char* const block_weights = tile_weights + static_cast<size_t>(block) * WEIGHT_BYTES;
#pragma unroll
    for (int i = 0; i < WEIGHT_PIECES; ++i) {
      const int place = (threadIdx.x + i * THREADS) * 16;
      if (WEIGHT_BYTES / 16 % THREADS == 0 || place < WEIGHT_BYTES)
        cp_async(stage + ACTIVATION_BYTES + place, block_weights + place, true);
    }
    if (++channel_block == window.channel_blocks) {
      channel_block = 0;
      if (++tap_w == window.taps) {
        tap_w = 0;
        ++tap_h;
      }
    }
  };

  int sums[SUBS][WARP_N / 2] = {};
  auto multiply_block = [&](int block) {
    const unsigned char* const stage = memory + block % STAGES * STAGE_BYTES;
    unsigned packed[SUBS][2][WORDS];
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        read_words(packed[sub][half],
                   stage + (warp_m * WARP_M + sub * 16 + half * 8 + group) * K_BYTES + quad * (K_BYTES / 4));
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
      const unsigned char* const operands =
          stage + ACTIVATION_BYTES + ((i * WARPS_N + warp_n) * (WARP_N / 16) * 32 + lane) * 16;
      unsigned b[WARP_N / 16][4];
#pragma unroll
      for (int j = 0; j < WARP_N / 16; ++j) read_words(b[j], operands + j * 512);
#pragma unroll
      for (int sub = 0; sub < SUBS; ++sub) {
        const unsigned upper = packed[sub][0][i], lower = packed[sub][1][i];
        const unsigned a[4] = {upper & 0x0F0F0F0Fu, lower & 0x0F0F0F0Fu, (upper >> 4) & 0x0F0F0F0Fu,
                               (lower >> 4) & 0x0F0F0F0Fu};
#pragma unroll
        for (int j = 0; j < WARP_N / 16; ++j) {
          mma_u8s8(&sums[sub][8 * j], a, b[j][0], b[j][1]);
          mma_u8s8(&sums[sub][8 * j + 4], a, b[j][2], b[j][3]);
        }
      }
    }
  };

  let_next_start();
  wait_for_previous();
  locate_windows();
#pragma unroll
  for (int block = 0; block < STAGES - 1; ++block) {
    if (block < shape.blocks) fetch_block(block);
    cp_async_commit();
  }
  for (int block = 0; block < shape.blocks; ++block) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // the block has arrived for all, and all are done with the one whose buffer is filled next
    if (block + STAGES - 1 < shape.blocks) fetch_block(block + STAGES - 1);
    cp_async_commit();
    multiply_block(block);
    if constexpr (RESIDUAL == 2) {
      if (block == shape.residual_blocks - 1) {
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j) {
          const EpilogueResidualPair pair = residual_pairs[warp_n * (WARP_N / 2) + j * 4 + quad];
#pragma unroll
          for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[sub][j * 4 + i] = rescale_residual(sums[sub][j * 4 + i], pair, i % 2);
        }
      }
    }
  }

  const int first_channel = tile_n * TILE_N + warp_n * WARP_N;
  const int thread_pixel = first_pixel + warp_m * WARP_M + group;
  unsigned kept[SUBS][2][KEPT_WORDS];
  if constexpr (RESIDUAL == 1) {
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = min(thread_pixel + sub * 16 + half * 8, shape.pixels - 1);
        read_words(kept[sub][half], residual + (static_cast<size_t>(pixel) * shape.out_channels + first_channel) / 2 +
                                        quad * (KEPT_WORDS * 4));
      }
  }
  constexpr int PER_BYTE = OUTPUT ? 1 : 2;
#pragma unroll
  for (int first = 0; first < OUT_WORDS; first += STORE_WORDS) {
    unsigned packed[SUBS][2][STORE_WORDS];
#pragma unroll
    for (int word = first; word < first + STORE_WORDS; ++word)
      requantize_words<OUTPUT, RESIDUAL>(sums, pairs + warp_n * (WARP_N / 2), quad, word, kept, packed);
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = thread_pixel + sub * 16 + half * 8;
        unsigned char* const row = output + (static_cast<size_t>(pixel) * shape.out_channels + first_channel) / PER_BYTE;
        if (pixel < shape.pixels) write_words(row + (quad * OUT_WORDS + first) * 4, packed[sub][half]);
      }
  }
}
