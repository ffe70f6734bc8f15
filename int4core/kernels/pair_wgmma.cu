// Two 1x1 convolutions of packed u4 activations on sm_90a, one after the other: the last one of a block, with the
// block's input as residual, and the first one of the next block, which reads what the first gives.
//
//   wide (pixels x K_MID) = requantised(input (pixels x C_IN) * first weights + residual)
//   narrow (pixels x K_OUT) = requantised(wide * second weights)
//
// The wide tensor is written, since the next block adds it, but not read again: what a thread packs of it is, as it
// lies in its registers, A of the second product. Both weights stay in shared memory.
//
// - One producer warp per team keeps a ring of SLOTS slots filled: a tile's rows of the residual, 128 bytes of each in
//   a box, swizzled, and of the input.
// - A team is one warpgroup on a tile of SUBTILES * 64 pixels. It takes the wide channels CHUNK at a time; with AHEAD
//   the first product of the next chunk runs under the requantisation of this one.
// - A chunk's results replace the residual where that lies; the slot then leaves as whole boxes: residual_boxes.cuh.
//
// Compile-time constants: C_IN, K_MID, K_OUT, SUBTILES, TEAMS, SLOTS, CHUNK, AHEAD.
#include "ptx/bulk_copy.cuh"
#include "ptx/bulk_store.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/named_barrier.cuh"
#include "residual_boxes.cuh"

template <int C_IN, int K_MID, int K_OUT, int SUBTILES, int TEAMS, int SLOTS, int CHUNK, bool AHEAD>
struct PairWgmma {
  using Boxes = ResidualBoxes<C_IN, SUBTILES, CHUNK>;
  static constexpr int TILE_M = Boxes::TILE_M;  // pixels of a team's tile
  static constexpr int CHUNK_WORDS = Boxes::CHUNK_WORDS, CHUNKS = K_MID / CHUNK;
  static constexpr int BOX_ROW = Boxes::BOX_ROW, BOX = Boxes::BOX, BOXES = K_MID / (2 * BOX_ROW);
  static constexpr int IN_BYTES = TILE_M * C_IN / 2, OUT_BYTES = TILE_M * K_OUT / 2;
  static constexpr int SLOT = BOXES * BOX + (IN_BYTES > OUT_BYTES ? IN_BYTES : OUT_BYTES);
  static constexpr int FIRST_BYTES = C_IN * K_MID, SECOND_BYTES = K_MID * K_OUT;  // of weights
  static constexpr int CONSUMERS = TEAMS * 128;
  static constexpr int THREADS = CONSUMERS + 128;
  static constexpr int CONSUMER_REGISTERS = TEAMS == 2 ? 240 : 160;
  static constexpr int BLOCKS = 1;  // a multiprocessor
  static constexpr int ALIGNMENT = Boxes::ALIGNMENT;
  static_assert(TEAMS == 2 || TEAMS == 3);
  static_assert(K_MID % (2 * BOX_ROW) == 0 && CHUNKS >= 2 && SLOTS >= 2 && SLOT % ALIGNMENT == 0);

  static __device__ __forceinline__ void run(const TensorMap& input, const TensorMap& residual, const TensorMap& wide,
                                             const TensorMap& narrow, const unsigned char* __restrict__ first_weights,
                                             const unsigned char* __restrict__ second_weights,
                                             const ChannelPair* __restrict__ wide_channels,
                                             const ChannelPair* __restrict__ narrow_channels, int tiles) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[1 + TEAMS * 2 * SLOTS];
    __shared__ ChannelPair wide_pairs[K_MID / 2], narrow_pairs[K_OUT / 2];

    const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const bool producer = warp >= CONSUMERS / 32;
    const int team = producer ? warp - CONSUMERS / 32 : warp / 4;
    const unsigned weight_barrier = shared_address(barriers);
    const unsigned full = weight_barrier + 8 + team * 16 * SLOTS, empty = full + 8 * SLOTS;
    const unsigned base = (shared_address(memory) + ALIGNMENT - 1) & ~(ALIGNMENT - 1u);
    const unsigned slots = base + team * SLOTS * SLOT;
    const unsigned first_base = base + TEAMS * SLOTS * SLOT, second_base = first_base + FIRST_BYTES;

    if (threadIdx.x == 0) {
      for (int i = 0; i < 1 + TEAMS * 2 * SLOTS; ++i) mbarrier_init(weight_barrier + 8 * i, 1);
      mbarrier_init_fence();
    }
    for (int i = threadIdx.x; i < K_MID / 2; i += THREADS) wide_pairs[i] = wide_channels[i];
    for (int i = threadIdx.x; i < K_OUT / 2; i += THREADS) narrow_pairs[i] = narrow_channels[i];
    __syncthreads();

    let_next_start();
    const int first_tile = blockIdx.x * TEAMS + team, tile_step = gridDim.x * TEAMS;
    Ring ring(SLOTS);

