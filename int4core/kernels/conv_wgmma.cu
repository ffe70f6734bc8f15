// Convolution of packed u4 activations (NHWC, channel 2i in the low nibble) with s8 weights on sm_90a, fused with
// bias, residual, ReLU and requantisation. One implicit GEMM for every window and stride:
//
//   outputs (pixels x channels) = windows (pixels x taps*C) * weights (taps*C x channels)
//
// - One producer warp per team keeps a ring of `stages` buffers filled: the copy engine's im2col mode fetches TILE_M
//   pixels of one tap and one block of channels, still packed, and fills the border with zeros.
// - WARPGROUPS warpgroups a team read the packed tile, unpack it in registers (3 instructions for 8 values) and feed
//   it to wgmma as the A operand; the weights are the B operand, in shared memory for the whole kernel
//   (WEIGHTS_RESIDENT) or streamed through the ring.
// - TEAMS teams work on different tiles, so that one team's epilogue can run under another's products. Teams that
//   multiply together finish together and may stay in step; with ORDERED they take turns at the tensor cores.
// The order of K inside a block and of channels inside a tile is chosen so that neither unpacking nor packing needs a
// shuffle; `int4core.backends.cuda.families.layouts` lays the weights out to match.
//
// Compile-time constants: TILE_N, SUBTILES, WARPGROUPS, TEAMS, K_BYTES, WEIGHTS_RESIDENT, ORDERED,
// OUTPUT (0 u4, 1 u7 bytes), RESIDUAL (0 none, 1 a u4 tensor, 2 a 1x1 convolution of one), RESCALE_BASE and SATURATED
// (of that convolution: epilogue/rescale_s8.cuh). A convolution as residual is the first part of K: its sums are
// rescaled where they lie, in the accumulators, with the outputs' bias, and the rest is added to them; a tensor is what
// the accumulators begin with. IMAGE: 0, or the pixels of an image whose mean is written in place of its outputs
// (image_means.cuh).
#include "epilogue/narrow.cuh"
#include "epilogue/rescale_s8.cuh"
#include "image_means.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "stages.cuh"

template <int TILE_N, int SUBTILES, int WARPGROUPS, int TEAMS, int K_BYTES, bool WEIGHTS_RESIDENT, bool ORDERED,
          int OUTPUT, int RESIDUAL, int RESCALE_BASE, bool SATURATED, int IMAGE>
struct ConvWgmma {
  static constexpr int WORDS = K_BYTES / 16;                 // 32-bit words a thread reads of a row: k-steps per block
  static constexpr int TILE_M = WARPGROUPS * SUBTILES * 64;  // pixels of a team's tile
  static constexpr int ACTIVATION_BYTES = TILE_M * K_BYTES;  // of one stage
  static constexpr int WEIGHT_BYTES = WORDS * 32 * TILE_N;   // of one block of K
  static constexpr int STAGE_BYTES = ACTIVATION_BYTES + (WEIGHTS_RESIDENT ? 0 : WEIGHT_BYTES);
  static constexpr bool CONVOLVED = RESIDUAL == 2;
  static constexpr int RESIDUAL_STAGES = RESIDUAL == 1 ? 2 : 0;
  static constexpr int RESIDUAL_ROW = TILE_N / 2;
  static constexpr int RESIDUAL_BYTES = TILE_M * RESIDUAL_ROW;
  static constexpr bool AVERAGED = IMAGE > 0;
  using Means = ImageMeans<TILE_N, SUBTILES, WARPGROUPS, IMAGE>;
  static constexpr int CONSUMERS = TEAMS * WARPGROUPS * 128;
  // A warpgroup of helpers: one warp per team produces, one more adds images up if AVERAGED, the rest are idle.
  static constexpr int THREADS = CONSUMERS + 128;
  static constexpr int CONSUMER_REGISTERS = AVERAGED ? 224 : CONSUMERS <= 256 ? 240 : 160;
  static constexpr int HELPER_REGISTERS = AVERAGED ? 56 : 24;
  static_assert(!AVERAGED || (OUTPUT == 1 && TEAMS <= 2 && CONSUMERS <= 256));
  static_assert(CONSUMERS <= 384, "more warpgroups have too few registers to keep wgmma running");
  static constexpr int MAX_STAGES = 16;
  static constexpr int OUT_WORDS = TILE_N / (OUTPUT ? 16 : 32);      // 32-bit words a thread writes of a row
  static constexpr int STORE_WORDS = OUT_WORDS < 4 ? OUT_WORDS : 4;  // at a time
  static constexpr int BLOCKS = 1;                                   // a multiprocessor

