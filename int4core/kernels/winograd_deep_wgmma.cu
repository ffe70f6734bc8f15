// 3x3 convolution, stride 1, padding 1, of packed u4 activations of 128 channels and more on sm_90a, by Winograd's
// F(2, 3) along the width, in integers and exact: U, V and the two phases are those of winograd_wgmma.cu.
//
// Deep layers have more weights than registers or, from 256 channels on, shared memory hold. So V is A here, made in
// registers from the packed pixels: 64 pairs of outputs a warpgroup; and U is B, 128 output channels, in shared memory.
//
// - A tile is TILE_M pairs that follow one another, over rows and images. What they read are whole image rows, and
//   those follow one another too: one box a plane and block of 64 channels, plane 0 with the even columns and plane 1
//   with the odd ones, so that a warp reads neighbouring pairs without conflicts. Rows above and below an image are
//   its neighbour's: pairs at the border read a place that holds zeros instead.
// - A tile's blocks of channels stay in slots for both phases; the second one gives them back.
// - A step is a block of channels, a row of taps and a phase: U of its two positions is a stage of 16 KB. RESIDENT: all
//   steps' stages stay in shared memory; else they are streamed, for all warpgroups of the block.
// - Staggered warpgroups: one begins when the one before it has done a block of channels, so that its requantisation
//   runs under the other's products.
// - AHEAD: the pixels of a step are read before the products of the step before begin, which they would else queue
//   behind.
// - Producers: a warp for the weights, and one a team for its rows.
//
// Compile-time constants: WIDTH of the image, CHANNELS it has, COLUMNS of a plane's row in shared memory, WARPGROUPS of
// a team, TEAMS, RESIDENT, STAGES of weights, SLOTS a team, AHEAD.
#include "epilogue/narrow.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "stages.cuh"

template <int WIDTH, int CHANNELS, int COLUMNS, int WARPGROUPS, int TEAMS, bool RESIDENT, int STAGES, int SLOTS,
          bool AHEAD>
struct WinogradDeepWgmma {
  static constexpr int TILE_N = 128, TILE_M = 64 * WARPGROUPS;
  static constexpr int PIXEL = 32, K_BLOCKS = CHANNELS / (2 * PIXEL);  // bytes a pixel of a block of channels
  static constexpr int STEPS = 2 * K_BLOCKS * 3;
  static constexpr int K_STEP_BYTES = 32 * TILE_N, STAGE = 2 * 2 * K_STEP_BYTES;  // two positions of two k-steps
  static constexpr int PAIRS = (WIDTH + 1) / 2;                                   // of a row
  // Tiles begin at multiples of this within a row.
  static constexpr int COMMON = (PAIRS & -PAIRS) < TILE_M ? (PAIRS & -PAIRS) : TILE_M;
  static constexpr int LINES = (PAIRS - COMMON + TILE_M + PAIRS - 1) / PAIRS + 2;
  static constexpr int PITCH = COLUMNS * PIXEL, BOX = LINES * PITCH;
  static constexpr int ZEROS = BOX, PLANE = (BOX + 2 * PIXEL + 127) / 128 * 128, SLOT = 2 * PLANE;
  static constexpr int GROUPS = TEAMS * WARPGROUPS, CONSUMERS = GROUPS * 128;
  static constexpr int THREADS = CONSUMERS + 128;
  static constexpr int BLOCKS = 1;  // a multiprocessor
  static constexpr int OUT_WORDS = TILE_N / 32;
  static constexpr unsigned SIXTEENS = 0x10101010u;
  static_assert(GROUPS == 2, "more warpgroups have too few registers for two sets of sums");
  static_assert(CHANNELS % 128 == 0 && COLUMNS > PAIRS && SLOTS >= K_BLOCKS);
  static_assert(RESIDENT ? STAGES == STEPS : TEAMS == 1 && STAGES > 3);

