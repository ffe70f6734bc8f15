// 3x3 convolution, stride 1, padding 1, of packed u4 activations of 64 channels on sm_90a, by Winograd's F(2, 3) along
// the width, in integers and exact: 12 products a pair of outputs, a row of taps and an input channel become 8.
//
// Of columns d0 ... d3, which two neighbouring outputs read, and the weights g0, g1, g2 of a row of taps:
//
//   V = (d0 - d2 + 16, d1 + d2, d2 - d1 + 16, d1 - d3 + 16)     u8, 0 ... 31
//   U = (2 g0, g0 + g1 + g2, g0 - g1 + g2, -2 g2)               s8, made by the host
//   m = sums of U * V over rows of taps and input channels, for each of the four positions
//   2 * even output = m0 + (m1 + m2),  2 * odd output = m3 + (m1 - m2)
//
// less what the 16s add, a constant of the output channel and parity. The host folds it into the constants of the
// requantisation, which takes twice the sums and half the factors. So m1 and m2 come first; sum and difference, with
// the constants, take their registers; and the products of positions 0 and 3 add to those.
//
// Roles: one warpgroup fetches bands of image rows and turns them into V, TEAMS warpgroups multiply and requantise, a
// unit of 32 pairs at a time, in turns; with AHEAD a team's next products run under its requantisation. U is A: 64
// output channels, 24 k-steps in registers. V is B: a plane holds sixteen places of K of all pairs of a band with its
// border, 16 bytes a pair, so that a row of taps is an offset. The planes of position p, half h of the channels, low or
// high nibbles follow one another.
//
// Compile-time constants: WIDTH of the image, BAND: its rows of a band, BUFFERS of image rows, AHEAD.
#include "epilogue/narrow.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/bulk_store.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/named_barrier.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_s8u8.cuh"
#include "stages.cuh"

template <int WIDTH, int BAND, int BUFFERS, bool AHEAD>
struct WinogradWgmma {
  static constexpr int CHANNELS = 64, PIXEL = CHANNELS / 2;  // inputs, and their bytes
  static constexpr int PAIRS = (WIDTH + 1) / 2, LINES = BAND + 2;
  static constexpr int UNIT = 32, UNITS = (BAND * PAIRS + UNIT - 1) / UNIT;
  // An odd number of columns: neighbouring lines then begin in other banks.
  static constexpr int COLUMNS = (2 * PAIRS + 2) | 1, PITCH = COLUMNS * PIXEL;
  static constexpr int ROWS_BYTES = LINES * PITCH, BUFFER = (ROWS_BYTES + 127) / 128 * 128;
  // Pairs of a plane, those that the last unit reads beyond the band among them; odd, as the columns are.
  static constexpr int PLACES =
      (LINES * PAIRS > UNITS * UNIT + 2 * PAIRS ? LINES * PAIRS : UNITS * UNIT + 2 * PAIRS) | 1;
  static constexpr int PLANE = PLACES * 16, V_BYTES = 16 * PLANE;
  static constexpr int STAGE = UNIT * 2 * PIXEL;  // a unit's outputs
  static constexpr int K_STEPS = 3 * 4 * 2;
  static constexpr int TEAMS = 2;  // a third one would leave too few registers for U
  static constexpr int THREADS = 128 * (TEAMS + 1);
  static constexpr int BLOCKS = 1;  // a multiprocessor
  // Eight lanes take two pairs of two lines, half of the channels each.
  static constexpr int PAIRED = (PAIRS + 1) / 2, SQUARES = LINES / 2 * PAIRED, PASSES = (SQUARES + 15) / 16;
  static_assert(BAND % 2 == 0 && UNITS >= TEAMS && BUFFERS >= 2);

  // Of a row of taps, a position, a half of the channels.
  static __device__ __forceinline__ constexpr int step(int r, int position, int half) {
    return (r * 4 + position) * 2 + half;
  }

