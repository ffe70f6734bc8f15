// First convolution of the network with its 3x3 maximum of stride 2, on wgmma, the weights as A.
//
// The 64 channels are the rows of A, a window's line is one k-step, and the weights stay in a thread's registers for
// the whole kernel. The image's lines are B: a row of the convolution's outputs is one wgmma of N columns a window's
// line, first the even columns, then the odd ones. Windows of neighbouring even columns are 16 bytes apart at four
// bytes per pixel, so their halves are core matrices as they lie; odd columns have a copy that begins two pixels later,
// and the second halves of all windows copies of their own, so that every plane begins at a multiple of 128 bytes.
//
// A block is one warpgroup: BAND rows of one image's maxima. It keeps the last RING lines of the image, and reads the
// next ones while the tensor cores work. Of a thread's sums, rows `group` and `group` + 8 are two neighbouring
// channels: a byte of the output, which leaves in whole rows.
//
// Compile-time constants: TAPS_H; STRIDE_H; WIDTH of the image; LEAD_QUADS: groups of four pixels before the image that
// the first window reads; ROWS of the convolution's outputs, COLUMNS of one, and POOLED of a row of maxima; TILE_N:
// COLUMNS up to a whole number of wgmma columns; RING; BAND; BLOCKS_AT_ONCE of a multiprocessor.
#include "epilogue/narrow.cuh"
#include "ptx/bulk_store.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_s8.cuh"
#include "stem_pixels.cuh"

__device__ __forceinline__ void put_two(unsigned address, unsigned first, unsigned second) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(first), "r"(second) : "memory");
}

__device__ __forceinline__ void put_four(unsigned address, uint4 words) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
}

// Pixels 4 * quad ... + 3 of a line to the places that windows read them from. Of window i, plane 0 holds the first
// four pixels for the even column, plane 1 for the odd one, planes 2 and 3 the four that follow.
template <int LEAD_QUADS, int HALF>
__device__ __forceinline__ void put_quad(unsigned slot, int quad, uint4 pixels) {
  constexpr int PLANE = HALF * 16;
  const auto exists = [](int i) { return static_cast<unsigned>(i) < HALF; };
  const int i = quad + LEAD_QUADS;
  const unsigned place = slot + i * 16;
  if (exists(i)) {
    put_four(place, pixels);
    put_two(place + PLANE, pixels.z, pixels.w);
  }
  if (exists(i - 1)) {
    put_four(place + 2 * PLANE - 16, pixels);
    put_two(place + PLANE - 8, pixels.x, pixels.y);
    put_two(place + 3 * PLANE - 16, pixels.z, pixels.w);
  }
  if (exists(i - 2)) put_two(place + 3 * PLANE - 24, pixels.x, pixels.y);
}

template <int TAPS_H, int STRIDE_H, int WIDTH, int LEAD_QUADS, int ROWS, int COLUMNS, int POOLED, int TILE_N, int RING,
          int BAND, int BLOCKS_AT_ONCE>
struct StemLinesWgmma {
  static constexpr int STRIDE_W = 2;
  static constexpr int HALF = TILE_N / 2;  // even columns, and odd ones
  static constexpr int PLANE = HALF * 16, LINE = 4 * PLANE;
  static constexpr int THREADS = 128, CHANNELS = 64;
  static constexpr int QUADS = (WIDTH + 3) / 4;    // of a line: half of the threads take one line, half the next
  static constexpr int NEXT_LINES = 2 * STRIDE_H;  // that one more row of maxima needs
  static constexpr int LOADS = NEXT_LINES / 2;
  static constexpr int GROUPS = HALF / 8;
  static constexpr int ROW_BYTES = POOLED * (CHANNELS / 2);
  static constexpr int NOTHING = -2147483647 - 1;  // less than every sum
  static_assert(QUADS <= THREADS / 2);
  static_assert((RING & (RING - 1)) == 0 && RING >= NEXT_LINES + STRIDE_H + TAPS_H);
  static constexpr int BLOCKS = BLOCKS_AT_ONCE;  // a multiprocessor

