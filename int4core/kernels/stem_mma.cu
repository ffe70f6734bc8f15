// First convolution of the network: int8 images (N, 3, H, W), a window of TAPS_H x TAPS_W, ReLU, requantisation to u4
// and a maximum over windows of the result, in one kernel for every chip from sm_75 on.
//
// A block makes POOL_ROWS rows of one image's maxima, TILE_N channels. It lays the input rows it needs into shared
// memory with four bytes per pixel (the fourth is zero), so that a pixel of a window is one 32-bit word: eight words of
// a window's row are a k-step of mma.m16n8k32, read without any rearrangement; places beyond TAPS_W have zero weights.
// The requantised outputs stay in shared memory, and the maxima are taken from there. Requantised values are at
// least 0, so rows and columns outside the image are zeros.
//
// Compile-time constants: TAPS_H, TAPS_W, STRIDE_H, STRIDE_W, POOL, POOL_STRIDE, POOL_ROWS, TILE_N (32 or 64), WARPS,
// WIDE.
#include "epilogue/requantize.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mma.cuh"
#include "words.cuh"

// The larger of each of four bytes; all bytes are below 16.
__device__ __forceinline__ unsigned larger_bytes(unsigned a, unsigned b) {
  const unsigned not_less = ((a | 0x10101010u) - b) & 0x10101010u;  // bit 4 of every byte with a >= b
  const unsigned mask = not_less - (not_less >> 4);
  return b ^ ((a ^ b) & mask);
}

template <int TAPS_H, int TAPS_W, int STRIDE_H, int STRIDE_W, int POOL, int POOL_STRIDE, int POOL_ROWS, int TILE_N,
          int WARPS, bool WIDE>
struct StemMma {
  using EpiloguePair = typename Requantization<WIDE>::Pair;

  static constexpr int STEPS_W = (TAPS_W + 7) / 8;  // k-steps of a row of the window
  static constexpr int STEPS = TAPS_H * STEPS_W;
  static constexpr int CONV_ROWS = (POOL_ROWS - 1) * POOL_STRIDE + POOL;  // rows of outputs before the maximum
  static constexpr int INPUT_ROWS = (CONV_ROWS - 1) * STRIDE_H + TAPS_H;
  static constexpr int THREADS = 32 * WARPS;
  static constexpr int WEIGHT_BYTES = STEPS * 32 * TILE_N;
  static constexpr int SUBS = 2;                 // 16-pixel tiles of mma a warp at a time
  static constexpr int OUT_WORDS = TILE_N / 32;  // words a thread makes of a pixel

