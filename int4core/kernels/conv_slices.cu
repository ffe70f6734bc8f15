// Convolution of packed u4 activations (NHWC) with s8 weights for few pixels (a batch of one image, or of a few), fused
// with bias, residual, ReLU and requantisation, for every chip from sm_80 on: mma.sync.m16n8k32.u8.s8, with K cut among
// the warps of a block.
//
// Few pixels give few blocks of threads, and a long K makes each of them slow: what counts is latency. So
// - the SLICES warps of a block compute the same WARP_M pixels x WARP_N channels, each over its part of K, and meet
// only
//   when all are done;
// - a warp's weights, all of them, are on their way into shared memory before the kernel before is over;
// - activations come from L2 into the registers that multiply them, AHEAD blocks of K at once.
// The sums of the slices are added in shared memory; a residual convolution's are kept apart until then, since they are
// rescaled when they are whole.
//
// Compile-time constants: SLICES, WARP_M, WARP_N, K_BYTES (packed bytes of a pixel in a block of K), AHEAD, OUTPUT
// (0 u4, 1 u7 bytes), RESIDUAL (0 none, 1 a u4 tensor, 2 a 1x1 convolution of one), WIDE.
#include "conv_store.cuh"
#include "packed_mma.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/dependency.cuh"
#include "windows.cuh"

template <int SLICES, int WARP_M, int WARP_N, int K_BYTES, int AHEAD, int OUTPUT, int RESIDUAL, bool WIDE>
struct ConvSlices {
  using EpiloguePair = typename Requantization<WIDE>::Pair;
  using EpilogueResidualPair = typename Requantization<WIDE>::Residual;
  using Stored = TileOf<1, 1, 16, WARP_N, K_BYTES>;  // what a warp writes in the end

  static constexpr int THREADS = 32 * SLICES;
  static constexpr int SUBS = WARP_M / 16;
  static constexpr int WORDS = K_BYTES / 16;  // 32-bit words a thread reads of a row: k-steps per block of K
  static constexpr int WEIGHT_BYTES = WORDS * 32 * WARP_N;  // of a block of K
  static constexpr int SUB_SUMS = WARP_N / 2, SUMS = SUBS * SUB_SUMS;
  static constexpr int KINDS = RESIDUAL == 2 ? 2 : 1;  // of sums
  static_assert(SUBS <= SLICES, "a warp writes 16 pixels");

  // A warp's part of the blocks of K of a tensor's window.
  struct Part {
    const Window& window;
    int first, end;
    KBlock next;
    WindowPlace places[SUBS][2];  // of this thread's rows

    __device__ __forceinline__ Part(const Window& window, const ConvShape& shape, int slice, int pixel)
        : window(window) {
      const int blocks = window.taps * window.taps * window.channel_blocks;
      first = slice * blocks / SLICES;
      end = (slice + 1) * blocks / SLICES;
      const int tap = first / window.channel_blocks, tap_h = tap / window.taps;
      next = {tap_h, tap - tap_h * window.taps, first - tap * window.channel_blocks};
#pragma unroll
      for (int row = 0; row < 2 * SUBS; ++row) {
        const int own = pixel + row * 8;
        places[row / 2][row % 2].locate(shape, window, own, own < shape.pixels);
      }
    }

    // This thread's words of the next block; zeros outside the image.
    __device__ __forceinline__ void read_block(unsigned (&packed)[SUBS][2][WORDS], const unsigned char* source,
                                               int quad) {
      const int offset = next.offset(window), column = next.channel_block * K_BYTES + quad * (K_BYTES / 4);
#pragma unroll
      for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const WindowPlace& place = places[sub][half];
#pragma unroll
          for (int i = 0; i < WORDS; ++i) packed[sub][half][i] = 0;
          if (next.inside(place, window))
            read_words(packed[sub][half], source + static_cast<size_t>(place.piece + offset) * 16 + column);
        }
      next.advance(window);
    }

