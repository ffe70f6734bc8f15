// A convolution as one implicit GEMM, for every window and stride, on the tensor cores of a warp (mma.sync):
//
//   outputs (pixels x channels) = windows (pixels x taps*C) * weights (taps*C x channels)
//
// A block of threads computes TILE_M pixels x TILE_N channels. STAGES buffers of one block of K are kept filled:
// K_BYTES packed bytes of one tap of every pixel (zeros outside the image), and its weights; with cp.async where the
// chip has it, else by way of registers. How they lie in a buffer, and how they are multiplied, is the Operands'
// business:
//
//   using Tile = ...;                        how the block is cut
//   WEIGHT_BYTES                             of one block of K, for TILE_N channels
//   place_of(row, piece)                     offset in a buffer of a 16-byte piece of a pixel's row
//   multiply(sums, stage, address, ...)      adds a buffer's products to a warp's sums
//
// A residual that is a 1x1 convolution is the first part of K: its sums are rescaled where they lie, in the
// accumulators, and the rest is added to them.
#pragma once
#include "conv_store.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/dependency.cuh"
#include "windows.cuh"

template <class Operands, int STAGES, bool ASYNC, int OUTPUT, int RESIDUAL, class Channels, class ResidualChannels>
__device__ __forceinline__ void convolve_tile(const unsigned char* __restrict__ input,
                                              const unsigned char* __restrict__ residual,
                                              const unsigned char* __restrict__ weights,
                                              const Channels* __restrict__ channels,
                                              const ResidualChannels* __restrict__ residual_channels,
                                              unsigned char* __restrict__ output, const ConvShape& shape) {
  using Tile = typename Operands::Tile;
  constexpr int TILE_M = Tile::TILE_M, TILE_N = Tile::TILE_N, WARP_N = Tile::WARP_N, THREADS = Tile::THREADS;
  constexpr int PIECES = Tile::K_BYTES / 16;                        // 16-byte pieces of a row
  constexpr int ROW_STEP = THREADS / PIECES;                        // rows that all threads fetch at once
  constexpr int FETCHED_ROWS = (TILE_M + ROW_STEP - 1) / ROW_STEP;  // a thread
  constexpr int ACTIVATION_BYTES = TILE_M * Tile::K_BYTES, WEIGHT_BYTES = Operands::WEIGHT_BYTES;
  constexpr int WEIGHT_PIECES = (WEIGHT_BYTES / 16 + THREADS - 1) / THREADS;
  constexpr int STAGE_BYTES = ACTIVATION_BYTES + WEIGHT_BYTES;
  static_assert(ASYNC || STAGES == 2, "blocks that come by way of registers alternate between two buffers");

  extern __shared__ __align__(128) unsigned char memory[];
  const unsigned stages = static_cast<unsigned>(__cvta_generic_to_shared(memory));
  Channels* const pairs = reinterpret_cast<Channels*>(memory + STAGES * STAGE_BYTES);
  ResidualChannels* const residual_pairs = reinterpret_cast<ResidualChannels*>(pairs + TILE_N / 2);

  // Blocks that follow one another read the same pixels.
  const int tiles_n = shape.out_channels / TILE_N;
  const int tile_n = blockIdx.x % tiles_n, first_pixel = blockIdx.x / tiles_n * TILE_M;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4;
  const int warp_m = warp % Tile::WARPS_M, warp_n = warp / Tile::WARPS_M;
  const unsigned char* const tile_weights = weights + static_cast<size_t>(tile_n) * shape.blocks * WEIGHT_BYTES;

  for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) {
    pairs[i] = channels[tile_n * (TILE_N / 2) + i];
    if constexpr (RESIDUAL == 2) residual_pairs[i] = residual_channels[tile_n * (TILE_N / 2) + i];
  }

  // The windows of the rows this thread fetches.
  const int piece = threadIdx.x % PIECES, first_row = threadIdx.x / PIECES;
  WindowPlace places[FETCHED_ROWS];
  Window window = RESIDUAL == 2 ? shape.residual : shape.input;  // of the block that is fetched next
  const unsigned char* source = RESIDUAL == 2 ? residual : input;
  auto locate_windows = [&] {
#pragma unroll
    for (int i = 0; i < FETCHED_ROWS; ++i) {
      const int row = first_row + i * ROW_STEP, pixel = first_pixel + row;
      places[i].locate(shape, window, pixel, row < TILE_M && pixel < shape.pixels);
    }
  };

  // copy_row(i, target, source, inside) and copy_weights(i, target, source) for all that this thread fetches of the
  // next block; targets are offsets in a stage.
  KBlock next = {0, 0, 0};
  auto for_block = [&](int block, auto copy_row, auto copy_weights) {
    if (RESIDUAL == 2 && block == shape.residual_blocks) {
      window = shape.input;
      source = input;
      next = {0, 0, 0};
      locate_windows();
    }
    const int offset = next.offset(window) + next.channel_block * PIECES + piece;
#pragma unroll
    for (int i = 0; i < FETCHED_ROWS; ++i) {
      const int row = first_row + i * ROW_STEP;
      const bool inside = next.inside(places[i], window);
      const size_t place = inside ? static_cast<size_t>(places[i].piece + offset) * 16 : 0;
      if (TILE_M % ROW_STEP == 0 || row < TILE_M) copy_row(i, Operands::place_of(row, piece), source + place, inside);
    }
    const unsigned char* const block_weights = tile_weights + static_cast<size_t>(block) * WEIGHT_BYTES;
#pragma unroll
    for (int i = 0; i < WEIGHT_PIECES; ++i) {
      const int place = (threadIdx.x + i * THREADS) * 16;
      if (WEIGHT_BYTES / 16 % THREADS == 0 || place < WEIGHT_BYTES)
        copy_weights(i, ACTIVATION_BYTES + place, block_weights + place);
    }
    next.advance(window);
  };

  int sums[Tile::SUBS][WARP_N / 2] = {};
  auto multiply_block = [&](int block) {
    const int stage = block % STAGES * STAGE_BYTES;
    Operands::multiply(sums, memory + stage, stages + stage, warp_m, warp_n, lane);
    if constexpr (RESIDUAL == 2) {
      if (block == shape.residual_blocks - 1) {
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j) {
          const ResidualChannels pair = residual_pairs[warp_n * (WARP_N / 2) + j * 4 + quad];
#pragma unroll
          for (int sub = 0; sub < Tile::SUBS; ++sub)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[sub][j * 4 + i] = rescale_residual(sums[sub][j * 4 + i], pair, i % 2);
        }
      }
    }
  };

  let_next_start();
  wait_for_previous();
  locate_windows();
  if constexpr (ASYNC) {
    auto fetch_block = [&](int block) {
      const unsigned stage = stages + block % STAGES * STAGE_BYTES;
      for_block(
          block,
          [&](int, int target, const unsigned char* from, bool inside) { cp_async(stage + target, from, inside); },
          [&](int, int target, const unsigned char* from) { cp_async(stage + target, from, true); });
    };
#pragma unroll
    for (int block = 0; block < STAGES - 1; ++block) {
      if (block < shape.blocks) fetch_block(block);
      cp_async_commit();
    }
#pragma unroll 1
    for (int block = 0; block < shape.blocks; ++block) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();  // the block has arrived for all, and all are done with the one whose buffer is filled next
      if (block + STAGES - 1 < shape.blocks) fetch_block(block + STAGES - 1);
      cp_async_commit();
      multiply_block(block);
    }
  } else {
    uint4 fetched_rows[FETCHED_ROWS], fetched_weights[WEIGHT_PIECES];
    auto load_block = [&](int block) {
      for_block(
          block,
          [&](int i, int, const unsigned char* from, bool inside) {
            fetched_rows[i] = inside ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
          },
          [&](int i, int, const unsigned char* from) { fetched_weights[i] = *reinterpret_cast<const uint4*>(from); });
    };
    auto store_block = [&](int block) {
      unsigned char* const stage = memory + block % STAGES * STAGE_BYTES;
#pragma unroll
      for (int i = 0; i < FETCHED_ROWS; ++i) {
        const int row = first_row + i * ROW_STEP;
        if (TILE_M % ROW_STEP == 0 || row < TILE_M)
          *reinterpret_cast<uint4*>(stage + Operands::place_of(row, piece)) = fetched_rows[i];
      }
#pragma unroll
      for (int i = 0; i < WEIGHT_PIECES; ++i) {
        const int place = (threadIdx.x + i * THREADS) * 16;
        if (WEIGHT_BYTES / 16 % THREADS == 0 || place < WEIGHT_BYTES)
          *reinterpret_cast<uint4*>(stage + ACTIVATION_BYTES + place) = fetched_weights[i];
      }
    };
    load_block(0);
    store_block(0);
#pragma unroll 1
    for (int block = 0; block < shape.blocks; ++block) {
      __syncthreads();  // the block has arrived for all, and all are done with the one before it
      const bool more = block + 1 < shape.blocks;
      if (more) load_block(block + 1);
      multiply_block(block);
      if (more) store_block(block + 1);
    }
  }

  const int warp_pixel = first_pixel + warp_m * Tile::WARP_M, first_channel = tile_n * TILE_N + warp_n * WARP_N;
  unsigned kept[Tile::SUBS][2][KEPT_WORDS<Tile, RESIDUAL>];
  read_kept<Tile, RESIDUAL>(kept, residual, shape, warp_pixel, first_channel, lane);
  store_tile<Tile, OUTPUT, RESIDUAL>(sums, pairs + warp_n * (WARP_N / 2), kept, output, shape, warp_pixel,
                                     first_channel, lane);
}