  static __device__ __forceinline__ void run(const TensorMap& input, const TensorMap& residual,
                                             const unsigned char* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels,
                                             const S8ResidualPair* __restrict__ residual_channels,
                                             unsigned char* __restrict__ output, const ConvShape& shape,
                                             unsigned long long* __restrict__ partial) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[1 + TEAMS * (2 * (MAX_STAGES + 2) + 1 + (AVERAGED ? 2 : 0))];
    __shared__ ChannelPair pairs[TILE_N / 2];
    __shared__ S8ResidualPair residual_pairs[CONVOLVED ? TILE_N / 2 : 1];

    // Through lane 0, so that the compiler sees a warp-uniform value.
    const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const bool producer = warp >= CONSUMERS / 32;
    const int team = producer ? warp - CONSUMERS / 32 : warp / (4 * WARPGROUPS);
    const int tile_n = blockIdx.y;
    const int stages = shape.stages;

    const unsigned weight_barrier = shared_address(barriers);
    const unsigned full = weight_barrier + 8 + team * 16 * (stages + 2);
    const unsigned empty = full + 8 * stages;
    const unsigned residual_full = empty + 8 * stages;
    const unsigned residual_empty = residual_full + 8 * 2;
    const unsigned turns = weight_barrier + 8 + TEAMS * 16 * (stages + 2);  // one barrier a team
    const unsigned base = shared_address(memory);
    const unsigned ring_base = base + team * (stages * STAGE_BYTES + RESIDUAL_STAGES * RESIDUAL_BYTES);
    const unsigned residual_base = ring_base + stages * STAGE_BYTES;
    const unsigned weight_base = base + TEAMS * (stages * STAGE_BYTES + RESIDUAL_STAGES * RESIDUAL_BYTES);
    // If AVERAGED: where a team's tile of outputs lies, and its barriers, full and empty.
    auto outputs_of = [&](int of) {
      return weight_base + (WEIGHTS_RESIDENT ? shape.blocks * WEIGHT_BYTES : 0) + of * Means::BYTES;
    };
    auto outputs_full = [&](int of) { return turns + 8 * TEAMS + 16 * of; };
    auto outputs_empty = [&](int of) { return outputs_full(of) + 8; };
    const unsigned char* tile_weights = weights + static_cast<size_t>(tile_n) * shape.blocks * WEIGHT_BYTES;