    // Adds the products of this part; `weights` are those of the window's first block.
    __device__ __forceinline__ void multiply(int (&sums)[SUBS][SUB_SUMS], const unsigned char* source,
                                             const unsigned char* weights, int lane) {
#pragma unroll 1
      for (int at = first; at < end; at += AHEAD) {
        unsigned packed[AHEAD][SUBS][2][WORDS];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
          if (at + i < end) read_block(packed[i], source, lane % 4);
        cp_async_wait<0>();
        __syncwarp();
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
          if (at + i < end)
            multiply_packed<32 * WARP_N>(sums, packed[i], weights + (at + i) * WEIGHT_BYTES + lane * 16);
      }
    }
  };

  // The tensors are not __restrict__: they are written by kernels that may still run when this one has begun, and the
  // loads of what never changes need not see that.
  static __device__ __forceinline__ void run(const unsigned char* input, const unsigned char* residual,
                                             const unsigned char* __restrict__ weights,
                                             const EpiloguePair* __restrict__ channels,
                                             const EpilogueResidualPair* __restrict__ residual_channels,
                                             unsigned char* output, const ConvShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    int* const partial = reinterpret_cast<int*>(memory);  // [KINDS][SLICES][SUMS][lanes]
    EpiloguePair* const pairs = reinterpret_cast<EpiloguePair*>(partial + KINDS * SLICES * SUMS * 32);
    EpilogueResidualPair* const residual_pairs = reinterpret_cast<EpilogueResidualPair*>(pairs + WARP_N / 2);
    unsigned char* const shared_weights =
        reinterpret_cast<unsigned char*>(residual_pairs + (RESIDUAL == 2 ? WARP_N / 2 : 0));

    const int tiles_n = shape.out_channels / WARP_N;
    const int tile_n = blockIdx.x % tiles_n, first_pixel = blockIdx.x / tiles_n * WARP_M;
    const int slice = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4;

    let_next_start();
    Part main(shape.input, shape, slice, first_pixel + lane / 4);
    Part other(RESIDUAL == 2 ? shape.residual : shape.input, shape, slice, first_pixel + lane / 4);
    const int main_start = shape.residual_blocks * WEIGHT_BYTES;
    const unsigned char* const tile_weights = weights + static_cast<size_t>(tile_n) * shape.blocks * WEIGHT_BYTES;
    auto fetch_weights = [&](const Part& part, int start) {
      const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared_weights));
      for (int at = start + part.first * WEIGHT_BYTES + lane * 16; at < start + part.end * WEIGHT_BYTES; at += 512)
        cp_async(target + at, tile_weights + at, true);
    };
    if constexpr (RESIDUAL == 2) fetch_weights(other, 0);
    fetch_weights(main, main_start);
    cp_async_commit();
    for (int i = threadIdx.x; i < WARP_N / 2; i += THREADS) {
      pairs[i] = channels[tile_n * (WARP_N / 2) + i];
      if constexpr (RESIDUAL == 2) residual_pairs[i] = residual_channels[tile_n * (WARP_N / 2) + i];
    }

    wait_for_previous();
    const int first_channel = tile_n * WARP_N;
    unsigned kept[1][2][KEPT_WORDS<Stored, RESIDUAL>];
    if (slice < SUBS) read_kept<Stored, RESIDUAL>(kept, residual, shape, first_pixel + slice * 16, first_channel, lane);

    auto hand_over = [&](const int (&sums)[SUBS][SUB_SUMS], int kind) {
#pragma unroll
      for (int i = 0; i < SUMS; ++i)
        partial[((kind * SLICES + slice) * SUMS + i) * 32 + lane] = sums[i / SUB_SUMS][i % SUB_SUMS];
    };
    if constexpr (RESIDUAL == 2) {
      int sums[SUBS][SUB_SUMS] = {};
      other.multiply(sums, residual, shared_weights, lane);
      hand_over(sums, 1);
    }
    int sums[SUBS][SUB_SUMS] = {};
    main.multiply(sums, input, shared_weights + main_start, lane);
    hand_over(sums, 0);
    __syncthreads();

    // Each warp adds up some of the sums, for all.
    auto add_up = [&](int i, int kind) {
      int sum = 0;
#pragma unroll
      for (int other = 0; other < SLICES; ++other) sum += partial[((kind * SLICES + other) * SUMS + i) * 32 + lane];
      return sum;
    };
#pragma unroll
    for (int first = 0; first < SUMS; first += SLICES) {
      const int i = first + slice;
      if (i < SUMS) {
        int sum = add_up(i, 0);
        if constexpr (RESIDUAL == 2)
          sum += rescale_residual(add_up(i, 1), residual_pairs[i % SUB_SUMS / 4 * 4 + quad], i % 2);
        partial[i * 32 + lane] = sum;
      }
    }
    __syncthreads();
    if (slice < SUBS) {
      int totals[1][SUB_SUMS];
#pragma unroll
      for (int i = 0; i < SUB_SUMS; ++i) totals[0][i] = partial[(slice * SUB_SUMS + i) * 32 + lane];
      store_tile<Stored, OUTPUT, RESIDUAL>(totals, pairs, kept, output, shape, first_pixel + slice * 16, first_channel,
                                           lane);
    }
  }
};
