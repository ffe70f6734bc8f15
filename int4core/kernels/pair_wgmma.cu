// Two 1x1 convolutions of packed u4 activations on sm_90a, one after the other: the last one of a block, with the
// block's input as residual or, for C_SOURCE > 0, a 1x1 convolution of it, and the first one of the next block, which
// reads what the first gives.
//
//   wide (pixels x K_MID) = requantised(input (pixels x C_IN) * first weights + residual)
//   residual = rescaled(source (pixels x C_SOURCE) * source weights), or a tensor
//   narrow (pixels x K_OUT) = requantised(wide * second weights)
//
// The wide tensor is written, since the next block adds it, but not read again: what a thread packs of it is, as it
// lies in its registers, A of the second product. Both weights stay in shared memory.
//
// - One producer warp per team keeps a ring of SLOTS slots filled: a tile's rows of the residual, 128 bytes of each in
//   a box, swizzled, and of the input; or of the input and of the residual convolution's.
// - A team is one warpgroup on a tile of SUBTILES * 64 pixels. It takes the wide channels CHUNK at a time; with AHEAD
//   the first product of the next chunk runs under the requantisation of this one. A residual convolution's sums are
//   rescaled where they lie, and the first product is added to them.
// - A chunk's results replace the residual where that lies, or would; the slot then leaves as whole boxes
//   (residual_boxes.cuh).
//
// Compile-time constants: C_IN, K_MID, K_OUT, SUBTILES, TEAMS, SLOTS, CHUNK, AHEAD, C_SOURCE; RESCALE_BASE and
// SATURATED (epilogue/rescale_s8.cuh).
#include "boxed_teams.cuh"
#include "epilogue/rescale_s8.cuh"
#include "narrow_rows.cuh"
#include "ptx/bulk_store.cuh"
#include "ptx/named_barrier.cuh"
#include "residual_boxes.cuh"

template <int C_IN, int K_MID, int K_OUT, int SUBTILES, int TEAMS, int SLOTS, int CHUNK, bool AHEAD, int C_SOURCE,
          int RESCALE_BASE, bool SATURATED>
struct PairWgmma {
  using Boxes = ResidualBoxes<C_IN, SUBTILES, CHUNK>;
  using Narrow = NarrowRows<K_OUT, SUBTILES, CHUNK>;
  static constexpr int TILE_M = Boxes::TILE_M;  // pixels of a team's tile
  static constexpr int CHUNKS = K_MID / CHUNK;
  static constexpr int BOX_ROW = Boxes::BOX_ROW, BOX = Boxes::BOX, BOXES = K_MID / (2 * BOX_ROW);
  static constexpr bool CONVOLVED = C_SOURCE > 0;
  using Source = ResidualBoxes<CONVOLVED ? C_SOURCE : C_IN, SUBTILES, CHUNK>;
  static constexpr int INPUT_BYTES = TILE_M * C_IN / 2, SOURCE_BYTES = TILE_M * C_SOURCE / 2;
  static constexpr int IN_BYTES = INPUT_BYTES + SOURCE_BYTES, OUT_BYTES = TILE_M * K_OUT / 2;
  static constexpr int SLOT = BOXES * BOX + (IN_BYTES > OUT_BYTES ? IN_BYTES : OUT_BYTES);
  static constexpr int FETCHED = IN_BYTES + (CONVOLVED ? 0 : BOXES * BOX);  // of a slot
  // Of weights.
  static constexpr int FIRST_BYTES = C_IN * K_MID, SECOND_BYTES = K_MID * K_OUT, SOURCE_WEIGHT_BYTES = C_SOURCE * K_MID;
  static constexpr int WEIGHT_BYTES = FIRST_BYTES + SECOND_BYTES + SOURCE_WEIGHT_BYTES;
  using Teams = BoxedTeams<TEAMS, SLOTS, SLOT>;
  static constexpr int THREADS = Teams::THREADS;
  static constexpr int BLOCKS = 1;  // a multiprocessor
  static_assert(K_MID % (2 * BOX_ROW) == 0 && CHUNKS >= 2 && !(CONVOLVED && AHEAD));

  static __device__ __forceinline__ void run(const TensorMap& input, const TensorMap& residual, const TensorMap& wide,
                                             const TensorMap& narrow, const unsigned char* __restrict__ first_weights,
                                             const unsigned char* __restrict__ second_weights,
                                             const ChannelPair* __restrict__ wide_channels,
                                             const ChannelPair* __restrict__ narrow_channels,
                                             const unsigned char* __restrict__ source_weights,
                                             const S8ResidualPair* __restrict__ source_channels, int tiles) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[Teams::BARRIERS];
    __shared__ ChannelPair wide_pairs[K_MID / 2], narrow_pairs[K_OUT / 2];
    __shared__ S8ResidualPair source_pairs[CONVOLVED ? K_MID / 2 : 1];
    const Teams teams(barriers, memory, 1);
    const unsigned second_base = teams.weights + FIRST_BYTES, source_base = second_base + SECOND_BYTES;
    for (int i = threadIdx.x; i < K_MID / 2; i += THREADS) {
      wide_pairs[i] = wide_channels[i];
      if constexpr (CONVOLVED) source_pairs[i] = source_channels[i];
    }
    for (int i = threadIdx.x; i < K_OUT / 2; i += THREADS) narrow_pairs[i] = narrow_channels[i];
    __syncthreads();