    if (threadIdx.x == 0) {
      mbarrier_init(weight_barrier, 1);
      for (int t = 0; t < TEAMS; ++t) {
        const unsigned first = weight_barrier + 8 + t * 16 * (stages + 2);
        for (int i = 0; i < stages; ++i) {
          mbarrier_init(first + 8 * i, 1);
          mbarrier_init(first + 8 * (stages + i), 4 * WARPGROUPS);
        }
        for (int i = 0; i < 2; ++i) {
          mbarrier_init(first + 8 * (2 * stages + i), 1);
          mbarrier_init(first + 8 * (2 * stages + 2 + i), 4 * WARPGROUPS);
        }
      }
      for (int t = 0; t < TEAMS; ++t) mbarrier_init(turns + 8 * t, 4 * WARPGROUPS);
      if constexpr (AVERAGED) {
        // Every thread arrives, not one for its warp: it takes no longer, and racecheck follows it.
        for (int t = 0; t < TEAMS; ++t) {
          mbarrier_init(outputs_full(t), 128 * WARPGROUPS);
          mbarrier_init(outputs_empty(t), 32);
        }
      }
      mbarrier_init_fence();
    }
    for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) {
      pairs[i] = channels[tile_n * (TILE_N / 2) + i];
      if constexpr (CONVOLVED) residual_pairs[i] = residual_channels[tile_n * (TILE_N / 2) + i];
    }
    __syncthreads();

    let_next_start();
    const int first_tile = blockIdx.x * TEAMS + team, tile_step = gridDim.x * TEAMS;

    // A team's producer: keeps its ring filled, tile after tile.
    auto produce = [&] {
      if (WEIGHTS_RESIDENT && team == 0) {
        mbarrier_arrive_expect(weight_barrier, shape.blocks * WEIGHT_BYTES);
        for (int block = 0; block < shape.blocks; ++block)
          bulk_copy(weight_base + block * WEIGHT_BYTES, tile_weights + block * WEIGHT_BYTES, WEIGHT_BYTES,
                    weight_barrier);
      }
      wait_for_previous();
      Ring ring(stages);
      Ring kept(2);
      const int pq = shape.p * shape.q;
      for (int tile = first_tile; tile < shape.tiles; tile += tile_step) {
        const int pixel = tile * TILE_M;
        const int n = pixel / pq, row = (pixel - n * pq) / shape.q, column = pixel - n * pq - row * shape.q;
        const int w = column * shape.stride - shape.pad, h = row * shape.stride - shape.pad;
        if constexpr (RESIDUAL == 1) {
          mbarrier_wait(residual_empty + 8 * kept.slot, kept.parity ^ 1);
          mbarrier_arrive_expect(residual_full + 8 * kept.slot, RESIDUAL_BYTES);
          im2col_copy(residual_base + kept.slot * RESIDUAL_BYTES, &residual, residual_full + 8 * kept.slot,
                      tile_n * RESIDUAL_ROW, column, row, n, 0, 0);
          kept.advance();
        }
        int tap_w = 0, tap_h = 0, channel_block = 0;
        for (int block = 0; block < shape.blocks; ++block) {
          const unsigned stage = ring_base + ring.slot * STAGE_BYTES, barrier = full + 8 * ring.slot;
          mbarrier_wait(empty + 8 * ring.slot, ring.parity ^ 1);
          mbarrier_arrive_expect(barrier, STAGE_BYTES);
          if (!WEIGHTS_RESIDENT)
            bulk_copy(stage + ACTIVATION_BYTES, tile_weights + block * WEIGHT_BYTES, WEIGHT_BYTES, barrier);
          ring.advance();
          if (CONVOLVED && block < shape.residual_blocks) {
            im2col_copy(stage, &residual, barrier, block * K_BYTES, column * shape.residual_stride,
                        row * shape.residual_stride, n, 0, 0);
            continue;
          }
          im2col_copy(stage, &input, barrier, channel_block * K_BYTES, w, h, n, tap_w, tap_h);
          if (++channel_block == shape.channel_blocks) {
            channel_block = 0;
            if (++tap_w == shape.taps_w) {
              tap_w = 0;
              ++tap_h;
            }
          }
        }
      }
    };

    if (producer) {
      release_registers<HELPER_REGISTERS>();
      if (team < TEAMS && lane == 0) produce();
      if constexpr (AVERAGED) {
        const int of = team - TEAMS;
        if (of < 0 || of >= TEAMS) return;
        wait_for_previous();
        const Means means(outputs_of(of), lane, shape.out_channels, tile_n, output, partial);
        unsigned parity = 0;
        for (int tile = blockIdx.x * TEAMS + of; tile < shape.tiles; tile += tile_step) {
          means.add_up(tile * TILE_M, shape.pixels, outputs_full(of), parity, outputs_empty(of));
          parity ^= 1;
        }
      }
      return;
    }

    claim_registers<CONSUMER_REGISTERS>();
    wait_for_previous();
    const int group = lane / 4, quad = lane % 4;
    // The first of the rows (pixels) this thread holds in each 64-row subtile; the second is 8 further.
    const int thread_row = (warp / 4 % WARPGROUPS) * SUBTILES * 64 + (warp % 4) * 16 + group;
    const unsigned thread_activations = thread_row * K_BYTES + quad * (K_BYTES / 4);
    const int row_bytes = OUTPUT ? shape.out_channels : shape.out_channels / 2;

    Ring ring(stages);
    Ring kept(2);
    unsigned shared_parity = 0;
    if (WEIGHTS_RESIDENT) mbarrier_wait(weight_barrier, 0);

    // Turns go around the teams, tile by tile; teams with a tile less come last, so no turn is waited for in vain.
    unsigned turn_parity = 0;
    auto wait_turn = [&] {
      if constexpr (ORDERED != 0) {
        mbarrier_wait(turns + 8 * team, turn_parity);
        turn_parity ^= 1;
      }
    };
    auto pass_turn = [&] {
      if constexpr (ORDERED != 0) {
        if (lane == 0) mbarrier_arrive(turns + 8 * ((team + 1) % TEAMS));
      }
    };
    if (team == TEAMS - 1) pass_turn();

    for (int tile = first_tile; tile < shape.tiles; tile += tile_step) {
      int sums[SUBTILES][TILE_N / 2];
      unsigned fragments[2][WORDS][4];
      int previous = 0;

      auto multiply_block = [&](auto parity, int block) {
        mbarrier_wait(full + 8 * ring.slot, ring.parity);
        const unsigned stage = ring_base + ring.slot * STAGE_BYTES;
        const unsigned block_weights = WEIGHTS_RESIDENT ? weight_base + block * WEIGHT_BYTES : stage + ACTIVATION_BYTES;
        const unsigned long long descriptor = wgmma_descriptor(block_weights, TILE_N * 16, 128);
#pragma unroll
        for (int sub = 0; sub < SUBTILES; ++sub) {
          auto& a = fragments[SUBTILES == 1 ? decltype(parity)::value : sub & 1];
          unsigned upper[WORDS], lower[WORDS];
          const unsigned address = stage + thread_activations + sub * 64 * K_BYTES;
          load_words(upper, address);
          load_words(lower, address + 8 * K_BYTES);
          unpack_rows(a, upper, lower);
#pragma unroll
          for (int i = 0; i < WORDS; ++i) pin_registers(a[i]);
          wgmma_fence();
#pragma unroll
          for (int i = 0; i < WORDS; ++i)
            Wgmma<TILE_N>::mma(sums[sub], a[i], descriptor + i * (2 * TILE_N), RESIDUAL == 1 || block + i);
          wgmma_commit();
          wgmma_wait<1>();  // the fragments of the group before the last are free again
          // Not right after the loads: they queue behind wgmma, and an arrival would overtake them.
          if (WEIGHTS_RESIDENT && sub == SUBTILES - 1 && lane == 0) mbarrier_arrive(empty + 8 * ring.slot);
          // Every group of the block before is done.
          if (!WEIGHTS_RESIDENT && sub == 0 && block > 0 && lane == 0) mbarrier_arrive(empty + 8 * previous);
        }
        previous = ring.slot;
        ring.advance();
      };

      const int turn_end = CONVOLVED ? shape.residual_blocks : shape.blocks;
      auto multiply_blocks = [&](int block, int end) {
        if constexpr (SUBTILES == 1) {
          for (; block + 1 < end; block += 2) {
            multiply_block(Constant<0>{}, block);
            multiply_block(Constant<1>{}, block + 1);
          }
        }
        for (; block < end; ++block) multiply_block(Constant<0>{}, block);
        if (end == turn_end) pass_turn();
        wgmma_wait<0>();
      };

      // The tile's sums: a residual tensor first, or those of the residual convolution, rescaled where they lie.
      auto multiply = [&] {
        if constexpr (RESIDUAL == 1) {
          unsigned words[SUBTILES][2][RESIDUAL_ROW / 16];
          mbarrier_wait(residual_full + 8 * kept.slot, kept.parity);
#pragma unroll
          for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              load_words(words[sub][half], residual_base + kept.slot * RESIDUAL_BYTES +
                                               (thread_row + sub * 64 + half * 8) * RESIDUAL_ROW +
                                               quad * (RESIDUAL_ROW / 4));
          begin_with_residual(sums, pairs, quad, words);
#pragma unroll
          for (int sub = 0; sub < SUBTILES; ++sub) pin_registers(sums[sub]);
        }
        wait_turn();
        if constexpr (CONVOLVED) {
          multiply_blocks(0, shape.residual_blocks);
          rescale_sums<RESCALE_BASE, SATURATED>(sums, residual_pairs, quad);
#pragma unroll
          for (int sub = 0; sub < SUBTILES; ++sub) pin_registers(sums[sub]);
        }
        multiply_blocks(CONVOLVED ? shape.residual_blocks : 0, shape.blocks);
        if (!WEIGHTS_RESIDENT && lane == 0) mbarrier_arrive(empty + 8 * previous);
      };

      // Requantised and written.
      auto store = [&] {
        const unsigned unused[SUBTILES][2][1] = {};
        if constexpr (AVERAGED) {
          mbarrier_wait(outputs_empty(team), shared_parity ^ 1);
          shared_parity ^= 1;
          const unsigned place = Means::place(outputs_of(team), warp, group, quad);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            unsigned words[4];
            requantize_rows<RESIDUAL ? 3 : 0>(sums, pairs, quad, i, unused, words);
            share_words(place ^ (i * 16), words);
          }
          __syncwarp();
          mbarrier_arrive(outputs_full(team));
        } else {
#pragma unroll
          for (int first = 0; first < OUT_WORDS; first += STORE_WORDS) {
            unsigned packed[SUBTILES][2][STORE_WORDS];
#pragma unroll
            for (int word = first; word < first + STORE_WORDS; ++word)
              requantize_words<OUTPUT, RESIDUAL ? 3 : 0>(sums, pairs, quad, word, unused, packed);
#pragma unroll
            for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const int pixel = tile * TILE_M + thread_row + sub * 64 + half * 8;
                unsigned char* const row = output + static_cast<size_t>(pixel) * row_bytes;
                if (pixel < shape.pixels)
                  store_words(row + (tile_n * 4 + quad) * (OUT_WORDS * 4) + 4 * first, packed[sub][half]);
              }
          }
        }
        if constexpr (RESIDUAL == 1) {
          __syncwarp();
          if (lane == 0) mbarrier_arrive(residual_empty + 8 * kept.slot);
          kept.advance();
        }
      };

      multiply();
      store();
    }
  }
};