  static __device__ __forceinline__ void run(const TensorMap& input, const unsigned char* __restrict__ weights,
                                             const WinogradPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const PairsShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[2 * STAGES + 2 * TEAMS * SLOTS + GROUPS];
    __shared__ WinogradPair pairs[TILE_N / 2];

    const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, tile_n = blockIdx.y;
    const unsigned stage_full = shared_address(barriers), stage_empty = stage_full + 8 * STAGES;
    const unsigned slot_full = stage_empty + 8 * STAGES, slot_empty = slot_full + 8 * TEAMS * SLOTS;
    const unsigned ahead = slot_empty + 8 * TEAMS * SLOTS;
    const unsigned stages = shared_address(memory), slots = stages + STAGES * STAGE;
    if (threadIdx.x == 0) {
      for (int i = 0; i < STAGES; ++i) {
        mbarrier_init(stage_full + 8 * i, 1);
        mbarrier_init(stage_empty + 8 * i, CONSUMERS / 32);
      }
      for (int i = 0; i < TEAMS * SLOTS; ++i) {
        mbarrier_init(slot_full + 8 * i, 1);
        mbarrier_init(slot_empty + 8 * i, 4 * WARPGROUPS);
      }
      for (int i = 0; i < GROUPS; ++i) mbarrier_init(ahead + 8 * i, 4);
      mbarrier_init_fence();
    }
    for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) pairs[i] = channels[tile_n * (TILE_N / 2) + i];
    constexpr unsigned nothing[4] = {};
    for (int i = threadIdx.x; i < TEAMS * SLOTS * 2 * (2 * PIXEL / 16); i += THREADS)
      share_words(slots + i / (2 * PIXEL / 16) * PLANE + ZEROS + i % (2 * PIXEL / 16) * 16, nothing);
    __syncthreads();
    let_next_start();

