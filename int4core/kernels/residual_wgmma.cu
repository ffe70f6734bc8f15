// 1x1 convolutions of packed u4 activations on sm_90a whose residual is a packed u4 tensor, as wide as the outputs:
//
//   outputs (pixels x channels) = requantised(input (pixels x C_IN) * weights + residual)
//
// A block makes TILE_N channels; their weights stay in shared memory. Outputs leave in lines of 128 bytes, whole ones:
// half lines take as many transactions of the L2, and of the device memory where the other half is late.
//
// - One producer warp per team keeps a ring of SLOTS slots filled: a tile's rows of the residual, 128 bytes of each in
//   a box, and of the input.
// - A team is one warpgroup on a tile of SUBTILES * 64 pixels. It unpacks the input once, and takes the channels CHUNK
//   at a time; with AHEAD the product of the next chunk runs under the requantisation of this one.
// - A chunk's results replace the residual where that lies; the slot then leaves as whole boxes: residual_boxes.cuh.
//
// Compile-time constants: C_IN, TILE_N, SUBTILES, TEAMS, SLOTS, CHUNK, AHEAD, BEGUN.
#include "boxed_teams.cuh"
#include "ptx/bulk_store.cuh"
#include "ptx/named_barrier.cuh"
#include "residual_boxes.cuh"

template <int C_IN, int TILE_N, int SUBTILES, int TEAMS, int SLOTS, int CHUNK, bool AHEAD, bool BEGUN>
struct ResidualWgmma {
  using Boxes = ResidualBoxes<C_IN, SUBTILES, CHUNK>;
  static constexpr int TILE_M = Boxes::TILE_M;  // pixels of a team's tile
  static constexpr int CHUNKS = TILE_N / CHUNK;
  static constexpr int BOX_ROW = Boxes::BOX_ROW, BOX = Boxes::BOX, BOXES = TILE_N / (2 * BOX_ROW);
  static constexpr int IN_BYTES = TILE_M * C_IN / 2, SLOT = BOXES * BOX + IN_BYTES;
  static constexpr int WEIGHT_BYTES = C_IN * TILE_N;
  using Teams = BoxedTeams<TEAMS, SLOTS, SLOT>;
  static constexpr int THREADS = Teams::THREADS;
  static constexpr int BLOCKS = 1;  // a multiprocessor
  static_assert(TILE_N % (2 * BOX_ROW) == 0 && CHUNKS >= 2);

  static __device__ __forceinline__ void run(const TensorMap& input, const TensorMap& residual, const TensorMap& output,
                                             const unsigned char* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels, int tiles) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[Teams::BARRIERS];
    __shared__ ChannelPair pairs[TILE_N / 2];
    const Teams teams(barriers, memory, 1);
    const int tile_n = blockIdx.y, first_byte = tile_n * (TILE_N / 2);
    for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) pairs[i] = channels[tile_n * (TILE_N / 2) + i];
    __syncthreads();

    let_next_start();
    if (teams.producer) {
      auto copy_weights = [&](unsigned barrier) {
        bulk_copy(teams.weights, weights + static_cast<size_t>(tile_n) * WEIGHT_BYTES, WEIGHT_BYTES, barrier);
      };
      auto fetch = [&](unsigned slot, unsigned barrier, int tile) {
        rows_copy(slot + BOXES * BOX, &input, barrier, 0, tile * TILE_M);
        for (int box = 0; box < BOXES; ++box)
          rows_copy(slot + box * BOX, &residual, barrier, first_byte + box * BOX_ROW, tile * TILE_M);
      };
      teams.produce(tiles, WEIGHT_BYTES, SLOT, copy_weights, fetch);
      return;
    }

    claim_registers<Teams::CONSUMER_REGISTERS>();
    wait_for_previous();
    const Boxes boxes(teams.warp, teams.lane);
    const unsigned long long descriptor = wgmma_descriptor(teams.weights, CHUNK * 16, 128);
    const bool leader = threadIdx.x % 128 == 0;
    int previous = -1;  // the slot that the copy engine may still read
    mbarrier_wait(teams.weight_full, 0);
    Ring ring(SLOTS);

    for (int tile = teams.first; tile < tiles; tile += teams.step) {
      const unsigned slot = teams.slot(ring);
      mbarrier_wait(teams.full + 8 * ring.slot, ring.parity);
      typename Boxes::Input a;
      boxes.load_input(a, slot + BOXES * BOX);
      auto store_chunk = [&](int chunk, auto& sums, const auto& kept, unsigned place) {
        typename Boxes::Words packed;
        boxes.template requantize<0, BEGUN ? 3 : 1>(sums, pairs, chunk, kept, packed);
        Boxes::share(place, packed);
        if (chunk == 1 && leader && previous >= 0) {  // by now the tile before should have left its slot
          bulk_store_wait_read<0>();
          mbarrier_arrive(teams.empty + 8 * previous);
        }
      };
      boxes.template for_chunks<CHUNKS, AHEAD, BEGUN>(a, descriptor, pairs, slot, store_chunk);
      fence_async_proxy();
      named_barrier(1 + teams.team, 128);
      if (leader) {
        for (int box = 0; box < BOXES; ++box)
          rows_store(&output, slot + box * BOX, first_byte + box * BOX_ROW, tile * TILE_M);
        bulk_store_commit();
      }
      previous = ring.slot;
      ring.advance();
    }
    if (leader) bulk_store_wait<0>();
  }
};