    let_next_start();
    if (teams.producer) {
      auto copy_weights = [&](unsigned barrier) {
        bulk_copy(teams.weights, first_weights, FIRST_BYTES, barrier);
        bulk_copy(second_base, second_weights, SECOND_BYTES, barrier);
        if (CONVOLVED) bulk_copy(source_base, source_weights, SOURCE_WEIGHT_BYTES, barrier);
      };
      auto fetch = [&](unsigned slot, unsigned barrier, int tile) {
        rows_copy(slot + BOXES * BOX, &input, barrier, 0, tile * TILE_M);
        if (CONVOLVED) {
          rows_copy(slot + BOXES * BOX + INPUT_BYTES, &residual, barrier, 0, tile * TILE_M);
        } else {
          for (int box = 0; box < BOXES; ++box)
            rows_copy(slot + box * BOX, &residual, barrier, box * BOX_ROW, tile * TILE_M);
        }
      };
      teams.produce(tiles, WEIGHT_BYTES, FETCHED, copy_weights, fetch);
      return;
    }

    claim_registers<Teams::CONSUMER_REGISTERS>();
    wait_for_previous();
    const Boxes boxes(teams.warp, teams.lane);
    const Source source(teams.warp, teams.lane);
    const unsigned long long first_descriptor = wgmma_descriptor(teams.weights, CHUNK * 16, 128);
    const unsigned long long second_descriptor = wgmma_descriptor(second_base, K_OUT * 16, 128);
    const unsigned long long source_descriptor = wgmma_descriptor(source_base, CHUNK * 16, 128);
    const bool leader = threadIdx.x % 128 == 0;
    int previous = -1;  // the slot that the copy engine may still read
    mbarrier_wait(teams.weight_full, 0);
    Ring ring(SLOTS);

    for (int tile = teams.first; tile < tiles; tile += teams.step) {
      const unsigned slot = teams.slot(ring), rows = slot + BOXES * BOX;
      mbarrier_wait(teams.full + 8 * ring.slot, ring.parity);
      typename Boxes::Input a;
      boxes.load_input(a, rows);
      Narrow narrow_rows;
      auto multiply_chunk = [&](int chunk, auto& sums, const auto& kept, unsigned place) {
        typename Boxes::Words packed;
        boxes.template requantize<0, 3>(sums, wide_pairs, chunk, kept, packed);
        Boxes::share(place, packed);
        narrow_rows.begin(packed, second_descriptor, chunk);
        if (chunk == 1 && leader && previous >= 0) {  // by now the tile before should have left its slot
          bulk_store_wait_read<0>();
          mbarrier_arrive(teams.empty + 8 * previous);
        }
      };
      if constexpr (CONVOLVED) {
        typename Source::Input b;
        source.load_input(b, rows + INPUT_BYTES);
        const typename Boxes::Words none = {};
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
          typename Boxes::Sums sums;
          Source::begin(sums, b, source_descriptor, chunk);
          wgmma_wait<0>();  // for what was begun of the chunk before, too
          rescale(sums, source_pairs + chunk * (CHUNK / 2), boxes.quad);
          Boxes::template begin<true>(sums, a, first_descriptor, chunk);
          wgmma_wait<0>();
          multiply_chunk(chunk, sums, none, boxes.place(slot, chunk));
        }
      } else {
        boxes.template for_chunks<CHUNKS, AHEAD, true>(a, first_descriptor, wide_pairs, slot, multiply_chunk);
      }
      wgmma_wait<0>();
      unsigned packed[SUBTILES][2][K_OUT / 32];
      narrow_rows.requantize(narrow_pairs, boxes.quad, packed);
      named_barrier(1 + teams.team, 128);  // everyone has read the input, whose place the narrow rows take
      Narrow::share(packed, rows, boxes.row, boxes.quad);
      fence_async_proxy();
      named_barrier(1 + teams.team, 128);
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

  // A residual convolution's sums of a chunk, where they lie, with the wide outputs' bias.
  static __device__ __forceinline__ void rescale(typename Boxes::Sums& sums, const S8ResidualPair* pairs, int quad) {
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub) pin_registers(sums[sub]);
    rescale_sums<RESCALE_BASE, SATURATED>(sums, pairs, quad);
#pragma unroll
    for (int sub = 0; sub < SUBTILES; ++sub) pin_registers(sums[sub]);
  }
};
