// 3x3 convolution, stride 1, padding 1, of packed u4 activations with s8 weights on sm_90a, for few input channels and
// wide images, where fetching every pixel nine times (conv_wgmma.cu) would be limited by L2 requests.
//
// On an H200, 1,024 images of 56x56x64 take 208 us here and 238 us there.
//
// A tile is ROWS rows of one image. The copy engine fetches them once with their border, zeros outside the image; the
// nine taps are nine constant offsets into shared memory. A team is one warpgroup with two tile buffers of its own; it
// works through the tile 64 pixels at a time. The weights stay in shared memory.
//
// Compile-time constants: WIDTH (of the image), ROWS, K_BYTES (all input channels of a pixel), TILE_N, TEAMS.
#include "epilogue/narrow.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "stages.cuh"

template <int WIDTH, int ROWS, int K_BYTES, int TILE_N, int TEAMS>
struct RowsWgmma {
  static constexpr int WORDS = K_BYTES / 16;
  static constexpr int PITCH = (WIDTH + 2) * K_BYTES;  // bytes from one image row to the next
  static constexpr int TILE_BYTES = (ROWS + 2) * PITCH;
  static constexpr int BUFFER_BYTES = (TILE_BYTES + 127) / 128 * 128;
  static constexpr int UNITS = (ROWS * WIDTH + 63) / 64;
  static constexpr int WEIGHT_BYTES = 9 * WORDS * 32 * TILE_N;
  static constexpr int CONSUMERS = TEAMS * 128;
  static constexpr int THREADS = CONSUMERS + 128;
  static constexpr int CONSUMER_REGISTERS = TEAMS == 2 ? 240 : TEAMS == 3 ? 160 : 112;
  static constexpr int OUT_WORDS = TILE_N / 32;
  static constexpr int BLOCKS = 1;  // a multiprocessor

  static __device__ __forceinline__ void run(const TensorMap& input, const unsigned char* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const RowsShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[1 + TEAMS * 4];
    __shared__ ChannelPair pairs[TILE_N / 2];

    const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const bool producer = warp >= CONSUMERS / 32;
    const int team = producer ? warp - CONSUMERS / 32 : warp / 4;
    const int tile_n = blockIdx.y;
    const unsigned weight_barrier = shared_address(barriers);
    const unsigned full = weight_barrier + 8 + team * 32, empty = full + 16;
    const unsigned buffers = shared_address(memory) + team * 2 * BUFFER_BYTES;
    const unsigned weight_base = shared_address(memory) + TEAMS * 2 * BUFFER_BYTES;

    if (threadIdx.x == 0) {
      mbarrier_init(weight_barrier, 1);
      for (int i = 0; i < TEAMS * 4; ++i) mbarrier_init(weight_barrier + 8 + 8 * i, i % 4 < 2 ? 1 : 4);
      mbarrier_init_fence();
    }
    for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) pairs[i] = channels[tile_n * (TILE_N / 2) + i];
    __syncthreads();

    let_next_start();
    const int first_tile = blockIdx.x * TEAMS + team, tile_step = gridDim.x * TEAMS;
    Ring ring(2);

    if (producer) {
      release_registers<24>();
      if (team >= TEAMS || lane != 0) return;
      if (team == 0) {
        mbarrier_arrive_expect(weight_barrier, WEIGHT_BYTES);
        for (int tap = 0; tap < 9; ++tap)
          bulk_copy(weight_base + tap * (WEIGHT_BYTES / 9),
                    weights + (tile_n * 9 + tap) * static_cast<size_t>(WEIGHT_BYTES / 9), WEIGHT_BYTES / 9,
                    weight_barrier);
      }
      wait_for_previous();
      for (int tile = first_tile; tile < shape.tiles; tile += tile_step) {
        const int n = tile / shape.blocks, row = (tile - n * shape.blocks) * ROWS;
        mbarrier_wait(empty + 8 * ring.slot, ring.parity ^ 1);
        mbarrier_arrive_expect(full + 8 * ring.slot, TILE_BYTES);
        box_copy(buffers + ring.slot * BUFFER_BYTES, &input, full + 8 * ring.slot, 0, -1, row - 1, n);
        ring.advance();
      }
      return;
    }

    claim_registers<CONSUMER_REGISTERS>();
    wait_for_previous();
    const int group = lane / 4, quad = lane % 4;
    const int thread_row = (warp % 4) * 16 + group;
    const unsigned long long descriptor = wgmma_descriptor(weight_base, TILE_N * 16, 128);
    mbarrier_wait(weight_barrier, 0);

    for (int tile = first_tile; tile < shape.tiles; tile += tile_step) {
      const int n = tile / shape.blocks, first_row = (tile - n * shape.blocks) * ROWS;
      const unsigned buffer = buffers + ring.slot * BUFFER_BYTES + quad * (K_BYTES / 4);
      // Pixels of the tile, of those that lie in the image.
      const int pixels = min(ROWS, shape.height - first_row) * WIDTH;
      unsigned char* const tile_output =
          output + (static_cast<size_t>(n) * shape.height + first_row) * WIDTH * (shape.out_channels / 2) +
          (tile_n * 4 + quad) * (OUT_WORDS * 4);
      mbarrier_wait(full + 8 * ring.slot, ring.parity);
      for (int unit = 0; unit < UNITS; ++unit) {
        const int pixel[2] = {unit * 64 + thread_row, unit * 64 + thread_row + 8};
        unsigned address[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int inside = min(pixel[half], ROWS * WIDTH - 1);  // beyond the last unit's pixels: any address will do
          address[half] = buffer + (inside / WIDTH) * PITCH + (inside % WIDTH) * K_BYTES;
        }
        int sums[1][TILE_N / 2];
        unsigned fragments[2][3][WORDS][4];
#pragma unroll
        for (int r = 0; r < 3; ++r) {
          auto& a = fragments[r % 2];
#pragma unroll
          for (int s = 0; s < 3; ++s) {
            unsigned upper[WORDS], lower[WORDS];
            load_words(upper, address[0] + r * PITCH + s * K_BYTES);
            load_words(lower, address[1] + r * PITCH + s * K_BYTES);
            unpack_rows(a[s], upper, lower);
          }
#pragma unroll
          for (int s = 0; s < 3; ++s)
#pragma unroll
            for (int i = 0; i < WORDS; ++i) pin_registers(a[s][i]);
          wgmma_fence();
#pragma unroll
          for (int s = 0; s < 3; ++s)
#pragma unroll
            for (int i = 0; i < WORDS; ++i)
              Wgmma<TILE_N>::mma(sums[0], a[s][i], descriptor + ((r * 3 + s) * WORDS + i) * (2 * TILE_N), r + s + i);
          wgmma_commit();
          if (r > 0) wgmma_wait<1>();
        }
        wgmma_wait<0>();
        pin_registers(sums[0]);
        if (unit == UNITS - 1) {
          __syncwarp();
          if (lane == 0) mbarrier_arrive(empty + 8 * ring.slot);
        }
        unsigned packed[1][2][OUT_WORDS];
#pragma unroll
        for (int word = 0; word < OUT_WORDS; ++word) requantize_words<0, 0>(sums, pairs, quad, word, packed, packed);
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (pixel[half] < pixels)
            store_words(tile_output + static_cast<size_t>(pixel[half]) * (shape.out_channels / 2), packed[0][half]);
      }
      ring.advance();
    }
  }
};