  static __device__ __forceinline__ void run(const signed char* __restrict__ images, const uint4* __restrict__ weights,
                                             const EpiloguePair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const StemShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    const int tile_n = blockIdx.z, n = blockIdx.y, first_pooled = blockIdx.x * POOL_ROWS;
    const int conv_pixels = CONV_ROWS * shape.q;
    uint4* const operands = reinterpret_cast<uint4*>(memory);
    EpiloguePair* const pairs = reinterpret_cast<EpiloguePair*>(memory + WEIGHT_BYTES);
    unsigned* const pixels = reinterpret_cast<unsigned*>(pairs + TILE_N / 2);
    // Behind the pixels, from a multiple of 16 bytes on.
    unsigned* const results = pixels + (INPUT_ROWS * shape.pitch + 3) / 4 * 4;

    for (int i = threadIdx.x; i < WEIGHT_BYTES / 16; i += THREADS)
      operands[i] = weights[tile_n * (WEIGHT_BYTES / 16) + i];
    for (int i = threadIdx.x; i < TILE_N / 2; i += THREADS) pairs[i] = channels[tile_n * (TILE_N / 2) + i];

    let_next_start();
    wait_for_previous();
    const int first_row = first_pooled * POOL_STRIDE - shape.pool_pad;  // of the convolution's outputs
    const int first_line = first_row * STRIDE_H - shape.pad_h;          // of the image
    const size_t plane = static_cast<size_t>(shape.h) * shape.w;
    const signed char* const image = images + n * 3 * plane;
    for (int row = threadIdx.x / 32; row < INPUT_ROWS; row += WARPS) {
      const int y = first_line + row;
      const bool row_inside = static_cast<unsigned>(y) < static_cast<unsigned>(shape.h);
#pragma unroll 4
      for (int column = threadIdx.x % 32; column < shape.pitch; column += 32) {
        const int x = column - shape.pad_w;
        unsigned word = 0;
        if (row_inside && static_cast<unsigned>(x) < static_cast<unsigned>(shape.w)) {
          const unsigned char* const pixel = reinterpret_cast<const unsigned char*>(image) + y * shape.w + x;
          word = pixel[0] | pixel[plane] << 8 | pixel[2 * plane] << 16;
        }
        pixels[row * shape.pitch + column] = word;
      }
    }
    __syncthreads();

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    for (int first = warp * (16 * SUBS); first < conv_pixels; first += WARPS * 16 * SUBS) {
      const unsigned* windows[SUBS][2];
      bool valid[SUBS][2];
#pragma unroll
      for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int pixel = min(first + sub * 16 + half * 8 + group, conv_pixels - 1);
          const int row = pixel / shape.q, column = pixel - row * shape.q;
          windows[sub][half] = pixels + row * STRIDE_H * shape.pitch + column * STRIDE_W + quad;
          valid[sub][half] = static_cast<unsigned>(first_row + row) < static_cast<unsigned>(shape.p);
        }
      int sums[SUBS][TILE_N / 2] = {};
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        const int place = step / STEPS_W * shape.pitch + step % STEPS_W * 8;
        unsigned b[TILE_N / 16][4];
#pragma unroll
        for (int j = 0; j < TILE_N / 16; ++j) read_words(b[j], operands + (step * (TILE_N / 16) + j) * 32 + lane);
#pragma unroll
        for (int sub = 0; sub < SUBS; ++sub) {
          const unsigned a[4] = {windows[sub][0][place], windows[sub][1][place], windows[sub][0][place + 4],
                                 windows[sub][1][place + 4]};
#pragma unroll
          for (int j = 0; j < TILE_N / 16; ++j) {
            mma_s8s8(&sums[sub][8 * j], a, b[j][0], b[j][1]);
            mma_s8s8(&sums[sub][8 * j + 4], a, b[j][2], b[j][3]);
          }
        }
      }
      unsigned packed[SUBS][2][OUT_WORDS];
#pragma unroll
      for (int word = 0; word < OUT_WORDS; ++word) {
        const unsigned unused[SUBS][2][1] = {};
        requantize_words<0, 0>(sums, pairs, quad, word, unused, packed);
      }
#pragma unroll
      for (int sub = 0; sub < SUBS; ++sub)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int pixel = first + sub * 16 + half * 8 + group;
#pragma unroll
          for (int word = 0; word < OUT_WORDS; ++word)
            if (!valid[sub][half]) packed[sub][half][word] = 0;
          if (pixel < conv_pixels) write_words(results + (pixel * 4 + quad) * OUT_WORDS, packed[sub][half]);
        }
    }
    __syncthreads();

    constexpr int PIXEL_WORDS = TILE_N / 8;
    const int pooled_rows = min(POOL_ROWS, shape.pooled_h - first_pooled);
    for (int i = threadIdx.x; i < pooled_rows * shape.pooled_w * PIXEL_WORDS; i += THREADS) {
      const int word = i % PIXEL_WORDS, place = i / PIXEL_WORDS;
      const int row = place / shape.pooled_w, column = place - row * shape.pooled_w;
      unsigned low = 0, high = 0;
#pragma unroll
      for (int r = 0; r < POOL; ++r)
#pragma unroll
        for (int s = 0; s < POOL; ++s) {
          const int q = column * POOL_STRIDE - shape.pool_pad + s;
          if (static_cast<unsigned>(q) < static_cast<unsigned>(shape.q)) {
            const unsigned value = results[((row * POOL_STRIDE + r) * shape.q + q) * PIXEL_WORDS + word];
            low = larger_bytes(value & 0x0F0F0F0Fu, low);
            high = larger_bytes((value >> 4) & 0x0F0F0F0Fu, high);
          }
        }
      const size_t pixel = (static_cast<size_t>(n) * shape.pooled_h + first_pooled + row) * shape.pooled_w + column;
      reinterpret_cast<unsigned*>(output + pixel * (shape.out_channels / 2) + tile_n * (TILE_N / 2))[word] =
          low | high << 4;
    }
  }
};
