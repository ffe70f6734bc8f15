// Fully connected layer: u7 (rows x features) times s8 weights -> s32 sums with bias, for every chip from sm_75 on.
//
// A warp computes 16 * SUBS rows x 64 classes with mma.m16n8k32, straight from global memory: both operands are small,
// are read from L2, and are laid out so that a thread's part is 16 consecutive bytes. Of 64 consecutive features, a
// thread takes 16: four words, which are two k-steps; the weights are arranged to match.
// For few rows SLICES warps share the features of a tile, and add their sums in shared memory: one after another, the
// reads of L2 would take longer than all else.
// Compile-time constants: SUBS, TILES (of a block, side by side), SLICES.
#include "ptx/dependency.cuh"
#include "ptx/mma.cuh"
#include "words.cuh"

template <int SUBS, int TILES, int SLICES>
struct Linear {
  static constexpr int WARP_M = 16 * SUBS, WARP_N = 64, THREADS = 32 * TILES * SLICES;
  static constexpr int SUMS = SUBS * (WARP_N / 2);  // of a thread
  static constexpr int BLOCKS_AT_ONCE = 2;          // of features, that a slice reads
  static_assert(SLICES == 1 || TILES == 1, "warps stand side by side, or share a tile");

  static __device__ __forceinline__ void run(const unsigned char* __restrict__ input, const uint4* __restrict__ weights,
                                             const int* __restrict__ bias, int* __restrict__ output,
                                             const LinearShape& shape) {
    let_next_start();
    wait_for_previous();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const int tile_n = SLICES > 1 ? blockIdx.x : blockIdx.x * TILES + warp, first_class = tile_n * WARP_N,
              first_row = blockIdx.y * WARP_M;
    if (first_class >= shape.classes) return;
    const unsigned char* rows[SUBS][2];
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = min(first_row + sub * 16 + half * 8 + group, shape.rows - 1);
        rows[sub][half] = input + static_cast<size_t>(row) * shape.features + quad * 16;
      }
    const int blocks = shape.features / 64;
    const uint4* operands = weights + static_cast<size_t>(tile_n) * blocks * (2 * WARP_N / 16 * 32) + lane;

    int sums[SUBS][WARP_N / 2] = {};
    auto multiply_block = [&](int block) {
      unsigned a[SUBS][2][4];
#pragma unroll
      for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
        for (int half = 0; half < 2; ++half) read_words(a[sub][half], rows[sub][half] + block * 64);
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int j = 0; j < WARP_N / 16; ++j) {
          unsigned b[4];
          read_words(b, operands + ((block * 2 + step) * (WARP_N / 16) + j) * 32);
#pragma unroll
          for (int sub = 0; sub < SUBS; ++sub) {
            const unsigned fragment[4] = {a[sub][0][2 * step], a[sub][1][2 * step], a[sub][0][2 * step + 1],
                                          a[sub][1][2 * step + 1]};
            mma_u8s8(&sums[sub][8 * j], fragment, b[0], b[1]);
            mma_u8s8(&sums[sub][8 * j + 4], fragment, b[2], b[3]);
          }
        }
    };
    auto write = [&](int i, int sum) {
      const int sub = i / (WARP_N / 2), column = first_class + i % (WARP_N / 2) / 4 * 8 + quad * 2 + i % 2;
      const int row = first_row + sub * 16 + i / 2 % 2 * 8 + group;
      if (row < shape.rows && column < shape.classes)
        output[static_cast<size_t>(row) * shape.classes + column] = sum + bias[column];
    };
    if constexpr (SLICES == 1) {
      for (int block = 0; block < blocks; ++block) multiply_block(block);
#pragma unroll
      for (int i = 0; i < SUMS; ++i) write(i, sums[i / (WARP_N / 2)][i % (WARP_N / 2)]);
    } else {
      extern __shared__ __align__(128) unsigned char memory[];
      int* const partial = reinterpret_cast<int*>(memory) + lane;  // [SLICES][SUMS][lanes]
#pragma unroll BLOCKS_AT_ONCE
      for (int block = warp; block < blocks; block += SLICES) multiply_block(block);
#pragma unroll
      for (int i = 0; i < SUMS; ++i) partial[(warp * SUMS + i) * 32] = sums[i / (WARP_N / 2)][i % (WARP_N / 2)];
      __syncthreads();
#pragma unroll
      for (int i = warp; i < SUMS; i += SLICES) {
        int sum = 0;
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice) sum += partial[(slice * SUMS + i) * 32];
        write(i, sum);
      }
    }
  }
};
