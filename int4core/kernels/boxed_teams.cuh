// How a block of threads works on sm_90a where the residual comes in boxes (residual_boxes.cuh): TEAMS warpgroups, each
// with its own tiles and a ring of SLOTS slots of SLOT bytes that a producer warp of its own keeps filled; the weights
// stay in shared memory behind the rings.
#pragma once
#include "ptx/bulk_copy.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "residual_boxes.cuh"

template <int TEAMS, int SLOTS, int SLOT>
struct BoxedTeams {
  static constexpr int CONSUMERS = TEAMS * 128;
  static constexpr int THREADS = CONSUMERS + 128;
  static constexpr int CONSUMER_REGISTERS = TEAMS == 2 ? 240 : 160;
  static constexpr int BARRIERS = 1 + TEAMS * 2 * SLOTS;  // of the weights; of each team's slots, full and empty
  static_assert(TEAMS == 2 || TEAMS == 3);
  static_assert(SLOTS >= 2 && SLOT % BOX_ALIGNMENT == 0);

  int warp, lane, team;
  bool producer;
  unsigned weights;      // where they lie
  unsigned rings;        // the team's slots
  unsigned weight_full;  // barriers: of the weights
  unsigned full, empty;  // and of the team's slots
  int first, step;       // the team's tiles

  // `emptied_by` threads of a team say that a slot is empty. To be made by all threads, which then meet.
  __device__ __forceinline__ BoxedTeams(unsigned long long (&barriers)[BARRIERS], unsigned char* memory,
                                        int emptied_by) {
    // Through lane 0, so that the compiler sees a warp-uniform value.
    warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
    lane = threadIdx.x % 32;
    producer = warp >= CONSUMERS / 32;
    team = producer ? warp - CONSUMERS / 32 : warp / 4;
    weight_full = shared_address(barriers);
    full = weight_full + 8 + team * 16 * SLOTS;
    empty = full + 8 * SLOTS;
    const unsigned base = first_box(memory);
    rings = base + team * SLOTS * SLOT;
    weights = base + TEAMS * SLOTS * SLOT;
    first = blockIdx.x * TEAMS + team;
    step = gridDim.x * TEAMS;
    if (threadIdx.x == 0) {
      mbarrier_init(weight_full, 1);
      for (int i = 0; i < TEAMS * 2 * SLOTS; ++i)
        mbarrier_init(weight_full + 8 + 8 * i, i / SLOTS % 2 == 0 ? 1 : emptied_by);
      mbarrier_init_fence();
    }
  }

  __device__ __forceinline__ unsigned slot(const Ring& ring) const { return rings + ring.slot * SLOT; }

  // A producer warp: copy_weights(barrier), of `weight_bytes`, for the block; fetch(slot, barrier, tile), of
  // `tile_bytes`, for each tile of the team.
  template <class Weights, class Fetch>
  __device__ __forceinline__ void produce(int tiles, int weight_bytes, int tile_bytes, Weights copy_weights,
                                          Fetch fetch) const {
    release_registers<24>();
    if (team >= TEAMS || lane != 0) return;
    if (team == 0) {
      mbarrier_arrive_expect(weight_full, weight_bytes);
      copy_weights(weight_full);
    }
    wait_for_previous();
    Ring ring(SLOTS);
    for (int tile = first; tile < tiles; tile += step) {
      const unsigned barrier = full + 8 * ring.slot;
      mbarrier_wait(empty + 8 * ring.slot, ring.parity ^ 1);
      mbarrier_arrive_expect(barrier, tile_bytes);
      fetch(slot(ring), barrier, tile);
      ring.advance();
    }
  }
};