  static __device__ __forceinline__ void run(const TensorMap& input, const uint4* __restrict__ weights,
                                             const WinogradPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const BandShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[BUFFERS + 4];
    __shared__ WinogradPair pairs[CHANNELS / 2];

    const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const int team = warp / 4, part = blockIdx.y;
    const unsigned rows_full = shared_address(barriers), v_full = rows_full + 8 * BUFFERS, v_empty = v_full + 16;
    const unsigned v_base = shared_address(memory), rows_base = v_base + 2 * V_BYTES;
    if (threadIdx.x == 0) {
      for (int i = 0; i < BUFFERS; ++i) mbarrier_init(rows_full + 8 * i, 1);
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(v_full + 8 * i, 4);
        mbarrier_init(v_empty + 8 * i, 4 * TEAMS);
      }
      mbarrier_init_fence();
    }
    if (threadIdx.x < CHANNELS / 2) pairs[threadIdx.x] = channels[part * (CHANNELS / 2) + threadIdx.x];
    __syncthreads();
    let_next_start();
    // Bands of this block: every gridDim.x-th.
    const int bands =
        (shape.bands - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
    if (team == TEAMS) {
      release_registers<88>();
      wait_for_previous();
      transform(input, rows_full, rows_base, v_full, v_empty, v_base, bands, shape);
    } else {
      claim_registers<208>();
      multiply(weights + part * (K_STEPS * 128), shared_address(pairs), output + part * PIXEL, v_full, v_empty, v_base,
               rows_base + BUFFERS * BUFFER + team * (2 * STAGE), team, bands, shape);
    }
  }

  // The warpgroup that makes V of the image's rows.
  static __device__ __forceinline__ void transform(const TensorMap& input, unsigned rows_full, unsigned rows_base,
                                                   unsigned v_full, unsigned v_empty, unsigned v_base, int bands,
                                                   const BandShape& shape) {
    const int worker = threadIdx.x % 128, lane = threadIdx.x % 32;
    auto fetch = [&](int k, int buffer) {
      const int band = blockIdx.x + k * gridDim.x, n = band / shape.bands_of_image;
      const int row = (band - n * shape.bands_of_image) * BAND;
      mbarrier_arrive_expect(rows_full + 8 * buffer, ROWS_BYTES);
      box_copy(rows_base + buffer * BUFFER, &input, rows_full + 8 * buffer, 0, -1, row - 1, n);
    };
    if (worker == 0) {
      for (int k = 0; k < BUFFERS && k < bands; ++k) fetch(k, k);
    }
    unsigned from[PASSES], to[PASSES];
    bool exists[PASSES];
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const int square = i * 16 + worker / 8, half = (lane >> 1) & 1;
      const int line = square / PAIRED * 2 + ((lane >> 2) & 1), pair = square % PAIRED * 2 + (lane & 1);
      exists[i] = square < SQUARES && pair < PAIRS;
      from[i] = line * PITCH + pair * (2 * PIXEL) + half * 16;
      to[i] = half * (2 * PLANE) + (line * PAIRS + pair) * 16;
    }
    Ring rows(BUFFERS), v(2);
#pragma unroll 1
    for (int k = 0; k < bands; ++k) {
      mbarrier_wait(rows_full + 8 * rows.slot, rows.parity);
      mbarrier_wait(v_empty + 8 * v.slot, v.parity ^ 1);
      const unsigned source = rows_base + rows.slot * BUFFER, target = v_base + v.slot * V_BYTES;
#pragma unroll
      for (int i = 0; i < PASSES; ++i) {
        if (!exists[i]) continue;
        unsigned d[4][4];  // of a column, 32 channels
#pragma unroll
        for (int x = 0; x < 4; ++x) load_words(d[x], source + from[i] + x * PIXEL);
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          unsigned made[4][4];
#pragma unroll
          for (int word = 0; word < 4; ++word) {
            unsigned b[4];
#pragma unroll
            for (int x = 0; x < 4; ++x) b[x] = (high ? d[x][word] >> 4 : d[x][word]) & 0x0F0F0F0Fu;
            // Four channels at once: no byte leaves 0 ... 31.
            made[0][word] = b[0] + 0x10101010u - b[2];
            made[1][word] = b[1] + b[2];
            made[2][word] = b[2] + 0x10101010u - b[1];
            made[3][word] = b[1] + 0x10101010u - b[3];
          }
#pragma unroll
          for (int p = 0; p < 4; ++p) share_words(target + to[i] + (p * 4 + high) * PLANE, made[p]);
        }
      }
      fence_async_proxy();
      __syncwarp();
      if (lane == 0) mbarrier_arrive(v_full + 8 * v.slot);
      named_barrier(1 + TEAMS, 128);  // everyone has read the rows
      if (worker == 0 && k + BUFFERS < bands) fetch(k + BUFFERS, rows.slot);
      rows.advance();
      v.advance();
    }
  }

  // A team's products and requantisation; its results are staged in shared memory, and leave under the next products.
  static __device__ __forceinline__ void multiply(const uint4* __restrict__ weights, unsigned pairs,
                                                  unsigned char* __restrict__ output, unsigned v_full, unsigned v_empty,
                                                  unsigned v_base, unsigned stage, int team, int bands,
                                                  const BandShape& shape) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, group = lane / 4;
    unsigned a[K_STEPS][4];