    if (producer) {
      release_registers<24>();
      if (team >= TEAMS || lane != 0) return;
      if (team == 0) {
        mbarrier_arrive_expect(weight_barrier, FIRST_BYTES + SECOND_BYTES);
        bulk_copy(first_base, first_weights, FIRST_BYTES, weight_barrier);
        bulk_copy(second_base, second_weights, SECOND_BYTES, weight_barrier);
      }
      wait_for_previous();
      for (int tile = first_tile; tile < tiles; tile += tile_step) {
        const unsigned slot = slots + ring.slot * SLOT, barrier = full + 8 * ring.slot;
        mbarrier_wait(empty + 8 * ring.slot, ring.parity ^ 1);
        mbarrier_arrive_expect(barrier, IN_BYTES + BOXES * BOX);
        rows_copy(slot + BOXES * BOX, &input, barrier, 0, tile * TILE_M);
        for (int box = 0; box < BOXES; ++box)
          rows_copy(slot + box * BOX, &residual, barrier, box * BOX_ROW, tile * TILE_M);
        ring.advance();
      }
      return;
    }

    claim_registers<CONSUMER_REGISTERS>();
    wait_for_previous();
    const Boxes boxes(warp, lane);
    const unsigned long long first_descriptor = wgmma_descriptor(first_base, CHUNK * 16, 128);
    const unsigned long long second_descriptor = wgmma_descriptor(second_base, K_OUT * 16, 128);
    const bool leader = threadIdx.x % 128 == 0;
    int previous = -1;  // the slot that the copy engine may still read
    mbarrier_wait(weight_barrier, 0);

    for (int tile = first_tile; tile < tiles; tile += tile_step) {
      const unsigned slot = slots + ring.slot * SLOT, rows = slot + BOXES * BOX;
      mbarrier_wait(full + 8 * ring.slot, ring.parity);
      typename Boxes::Input a;
      boxes.load_input(a, rows);
      int narrow_sums[SUBTILES][K_OUT / 2];
      typename Boxes::Sums wide_sums[AHEAD ? 2 : 1];

      if (AHEAD) Boxes::begin(wide_sums[0], a, first_descriptor, 0);
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        auto& sums = wide_sums[AHEAD ? chunk % 2 : 0];
        const bool more = AHEAD && chunk + 1 < CHUNKS;
        if (!AHEAD) Boxes::begin(sums, a, first_descriptor, chunk);
        if (more) Boxes::begin(wide_sums[AHEAD ? (chunk + 1) % 2 : 0], a, first_descriptor, chunk + 1);
        typename Boxes::Words kept, packed;
        const unsigned place = boxes.place(slot, chunk);
        Boxes::load(kept, place);
        // The second product of the chunk before is done with its fragments, too.
        if (more) {
          wgmma_wait<1>();
        } else {
          wgmma_wait<0>();
        }
        boxes.template requantize<0>(sums, wide_pairs, chunk, kept, packed);
        Boxes::share(place, packed);
        unsigned b[SUBTILES][CHUNK_WORDS][4];
#pragma unroll
        for (int sub = 0; sub < SUBTILES; ++sub) {
          unpack_rows(b[sub], packed[sub][0], packed[sub][1]);
#pragma unroll
          for (int i = 0; i < CHUNK_WORDS; ++i) pin_registers(b[sub][i]);
        }
        wgmma_fence();
#pragma unroll
        for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
          for (int i = 0; i < CHUNK_WORDS; ++i)
            Wgmma<K_OUT>::mma(narrow_sums[sub], b[sub][i], second_descriptor + (chunk * CHUNK_WORDS + i) * (2 * K_OUT),
                              chunk + i);
        wgmma_commit();
        if (chunk == 1 && leader && previous >= 0) {  // by now the tile before should have left its slot
          bulk_store_wait_read<0>();
          mbarrier_arrive(empty + 8 * previous);
        }
      }
      wgmma_wait<0>();
#pragma unroll
      for (int sub = 0; sub < SUBTILES; ++sub) pin_registers(narrow_sums[sub]);
      unsigned packed[SUBTILES][2][K_OUT / 32];
      const unsigned unused[SUBTILES][2][1] = {};
#pragma unroll
      for (int word = 0; word < K_OUT / 32; ++word)
        requantize_words<0, 0>(narrow_sums, narrow_pairs, boxes.quad, word, unused, packed);
      named_barrier(1 + team, 128);  // everyone has read the input, whose place the narrow rows take
#pragma unroll
      for (int sub = 0; sub < SUBTILES; ++sub)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          share_words(rows + (boxes.row + sub * 64 + half * 8) * (K_OUT / 2) + boxes.quad * (K_OUT / 8),
                      packed[sub][half]);
      fence_async_proxy();
      named_barrier(1 + team, 128);
      if (leader) {
        for (int box = 0; box < BOXES; ++box) rows_store(&wide, slot + box * BOX, box * BOX_ROW, tile * TILE_M);
        rows_store(&narrow, rows, 0, tile * TILE_M);
        bulk_store_commit();
      }
      previous = ring.slot;
      ring.advance();
    }
    if (leader) bulk_store_wait<0>();
  }
};