    if (warp < CONSUMERS / 32) {
      claim_registers<240>();
      const int group = warp / 4, team = group / WARPGROUPS;
      consume(pairs, output + (tile_n * 4 + lane % 4) * (OUT_WORDS * 4), stage_full, stage_empty,
              slot_full + 8 * team * SLOTS, slot_empty + 8 * team * SLOTS, ahead + 8 * group, stages,
              slots + team * SLOTS * SLOT, group, shape);
      return;
    }
    release_registers<24>();
    const int producer = warp - CONSUMERS / 32;
    if (lane != 0) return;
    if (producer == 0) {
      const unsigned char* const tile_weights = weights + static_cast<size_t>(tile_n) * (STEPS * STAGE);
      Ring stage(STAGES);
      for (int tile = blockIdx.x; tile < shape.tiles; tile += RESIDENT ? shape.tiles : gridDim.x)
        for (int step = 0; step < STEPS; ++step) {
          mbarrier_wait(stage_empty + 8 * stage.slot, stage.parity ^ 1);
          mbarrier_arrive_expect(stage_full + 8 * stage.slot, STAGE);
          bulk_copy(stages + stage.slot * STAGE, tile_weights + step * STAGE, STAGE, stage_full + 8 * stage.slot);
          stage.advance();
        }
    } else if (producer <= TEAMS) {
      const int team = producer - 1;
      wait_for_previous();
      Ring slot(SLOTS);
      for (int tile = blockIdx.x * TEAMS + team; tile < shape.tiles; tile += gridDim.x * TEAMS)
        for (int block = 0; block < K_BLOCKS; ++block) {
          const unsigned target = slots + (team * SLOTS + slot.slot) * SLOT;
          const unsigned full = slot_full + 8 * (team * SLOTS + slot.slot);
          mbarrier_wait(slot_empty + 8 * (team * SLOTS + slot.slot), slot.parity ^ 1);
          mbarrier_arrive_expect(full, 2 * BOX);
          const int row = tile * TILE_M / PAIRS - 1;
          box_copy(target, &input, full, block * PIXEL, 0, row, 0);
          box_copy(target + PLANE, &input, full, block * PIXEL, -1, row, 0);
          slot.advance();
        }
    }
  }

  // A warpgroup's tiles.
  static __device__ __forceinline__ void consume(const WinogradPair* pairs, unsigned char* __restrict__ output,
                                                 unsigned stage_full, unsigned stage_empty, unsigned slot_full,
                                                 unsigned slot_empty, unsigned ahead, unsigned stages, unsigned slots,
                                                 int group, const PairsShape& shape) {
    const int lane = threadIdx.x % 32, quad = lane % 4;
    const int first_tile = blockIdx.x * TEAMS + group / WARPGROUPS, row_bytes = shape.out_channels / 2;
    // The first of the two pairs of a tile that this thread holds; the second is 8 further.
    const int thread_pair = group % WARPGROUPS * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
    wait_for_previous();
    if (shape.staggered && group > 0 && first_tile < shape.tiles) mbarrier_wait(ahead - 8, 0);

    Ring stage(STAGES), first_slot(SLOTS);
#pragma unroll 1
    for (int tile = first_tile; tile < shape.tiles; tile += gridDim.x * TEAMS) {
      unsigned offsets[2][3];  // in a plane, of the column that has the pair's place, for each row of taps
      int pixel[2];            // the pair's first one; negative where there is none
      bool second[2];          // whether the other one exists
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pair = tile * TILE_M + thread_pair + 8 * half, row = pair / PAIRS, place = pair - row * PAIRS;
        const int h = row % shape.height;
        const unsigned offset = (row - tile * TILE_M / PAIRS) * PITCH + place * PIXEL;
        offsets[half][0] = (h > 0 ? offset : ZEROS) + quad * (PIXEL / 4);
        offsets[half][1] = offset + PITCH + quad * (PIXEL / 4);
        offsets[half][2] = (h + 1 < shape.height ? offset + 2 * PITCH : ZEROS) + quad * (PIXEL / 4);
        pixel[half] = row < shape.rows ? row * WIDTH + 2 * place : -1;
        second[half] = 2 * place + 1 < WIDTH;
      }
      int sums[2][TILE_N / 2] = {};  // set, for the compiler would else copy registers between the products
      unsigned fragments[2][2][2][4];
      int previous = 0;
      Ring slot = first_slot;

      unsigned d[2][4][2];  // of two pairs, a column, 16 channels
      auto read = [&](auto phase, auto r, const Ring& from) {
        constexpr int PHASE = decltype(phase)::value, R = decltype(r)::value;
        if (PHASE == 0 && R == 0) mbarrier_wait(slot_full + 8 * from.slot, from.parity);
        const unsigned source = slots + from.slot * SLOT;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int x = 1 - PHASE; x < 3 + PHASE; ++x)
            load_words(d[half][x], source + offsets[half][R] + (x % 2 ? 0 : PLANE) + x / 2 * PIXEL);
      };
      // Positions 1 and 2, or 0 and 3, of a row of taps and a block of channels.
      auto multiply = [&](auto phase, auto parity, auto r, int block) {
        constexpr int PHASE = decltype(phase)::value, R = decltype(r)::value;
        auto& a = fragments[decltype(parity)::value];
        if (!AHEAD || (block == 0 && R == 0)) read(phase, r, slot);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int high = 0; high < 2; ++high) {
              unsigned b[4];
#pragma unroll
              for (int x = 1 - PHASE; x < 3 + PHASE; ++x)
                b[x] = (high ? d[half][x][i] >> 4 : d[half][x][i]) & 0x0F0F0F0Fu;
              // Four channels at once: no byte leaves 0 ... 31.
              a[0][i][2 * high + half] = PHASE ? b[0] + SIXTEENS - b[2] : b[1] + b[2];
              a[1][i][2 * high + half] = PHASE ? b[1] + SIXTEENS - b[3] : b[2] + SIXTEENS - b[1];
            }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          pin_registers(a[0][i]);
          pin_registers(a[1][i]);
        }
        Ring next = slot;
        if (R == 2) next.advance();
        if (AHEAD && (R < 2 || block + 1 < K_BLOCKS)) read(phase, Constant<(R + 1) % 3>{}, next);
        mbarrier_wait(stage_full + 8 * stage.slot, RESIDENT ? 0 : stage.parity);
        const unsigned long long descriptor = wgmma_descriptor(stages + stage.slot * STAGE, TILE_N * 16, 128);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int position = 0; position < 2; ++position)
            Wgmma<TILE_N>::mma(sums[position], a[position][i], descriptor + (position * 2 + i) * (K_STEP_BYTES / 16),
                               1);
        wgmma_commit();
        wgmma_wait<1>();  // the fragments of the step before are free again, and its stage
        if (!RESIDENT && block + R > 0 && lane == 0) mbarrier_arrive(stage_empty + 8 * previous);
        previous = stage.slot;
        stage.advance();
        if (PHASE == 1 && R == 2 && lane == 0) mbarrier_arrive(slot_empty + 8 * slot.slot);
        slot = next;
      };
      auto multiply_all = [&](auto phase) {
#pragma unroll 1
        for (int block = 0; block < K_BLOCKS; block += 2) {
          multiply(phase, Constant<0>{}, Constant<0>{}, block);
          multiply(phase, Constant<1>{}, Constant<1>{}, block);
          multiply(phase, Constant<0>{}, Constant<2>{}, block);
          if (decltype(phase)::value == 0 && block == 0 && tile == first_tile && lane == 0) mbarrier_arrive(ahead);
          multiply(phase, Constant<1>{}, Constant<0>{}, block + 1);
          multiply(phase, Constant<0>{}, Constant<1>{}, block + 1);
          multiply(phase, Constant<1>{}, Constant<2>{}, block + 1);
        }
        wgmma_wait<0>();
        pin_registers(sums[0]);
        pin_registers(sums[1]);
        if (!RESIDENT && lane == 0) mbarrier_arrive(stage_empty + 8 * previous);
      };

      multiply_all(Constant<0>{});