#pragma unroll
    for (int i = 0; i < K_STEPS; ++i) {
      const uint4 words = weights[i * 128 + thread];
      a[i][0] = words.x;
      a[i][1] = words.y;
      a[i][2] = words.z;
      a[i][3] = words.w;
    }
    wait_for_previous();
    const unsigned constants = pairs + (warp * 8 + group) * sizeof(WinogradPair);
    // A staged pair is 64 bytes, a piece of 16 a warp; pieces change places so that no two of a phase share a bank.
    const unsigned put = stage + lane * (2 * PIXEL) + ((warp ^ ((lane >> 1) & 3)) << 4);
    const unsigned get = stage + thread / 4 * (2 * PIXEL) + (((thread % 4) ^ ((thread >> 3) & 3)) << 4);
    const unsigned long long descriptor = wgmma_descriptor(v_base, PLANE, 128);
    const int units = bands * UNITS, row_bytes = shape.out_channels / 2;
    int unit = team, buffer = 0, band = blockIdx.x;  // of the unit whose products are next
    unsigned parity = 0, stage_offset = 0;
    unsigned char* band_output;
    int band_pairs;  // that lie in the image
    auto enter = [&] {
      const int n = band / shape.bands_of_image, row = (band - n * shape.bands_of_image) * BAND;
      band_pairs = min(BAND, shape.height - row) * PAIRS;
      band_output = output + (static_cast<size_t>(n) * shape.height + row) * (WIDTH * row_bytes) + thread % 4 * 8;
    };
    enter();

    unsigned char* target = nullptr;  // of this thread's pair of the unit that is staged; null where there is none
    bool second = false;              // whether the pair's odd output exists
    auto aim = [&](int i) {
      const int place = unit * UNIT + thread / 4;
      // Of an even width, a band's pairs follow one another.
      const int line = WIDTH % 2 ? place / PAIRS : 0;
      target = i < units && place < band_pairs ? band_output + (2 * place - line) * row_bytes : nullptr;
      second = WIDTH % 2 == 0 || 2 * (place - line * PAIRS) + 1 < WIDTH;
    };
    auto leave = [&] {
      named_barrier(1 + team, 128);
      unsigned words[4];  // bytes of the even and the odd pixel in turn
      load_words(words, get + stage_offset);
      stage_offset ^= STAGE;
      const unsigned even[2] = {__byte_perm(words[0], words[1], 0x6420), __byte_perm(words[2], words[3], 0x6420)};
      const unsigned odd[2] = {__byte_perm(words[0], words[1], 0x7531), __byte_perm(words[2], words[3], 0x7531)};
      if (target == nullptr) return;
      store_words(target, even);
      if (second) store_words(target + row_bytes, odd);
    };
    // Starts the products of positions PX and PY of the next unit. Only their part of U is pinned: the rest may be in
    // use.
    unsigned long long at = descriptor + unit * UNIT;
    auto begin = [&](int (&x)[16], int (&y)[16], auto px, auto py, bool add) {
      constexpr int PX = decltype(px)::value, PY = decltype(py)::value;
#pragma unroll
      for (int r = 0; r < 3; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          pin_registers(a[step(r, PX, h)]);
          pin_registers(a[step(r, PY, h)]);
        }
      wgmma_fence();
#pragma unroll
      for (int r = 0; r < 3; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          WgmmaS8U8<UNIT>::mma(x, a[step(r, PX, h)], at + (PX * 2 + h) * 2 * PLACES + r * PAIRS, add || r + h);
          WgmmaS8U8<UNIT>::mma(y, a[step(r, PY, h)], at + (PY * 2 + h) * 2 * PLACES + r * PAIRS, add || r + h);
        }
      wgmma_commit();
    };
    // Set, for the compiler would else copy registers between the products; while none is under way.
    auto clear = [&](int (&even)[16], int (&odd)[16]) {
#pragma unroll
      for (int e = 0; e < 16; ++e) even[e] = odd[e] = 0;
    };

    // The team's unit `i`; with AHEAD its products of positions 1 and 2 are under way, and so are then those of the
    // next unit. Behind the last unit there is one that is none, so that products begin and end without a condition.
    auto finish_unit = [&](int (&even)[16], int (&odd)[16], int (&next_even)[16], int (&next_odd)[16], int i) {
      if (!AHEAD) {
        clear(even, odd);
        begin(even, odd, Constant<1>{}, Constant<2>{}, false);
      }
      if (i > team) leave();
      aim(i);
      wgmma_wait<0>();
      pin_registers(even);
      pin_registers(odd);
      unsigned offsets[4];  // of the even output's two channels, and of the odd one's
      load_words(offsets, constants);
#pragma unroll
      for (int e = 0; e < 16; ++e) {
        const int sum = even[e] + odd[e] + static_cast<int>(offsets[e / 2 % 2]);
        const int difference = even[e] - odd[e] + static_cast<int>(offsets[2 + e / 2 % 2]);
        even[e] = sum;
        odd[e] = difference;
      }
      pin_registers(even);
      pin_registers(odd);
      if (AHEAD) clear(next_even, next_odd);
      begin(even, odd, Constant<0>{}, Constant<3>{}, true);
      const unsigned empty = v_empty + 8 * buffer;
      unit += TEAMS;
      const bool last = unit >= UNITS;
      if (last) {
        unit -= UNITS;
        band += gridDim.x;
        buffer ^= 1;
        parity ^= buffer == 0;
        enter();
        if (i + TEAMS < units) mbarrier_wait(v_full + 8 * buffer, parity);
      }
      at = descriptor + buffer * (V_BYTES / 16) + unit * UNIT;
      if (AHEAD) begin(next_even, next_odd, Constant<1>{}, Constant<2>{}, false);
      wgmma_wait<AHEAD>();
      pin_registers(even);
      pin_registers(odd);
      if (last && (!AHEAD || i < units)) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty);
      }
      unsigned scale[4];  // factors of the two channels, and corrections
      load_words(scale, constants + 16);
      unsigned words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int byte = 3; byte >= 0; --byte) {  // the pixels of pair 2 * quad, and of the one after it
          int y[2];
#pragma unroll
          for (int channel = 0; channel < 2; ++channel) {
            const int e = 4 * j + 2 * channel + byte / 2;
            y[channel] =
                __float_as_int(__fmaf_rd(__int_as_float(byte % 2 ? odd[e] : even[e]), __uint_as_float(scale[channel]),
                                         __uint_as_float(scale[2 + channel])));
          }
          words[j] = pack_u4(y[1], y[0], byte == 3 ? 0 : words[j]);
        }
      store_transposed(put + stage_offset, words);
    };

    if (bands > 0) mbarrier_wait(v_full, 0);
    int even[1 + AHEAD][16], odd[1 + AHEAD][16];
    if (AHEAD) {
      clear(even[0], odd[0]);
      begin(even[0], odd[0], Constant<1>{}, Constant<2>{}, false);
    }
#pragma unroll 1
    for (int i = team; i < units; i += (1 + AHEAD) * TEAMS) {
      finish_unit(even[0], odd[0], even[AHEAD], odd[AHEAD], i);
      if (AHEAD) finish_unit(even[AHEAD], odd[AHEAD], even[0], odd[0], i + TEAMS);
    }
    if (AHEAD) wgmma_wait<0>();
    if (team < units) leave();
  }
};
