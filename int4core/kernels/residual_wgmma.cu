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
// at
//   a time; with AHEAD the product of the next chunk runs under the requantisation of this one.
// - A chunk's results replace the residual where that lies; the slot then leaves as whole boxes: residual_boxes.cuh.
//
// Compile-time constants: C_IN, TILE_N, SUBTILES, TEAMS, SLOTS, CHUNK, AHEAD.
#include "ptx/bulk_copy.cuh"
#include "ptx/bulk_store.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/named_barrier.cuh"
#include "residual_boxes.cuh"

template <int C_IN, int TILE_N, int SUBTILES, int TEAMS, int SLOTS, int CHUNK, bool AHEAD>
struct ResidualWgmma {
  using Boxes = ResidualBoxes<C_IN, SUBTILES, CHUNK>;
  static constexpr int TILE_M = Boxes::TILE_M;  // pixels of a team's tile
  static constexpr int CHUNKS = TILE_N / CHUNK;
  static constexpr int BOX_ROW = Boxes::BOX_ROW, BOX = Boxes::BOX, BOXES = TILE_N / (2 * BOX_ROW);
  static constexpr int IN_BYTES = TILE_M * C_IN / 2, SLOT = BOXES * BOX + IN_BYTES;
  static constexpr int WEIGHT_BYTES = C_IN * TILE_N;
  static constexpr int CONSUMERS = TEAMS * 128;
  static constexpr int THREADS = CONSUMERS + 128;
  static constexpr int CONSUMER_REGISTERS = TEAMS == 2 ? 240 : 160;
  static constexpr int BLOCKS = 1;  // a multiprocessor
  static constexpr int ALIGNMENT = Boxes::ALIGNMENT;
  static_assert(TEAMS == 2 || TEAMS == 3);
  static_assert(TILE_N % (2 * BOX_ROW) == 0 && CHUNKS >= 2 && SLOTS >= 2 && SLOT % ALIGNMENT == 0);

  static __device__ __forceinline__ void run(const TensorMap& input, const TensorMap& residual, const TensorMap& output,
                                             const unsigned char* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels, int tiles) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[1 + TEAMS * 2 * SLOTS];
    __shared__ ChannelPair pairs[TILE_N / 2];

    const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const bool producer = warp >= CONSUMERS / 32;
    const int team = producer ? warp - CONSUMERS / 32 : warp / 4;
    const int tile_n = blockIdx.y, first_byte = tile_n * (TILE_N / 2);
    const unsigned weight_barrier = shared_address(barriers);
    const unsigned full = weight_barrier + 8 + team * 16 * SLOTS, empty = full + 8 * SLOTS;
    const unsigned base = (shared_address(memory) + ALIGNMENT - 1) & ~(ALIGNMENT - 1u);
    const unsigned slots = base + team * SLOTS * SLOT, weight_base = base + TEAMS * SLOTS * SLOT;

    if (threadIdx.x == 0) {
      for (int i = 0; i < 1 + TEAMS * 2 * SLOTS; ++i) mbarrier_init(weight_barrier + 8 * i, 1);
      mbarrier_init_fence();
    }
    for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) pairs[i] = channels[tile_n * (TILE_N / 2) + i];
    __syncthreads();

    let_next_start();
    const int first_tile = blockIdx.x * TEAMS + team, tile_step = gridDim.x * TEAMS;
    Ring ring(SLOTS);

    if (producer) {
      release_registers<24>();
      if (team >= TEAMS || lane != 0) return;
      if (team == 0) {
        mbarrier_arrive_expect(weight_barrier, WEIGHT_BYTES);
        bulk_copy(weight_base, weights + static_cast<size_t>(tile_n) * WEIGHT_BYTES, WEIGHT_BYTES, weight_barrier);
      }
      wait_for_previous();
      for (int tile = first_tile; tile < tiles; tile += tile_step) {
        const unsigned slot = slots + ring.slot * SLOT, barrier = full + 8 * ring.slot;
        mbarrier_wait(empty + 8 * ring.slot, ring.parity ^ 1);
        mbarrier_arrive_expect(barrier, SLOT);
        rows_copy(slot + BOXES * BOX, &input, barrier, 0, tile * TILE_M);
        for (int box = 0; box < BOXES; ++box)
          rows_copy(slot + box * BOX, &residual, barrier, first_byte + box * BOX_ROW, tile * TILE_M);
        ring.advance();
      }
      return;
    }

    claim_registers<CONSUMER_REGISTERS>();
    wait_for_previous();
    const Boxes boxes(warp, lane);
    const unsigned long long descriptor = wgmma_descriptor(weight_base, CHUNK * 16, 128);
    const bool leader = threadIdx.x % 128 == 0;
    int previous = -1;  // the slot that the copy engine may still read
    mbarrier_wait(weight_barrier, 0);

    for (int tile = first_tile; tile < tiles; tile += tile_step) {
      const unsigned slot = slots + ring.slot * SLOT;
      mbarrier_wait(full + 8 * ring.slot, ring.parity);
      typename Boxes::Input a;
      boxes.load_input(a, slot + BOXES * BOX);
      typename Boxes::Sums chunk_sums[AHEAD ? 2 : 1];

      if (AHEAD) Boxes::begin(chunk_sums[0], a, descriptor, 0);
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        auto& sums = chunk_sums[AHEAD ? chunk % 2 : 0];
        const bool more = AHEAD && chunk + 1 < CHUNKS;
        if (!AHEAD) Boxes::begin(sums, a, descriptor, chunk);
        if (more) Boxes::begin(chunk_sums[AHEAD ? (chunk + 1) % 2 : 0], a, descriptor, chunk + 1);
        typename Boxes::Words kept, packed;
        const unsigned place = boxes.place(slot, chunk);
        Boxes::load(kept, place);
        if (more) {
          wgmma_wait<1>();
        } else {
          wgmma_wait<0>();
        }
        boxes.template requantize<0>(sums, pairs, chunk, kept, packed);
        Boxes::share(place, packed);
        if (chunk == 1 && leader && previous >= 0) {  // by now the tile before should have left its slot
          bulk_store_wait_read<0>();
          mbarrier_arrive(empty + 8 * previous);
        }
      }
      fence_async_proxy();
      named_barrier(1 + team, 128);
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