  static __device__ __forceinline__ void run(const signed char* __restrict__ images, const uint4* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const LinesShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    const unsigned lines = shared_address(memory), staging = lines + RING * LINE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const int n = blockIdx.y, first_pooled = blockIdx.x * BAND, end_pooled = min(first_pooled + BAND, shape.pooled_h);
    const int plane = shape.height * WIDTH;
    const signed char* const image = images + static_cast<size_t>(n) * 3 * plane;

    // This thread's four pixels of a line: red, green and blue; and their way into shared memory.
    const int my_line = threadIdx.x / (THREADS / 2), my_quad = threadIdx.x % (THREADS / 2);
    auto fetch = [&](int line, unsigned (&colours)[3]) {
      colours[0] = colours[1] = colours[2] = 0;
      if (my_quad < QUADS && static_cast<unsigned>(line) < static_cast<unsigned>(shape.height)) {
#pragma unroll
        for (int c = 0; c < 3; ++c) colours[c] = four_pixels<WIDTH>(image + c * plane + line * WIDTH, my_quad * 4);
      }
    };
    auto put = [&](int line, const unsigned (&colours)[3]) {
      if (my_quad < QUADS)
        put_quad<LEAD_QUADS, HALF>(lines + (line & (RING - 1)) * LINE, my_quad,
                                   interleave(colours[0], colours[1], colours[2]));
    };

    unsigned a[TAPS_H][4];
#pragma unroll
    for (int r = 0; r < TAPS_H; ++r) {
      const uint4 words = weights[(r * 4 + warp) * 32 + lane];
      a[r][0] = words.x;
      a[r][1] = words.y;
      a[r][2] = words.z;
      a[r][3] = words.w;
    }
    const ChannelPair pair = channels[warp * 8 + group];
    // What windows read beside the image: zeros, once for all lines.
    constexpr int BEYOND = HALF + 2 - QUADS;
    for (int i = threadIdx.x; i < RING * BEYOND; i += THREADS) {
      const int line = i / BEYOND, place = i - line * BEYOND;
      put_quad<LEAD_QUADS, HALF>(lines + line * LINE,
                                 place < LEAD_QUADS ? place - LEAD_QUADS : place - LEAD_QUADS + QUADS,
                                 make_uint4(0, 0, 0, 0));
    }
    let_next_start();
    wait_for_previous();

    const int first_line = (2 * first_pooled - 1) * STRIDE_H - shape.pad_h;
#pragma unroll 4
    for (int line = my_line; line < NEXT_LINES + TAPS_H; line += 2) {
      unsigned colours[3];
      fetch(first_line + line, colours);
      put(first_line + line, colours);
    }
    fence_async_proxy();
    __syncthreads();

    const unsigned long long descriptor = wgmma_descriptor(lines, 2 * PLANE, 128);
    const unsigned descriptor_low = static_cast<unsigned>(descriptor);
    int sums[TILE_N / 2];
    auto begin = [&](int row) {  // starts the products of a row of the convolution's outputs
      const int line = row * STRIDE_H - shape.pad_h;
#pragma unroll
      for (int r = 0; r < TAPS_H; ++r) pin_registers(a[r]);
      wgmma_fence();
#pragma unroll
      for (int r = 0; r < TAPS_H; ++r) {
        // No carry leaves the address' bits: 32-bit arithmetic will do.
        const unsigned at = descriptor_low + ((line + r) & (RING - 1)) * (LINE / 16);
        WgmmaS8<TILE_N>::mma(sums, a[r], descriptor >> 32 << 32 | at, r);
      }
      wgmma_commit();
    };
    // The maxima over three columns of the row that is under way: of a channel 8 * j + 2 * quad and the one after it.
    auto across = [&](int (&maxima)[HALF / 2]) {
      wgmma_wait<0>();
      pin_registers(sums);
      const int left = (lane & ~3) | ((lane + 3) & 3);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < GROUPS; ++j) {
          const int* const even = sums + 4 * j + 2 * half;
          int odd[2] = {even[4 * GROUPS], even[4 * GROUPS + 1]};
          // The last row's columns may end with an even one; what follows it is never stored, nor read by the left.
          if constexpr (COLUMNS % 2) {
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if (8 * j + 2 * quad + e == COLUMNS / 2) odd[e] = NOTHING;
          }
          const int beside = j > 0 ? even[4 * GROUPS - 3] : NOTHING;
          const int first = __shfl_sync(0xFFFFFFFFu, quad == 3 ? beside : odd[1], left);
          maxima[(half * GROUPS + j) * 2] = max(max(first, even[0]), odd[0]);
          maxima[(half * GROUPS + j) * 2 + 1] = max(max(odd[0], even[1]), odd[1]);
        }
    };

    int before[HALF / 2], even[HALF / 2], odd[HALF / 2];  // the rows of a window of the maximum
    if (first_pooled == 0) {
#pragma unroll
      for (int i = 0; i < HALF / 2; ++i) before[i] = NOTHING;
    } else {
      begin(2 * first_pooled - 1);
      across(before);
    }
#pragma unroll 1
    for (int pooled = first_pooled; pooled < end_pooled; ++pooled) {
      const bool more = pooled + 1 < end_pooled;
      const int next_line = (2 * pooled + 1) * STRIDE_H - shape.pad_h + TAPS_H + my_line;
      unsigned colours[LOADS][3];
      if (more) {
#pragma unroll
        for (int i = 0; i < LOADS; ++i) fetch(next_line + 2 * i, colours[i]);
      }
      begin(2 * pooled);
      across(even);
      begin(2 * pooled + 1);
      if (more) {
#pragma unroll
        for (int i = 0; i < LOADS; ++i) put(next_line + 2 * i, colours[i]);
      }
      across(odd);
      if (ROWS % 2 && 2 * pooled + 1 == ROWS) {
#pragma unroll
        for (int i = 0; i < HALF / 2; ++i) odd[i] = NOTHING;
      }
      const unsigned stage = staging + (pooled & 1) * ROW_BYTES + warp * 8 + group;
      const unsigned unused[1] = {};
#pragma unroll
      for (int j = 0; j < GROUPS; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int low = max(max(before[2 * j + e], even[2 * j + e]), odd[2 * j + e]);
          const int i = 2 * (GROUPS + j) + e;
          const int high = max(max(before[i], even[i]), odd[i]);
          const int column = 8 * j + 2 * quad + e;
          const unsigned byte =
              pack_u4(requantize<0>(high, pair, 1, unused, 0), requantize<0>(low, pair, 0, unused, 0), 0);
          if (8 * j + 7 < POOLED || column < POOLED)
            asm volatile("st.shared.b8 [%0], %1;" ::"r"(stage + column * (CHANNELS / 2)), "r"(byte) : "memory");
        }
#pragma unroll
      for (int i = 0; i < HALF / 2; ++i) before[i] = odd[i];
      fence_async_proxy();
      if (threadIdx.x == 0) bulk_store_wait_read<0>();  // the row before has left the other half of `staging`
      __syncthreads();
      if (threadIdx.x == 0) {
        bulk_store(output + (static_cast<size_t>(n) * shape.pooled_h + pooled) * ROW_BYTES,
                   staging + (pooled & 1) * ROW_BYTES, ROW_BYTES);
        bulk_store_commit();
      }
    }
    if (threadIdx.x == 0) bulk_store_wait<0>();
  }
};
