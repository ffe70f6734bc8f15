// The last 1x1 convolution of a network's last block on sm_90a, the block's input as residual, and the average pool
// over whole images of at most 64 pixels after it:
//
//   features (images x channels) = mean over pixels of requantised(input (pixels x C_IN) * weights + residual)
//
// The convolution's u7 outputs stay in registers. A block makes TILE_N channels; their weights stay in shared memory.
//
// - One producer warp per team keeps a ring of SLOTS slots filled: an image's rows of the residual and of the input,
//   128 bytes of each in a box, swizzled.
// - A team, one warpgroup, takes an image: 64 rows of a product, those beyond PIXELS of anything. It unpacks the input
//   once, and takes the channels CHUNK at a time; with AHEAD the product of the next chunk runs under the
//   requantisation of this one.
// - A warp adds a chunk's rows up by exchanging halves of what is left; what the four warps have of the image they
//   leave in shared memory, in one of two places in turn.
//
// Compile-time constants: C_IN, TILE_N, PIXELS, TEAMS, SLOTS, CHUNK, AHEAD.
#include "boxed_teams.cuh"
#include "ptx/named_barrier.cuh"
#include "residual_boxes.cuh"

template <int C_IN, int TILE_N, int PIXELS, int TEAMS, int SLOTS, int CHUNK, bool AHEAD>
struct PooledWgmma {
  using Boxes = ResidualBoxes<C_IN, 1, CHUNK, PIXELS>;
  static constexpr int CHUNKS = TILE_N / CHUNK;
  static constexpr int BOX_ROW = Boxes::BOX_ROW, BOX = Boxes::BOX, BOXES = TILE_N / (2 * BOX_ROW);
  static constexpr int IN_BOXES = C_IN / (2 * BOX_ROW), SLOT = (BOXES + IN_BOXES) * BOX;
  static constexpr int WEIGHT_BYTES = C_IN * TILE_N;
  using Teams = BoxedTeams<TEAMS, SLOTS, SLOT>;
  static constexpr int THREADS = Teams::THREADS;
  static constexpr int BLOCKS = 1;          // a multiprocessor
  static constexpr int WORDS = CHUNK / 16;  // of four u7 outputs, that a thread has of a row of a chunk
  static constexpr int SUMS = CHUNK / 8;    // two channels each, 16 bits of each: as many as there are rows
  static constexpr int TILE_SUMS = TILE_N / 2;
  static_assert(CHUNK == 64, "eight sums for the eight lanes that hold rows of the same channels");
  static_assert(PIXELS <= 64 && TILE_N % (2 * BOX_ROW) == 0 && CHUNKS >= 2 && Boxes::BOXED_INPUT);

  static __device__ __forceinline__ void run(const TensorMap& input, const TensorMap& residual,
                                             const unsigned char* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, int images, int features) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[Teams::BARRIERS];
    __shared__ ChannelPair pairs[TILE_N / 2];
    __shared__ unsigned warp_sums[TEAMS][2][4][TILE_SUMS];
    const Teams teams(barriers, memory, 4);  // warps
    const int warp = teams.warp, lane = teams.lane, team = teams.team;
    const int tile_n = blockIdx.y, first_byte = tile_n * (TILE_N / 2);
    for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) pairs[i] = channels[tile_n * (TILE_N / 2) + i];
    __syncthreads();

    let_next_start();
    if (teams.producer) {
      auto copy_weights = [&](unsigned barrier) {
        bulk_copy(teams.weights, weights + static_cast<size_t>(tile_n) * WEIGHT_BYTES, WEIGHT_BYTES, barrier);
      };
      auto fetch = [&](unsigned slot, unsigned barrier, int image) {
        for (int box = 0; box < IN_BOXES; ++box)
          rows_copy(slot + (BOXES + box) * BOX, &input, barrier, box * BOX_ROW, image * PIXELS);
        for (int box = 0; box < BOXES; ++box)
          rows_copy(slot + box * BOX, &residual, barrier, first_byte + box * BOX_ROW, image * PIXELS);
      };
      teams.produce(images, WEIGHT_BYTES, (BOXES + IN_BOXES) * PIXELS * BOX_ROW, copy_weights, fetch);
      return;
    }

    claim_registers<Teams::CONSUMER_REGISTERS>();
    wait_for_previous();
    const Boxes boxes(warp, lane);
    const int group = lane / 4;
    const unsigned rows[2] = {boxes.row < PIXELS ? ~0u : 0, boxes.row + 8 < PIXELS ? ~0u : 0};
    const unsigned long long descriptor = wgmma_descriptor(teams.weights, CHUNK * 16, 128);
    int place = 0;  // of the two for sums
    mbarrier_wait(teams.weight_full, 0);
    Ring ring(SLOTS);

    for (int image = teams.first; image < images; image += teams.step) {
      const unsigned slot = teams.slot(ring);
      mbarrier_wait(teams.full + 8 * ring.slot, ring.parity);
      typename Boxes::Input a;
      boxes.load_input(a, slot + BOXES * BOX);
      auto add_up_chunk = [&](int chunk, auto& sums, const auto& kept, unsigned) {
        unsigned packed[1][2][WORDS];
        boxes.template requantize<1, 3>(sums, pairs, chunk, kept, packed);

        unsigned left[SUMS];
#pragma unroll
        for (int word = 0; word < WORDS; ++word) {
          // Two u7 are below 2^8.
          const unsigned both = (packed[0][0][word] & rows[0]) + (packed[0][1][word] & rows[1]);
          left[2 * word] = both & 0x00FF00FFu;
          left[2 * word + 1] = (both >> 8) & 0x00FF00FFu;
        }
        // A lane gives the half that is not its own for the other lane's part of its own half.
#pragma unroll
        for (int half = SUMS / 2; half > 0; half /= 2) {
          const bool upper = group & half;
#pragma unroll
          for (int i = 0; i < half; ++i) {
            const unsigned given = upper ? left[i] : left[i + half], own = upper ? left[i + half] : left[i];
            left[i] = own + __shfl_xor_sync(0xFFFFFFFFu, given, 4 * half);
          }
        }
        warp_sums[team][place][warp % 4][chunk * (CHUNK / 2) + boxes.quad * SUMS + group] = left[0];
      };
      boxes.template for_chunks<CHUNKS, AHEAD, true>(a, descriptor, pairs, slot, add_up_chunk);
      if (lane == 0) mbarrier_arrive(teams.empty + 8 * ring.slot);  // what it held has been used up
      ring.advance();

      named_barrier(1 + team, 128);
      for (int word = threadIdx.x % 128; word < TILE_N / 4; word += 128) {
        unsigned totals[2] = {};
#pragma unroll
        for (int of = 0; of < 4; ++of)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) totals[odd] += warp_sums[team][place][of][2 * word + odd];
        unsigned mean = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const unsigned total = totals[i % 2] >> (16 * (i / 2)) & 0xFFFFu;
          mean |= (2 * total + PIXELS) / (2 * PIXELS) << (8 * i);
        }
        *reinterpret_cast<unsigned*>(output + static_cast<size_t>(image) * features + tile_n * TILE_N + 4 * word) =
            mean;
      }
      place ^= 1;
    }
  }
};