#pragma unroll
      for (int j = 0; j < TILE_N / 8; ++j) {
        const WinogradPair pair = pairs[j * 4 + quad];
#pragma unroll
        for (int e = 4 * j; e < 4 * j + 4; ++e) {
          const int sum = sums[0][e] + sums[1][e] + pair.offset[0][e % 2];
          const int difference = sums[0][e] - sums[1][e] + pair.offset[1][e % 2];
          sums[0][e] = sum;
          sums[1][e] = difference;
        }
      }
      pin_registers(sums[0]);
      pin_registers(sums[1]);
      slot = first_slot;
      multiply_all(Constant<1>{});
      first_slot = slot;

      unsigned packed[2][2][OUT_WORDS];  // of the pair's two outputs, of both pairs
#pragma unroll
      for (int j = TILE_N / 8 - 1; j >= 0; --j) {
        const WinogradPair pair = pairs[j * 4 + quad];
#pragma unroll
        for (int x = 0; x < 2; ++x)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            int y[2];
#pragma unroll
            for (int channel = 0; channel < 2; ++channel)
              y[channel] = __float_as_int(__fmaf_rd(__int_as_float(sums[x][4 * j + 2 * half + channel]),
                                                    pair.factor[channel], pair.correction[channel]));
            unsigned& word = packed[x][half][j / 4];
            word = pack_u4(y[1], y[0], j % 4 == 3 ? 0 : word);
          }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (pixel[half] < 0) continue;
        unsigned char* const target = output + static_cast<size_t>(pixel[half]) * row_bytes;
        store_words(target, packed[0][half]);
        if (second[half]) store_words(target + row_bytes, packed[1][half]);
      }
    }
  }
};
