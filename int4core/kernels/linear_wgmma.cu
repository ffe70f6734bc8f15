// Fully connected layer on sm_90a: u7 (rows x features) times s8 weights -> s32 sums with bias, on wgmma.
//
// A block makes 64 * TEAMS rows x 64 classes. Its producer warp keeps a ring of SLOTS slots filled, each of 128
// features: the rows, swizzled (piece i, 16 bytes, of row r lies at place i xor (r mod 8)), and the weights. A team,
// one warpgroup, takes 64 of the rows as A, through registers: a thread's words are 32 consecutive bytes of each of its
// two rows, of four k-steps, and the weights are arranged to match.
//
// Compile-time constants: TEAMS, SLOTS.
#include "ptx/bulk_copy.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "stages.cuh"
#include "swizzle.cuh"

template <int TEAMS, int SLOTS>
struct LinearWgmma {
  static constexpr int TILE_M = 64 * TEAMS, TILE_N = 64, DEPTH = 128, STEPS = DEPTH / 32;
  static constexpr int ROW_BYTES = TILE_M * DEPTH, WEIGHT_BYTES = TILE_N * DEPTH, SLOT = ROW_BYTES + WEIGHT_BYTES;
  static constexpr int CONSUMERS = TEAMS * 128;
  static constexpr int THREADS = CONSUMERS + 32;

  static __device__ __forceinline__ void run(const TensorMap& input, const unsigned char* __restrict__ weights,
                                             const int* __restrict__ bias, int* __restrict__ output,
                                             const LinearShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[2 * SLOTS];

    const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const unsigned full = shared_address(barriers), empty = full + 8 * SLOTS;
    const unsigned base = first_box(memory);
    const int blocks = shape.features / DEPTH, first_row = blockIdx.y * TILE_M;

    if (threadIdx.x == 0) {
      for (int i = 0; i < SLOTS; ++i) {
        mbarrier_init(full + 8 * i, 1);
        mbarrier_init(empty + 8 * i, 4 * TEAMS);
      }
      mbarrier_init_fence();
    }
    __syncthreads();

    let_next_start();
    Ring ring(SLOTS);
    if (warp == CONSUMERS / 32) {
      if (lane != 0) return;
      const unsigned char* const tile_weights = weights + static_cast<size_t>(blockIdx.x) * blocks * WEIGHT_BYTES;
      // The weights of the first slots are under way before the kernel before is over.
      for (int block = 0; block < blocks && block < SLOTS; ++block) {
        mbarrier_arrive_expect(full + 8 * block, SLOT);
        bulk_copy(base + block * SLOT + ROW_BYTES, tile_weights + block * WEIGHT_BYTES, WEIGHT_BYTES, full + 8 * block);
      }
      wait_for_previous();
      for (int block = 0; block < blocks; ++block) {
        const unsigned slot = base + ring.slot * SLOT, barrier = full + 8 * ring.slot;
        if (block >= SLOTS) {
          mbarrier_wait(empty + 8 * ring.slot, ring.parity ^ 1);
          mbarrier_arrive_expect(barrier, SLOT);
          bulk_copy(slot + ROW_BYTES, tile_weights + block * WEIGHT_BYTES, WEIGHT_BYTES, barrier);
        }
        rows_copy(slot, &input, barrier, block * DEPTH, first_row);
        ring.advance();
      }
      return;
    }

    wait_for_previous();
    const int group = lane / 4, quad = lane % 4;
    const int row8 = dealt_row(group);
    const int thread_row = warp * 16 + row8;  // and the one 8 further
    int sums[TILE_N / 2];
    unsigned fragments[2][STEPS][4];
    int previous = 0;

    auto multiply_block = [&](auto parity, int block) {
      auto& a = fragments[decltype(parity)::value];
      const unsigned slot = base + ring.slot * SLOT;
      mbarrier_wait(full + 8 * ring.slot, ring.parity);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int piece = 0; piece < 2; ++piece) {
          unsigned words[4];
          load_words(words, slot + (thread_row + half * 8) * DEPTH + ((quad * 32 + piece * 16) ^ (row8 << 4)));
#pragma unroll
          for (int i = 0; i < 4; ++i) a[piece * 2 + i / 2][half + i % 2 * 2] = words[i];
        }
#pragma unroll
      for (int step = 0; step < STEPS; ++step) pin_registers(a[step]);
      const unsigned long long descriptor = wgmma_descriptor(slot + ROW_BYTES, TILE_N * 16, 128);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
        Wgmma<TILE_N>::mma(sums, a[step], descriptor + step * (2 * TILE_N), block + step);
      wgmma_commit();
      wgmma_wait<1>();  // the block before is done
      if (block > 0 && lane == 0) mbarrier_arrive(empty + 8 * previous);
      previous = ring.slot;
      ring.advance();
    };
    int block = 0;
    for (; block + 1 < blocks; block += 2) {
      multiply_block(Constant<0>{}, block);
      multiply_block(Constant<1>{}, block + 1);
    }
    if (block < blocks) multiply_block(Constant<0>{}, block);
    wgmma_wait<0>();
    pin_registers(sums);

#pragma unroll
    for (int i = 0; i < TILE_N / 2; ++i) {
      const int row = first_row + thread_row + i / 2 % 2 * 8,
                column = blockIdx.x * TILE_N + i / 4 * 8 + quad * 2 + i % 2;
      if (row < shape.rows && column < shape.classes)
        output[static_cast<size_t>(row) * shape.classes + column] = sums[i] + bias[column];
    }
  }
};
