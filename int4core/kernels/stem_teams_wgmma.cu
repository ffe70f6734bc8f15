// First convolution of the network with its 3x3 maximum of stride 2, on wgmma, the weights as A, as in
// stem_lines_wgmma.cu; here warps of their own read the image, and a row's products run while the row before is
// reduced.
//
// The 64 channels are the rows of A, a window's line is one k-step, and the weights stay in a thread's registers for
// the whole kernel. The image's lines are B: a row of the convolution's outputs is one wgmma of N columns a window's
// line, first the even columns, then the odd ones. A window is two halves of four pixels, 16 bytes each, and a line of
// the image four planes of them: the first halves of even and of odd columns, then the second halves.
//
// Of eight neighbouring columns of a wgmma, a thread gets two. The planes are laid so that what a thread gets of all of
// them is a run of neighbouring windows: their maxima take one value of another thread, the last one of the run before.
// A thread's sums of rows `group` and `group` + 8 are two neighbouring channels: a byte of the output, which leaves in
// whole rows.
//
// Roles: TEAMS warpgroups, each with bands of BAND rows of maxima and a ring of the image's lines of its own, multiply;
// a row of maxima takes two rows of products, which have accumulators of their own. Of one more warpgroup, two warps a
// team fill its ring, a row of maxima's new lines (a group) at a time.
//
// Compile-time constants: TAPS_H; STRIDE_H; WIDTH of the image; LEAD_QUADS: groups of four pixels before the image that
// the first window reads; ROWS of the convolution's outputs, COLUMNS of one, and POOLED of a row of maxima; TILE_N:
// COLUMNS up to a whole number of wgmma columns; RING; BAND.
#include "epilogue/narrow.cuh"
#include "ptx/bulk_store.cuh"
#include "ptx/dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/named_barrier.cuh"
#include "ptx/prefetch.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_s8.cuh"
#include "stages.cuh"
#include "stem_pixels.cuh"

// Windows of a plane: a quarter of its HALF columns is a run, and thread `quad` of a wgmma's four gets two of a run in
// each of its core matrices.
template <int HALF>
struct Runs {
  static constexpr int LENGTH = HALF / 4;
  static_assert(LENGTH % 2 == 0);

  // The byte of a plane where window i begins.
  static __device__ __forceinline__ int place(int i) {
    const int run = i / LENGTH, step = i - run * LENGTH;
    return (step / 2 * 8 + run * 2 + step % 2) * 16;
  }
  // The window that begins at byte 16 * n.
  static __device__ __forceinline__ int window(int n) { return n % 8 / 2 * LENGTH + n / 8 * 2 + n % 2; }
};

// Where a thread puts four pixels of a line: to the first half of window i of plane 0, of which they are all four, and
// to the second half of the window before; planes 1 and 3 begin two pixels later, so that they get two and two.
// Which two of them first is another one for every other eight lanes: their stores then take all banks.
template <int HALF>
struct QuadPlaces {
  static constexpr int PLANE = HALF * 16;
  int whole[2], early[2], late[2];  // bytes of a line, of planes 0 and 2, and 1 and 3; negative: none
  bool swapped;

  __device__ __forceinline__ QuadPlaces(int i, bool last_first) : swapped(last_first) {
    const auto at = [](int window, int offset) {
      return static_cast<unsigned>(window) < HALF ? Runs<HALF>::place(window) + offset : -1;
    };
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int window = i - second, plane = 2 * second * PLANE;
      whole[second] = at(window, plane);
      const int end = at(window, plane + PLANE), begin = at(window - 1, plane + PLANE + 8);
      early[second] = swapped ? begin : end;
      late[second] = swapped ? end : begin;
    }
  }

  __device__ __forceinline__ void put(unsigned line, uint4 pixels) const {
    const unsigned all[4] = {pixels.x, pixels.y, pixels.z, pixels.w};
    const unsigned first[2] = {swapped ? pixels.x : pixels.z, swapped ? pixels.y : pixels.w};
    const unsigned then[2] = {swapped ? pixels.z : pixels.x, swapped ? pixels.w : pixels.y};
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      if (whole[second] >= 0) share_words(line + whole[second], all);
      if (early[second] >= 0) share_words(line + early[second], first);
      if (late[second] >= 0) share_words(line + late[second], then);
    }
  }
};

template <int TAPS_H, int STRIDE_H, int WIDTH, int LEAD_QUADS, int ROWS, int COLUMNS, int POOLED, int TILE_N, int RING,
          int BAND>
struct StemTeamsWgmma {
  static constexpr int TEAMS = 2, CHANNELS = 64;
  static constexpr int THREADS = 128 * (TEAMS + 1);
  static constexpr int BLOCKS = 1;         // a multiprocessor
  static constexpr int HALF = TILE_N / 2;  // even columns, and odd ones
  static constexpr int RUN = Runs<HALF>::LENGTH;
  static constexpr int LINE = 4 * HALF * 16;
  static constexpr int QUADS = (WIDTH + 3) / 4;              // of a line
  static constexpr int GROUP = 2 * STRIDE_H;                 // lines that one more row of maxima needs
  static constexpr int GROUPS = RING / GROUP;                // that the ring holds
  static constexpr int LEAD = (TAPS_H + GROUP - 1) / GROUP;  // groups that a row of maxima needs before its own
  static constexpr int ROW_BYTES = POOLED * (CHANNELS / 2);
  static constexpr int TEAM_BYTES = RING * LINE + 2 * ROW_BYTES;
  static constexpr int NOTHING = -2147483647 - 1;             // less than every sum
  static constexpr int FILLERS = 128 / TEAMS;                 // threads that fill a team's ring
  static constexpr int PIECES = (GROUP * WIDTH + 127) / 128;  // of 128 bytes, of a group's lines of a colour
  static_assert(QUADS <= FILLERS && HALF <= FILLERS && 3 * PIECES <= FILLERS);
  static_assert((RING & (RING - 1)) == 0 && RING % GROUP == 0 && GROUPS >= LEAD + 2);

  // Bands of a team, one after another.
  struct Bands {
    int next, step, end;
    int n, first, last;  // the image of the band, its first row of maxima, and the one after its last
    __device__ __forceinline__ Bands(const TeamsShape& shape, int team)
        : next(blockIdx.x * TEAMS + team), step(gridDim.x * TEAMS), end(shape.bands) {}
    __device__ __forceinline__ bool take(const TeamsShape& shape) {
      if (next >= end) return false;
      n = next / shape.bands_of_image;
      first = (next - n * shape.bands_of_image) * BAND;
      last = min(first + BAND, shape.pooled_h);
      next += step;
      return true;
    }
  };

  static __device__ __forceinline__ void run(const signed char* __restrict__ images, const uint4* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const TeamsShape& shape) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) unsigned long long barriers[TEAMS * 2 * GROUPS];
    // Through lane 0, so that the compiler sees a warp-uniform value.
    const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
    const bool fills = warp >= TEAMS * 4;
    const int team = fills ? (warp - TEAMS * 4) / (4 / TEAMS) : warp / 4;
    const unsigned lines = shared_address(memory) + team * TEAM_BYTES;
    const unsigned full = shared_address(barriers) + team * (16 * GROUPS), empty = full + 8 * GROUPS;
    if (threadIdx.x == 0) {
      for (int i = 0; i < TEAMS * 2 * GROUPS; ++i)
        mbarrier_init(shared_address(barriers + i), i / GROUPS % 2 == 0 ? FILLERS / 32 : 4);
      mbarrier_init_fence();
    }
    // What windows read beside the image: zeros, once for all lines.
    constexpr int BEYOND = HALF + 2 - QUADS;
    for (int i = threadIdx.x; i < TEAMS * RING * BEYOND; i += THREADS) {
      const int line = i / BEYOND, place = i - line * BEYOND;
      QuadPlaces<HALF>(place < LEAD_QUADS ? place : place + QUADS, false)
          .put(shared_address(memory) + line / RING * TEAM_BYTES + line % RING * LINE, make_uint4(0, 0, 0, 0));
    }
    fence_async_proxy();
    __syncthreads();
    let_next_start();
    if (fills) {
      release_registers<40>();
      wait_for_previous();
      fill(images, lines, full, empty, team, shape);
    } else {
      claim_registers<232>();
      multiply(weights, channels, output, lines, full, empty, team, shape);
    }
  }

  // Two warps that fill a team's ring.
  static __device__ __forceinline__ void fill(const signed char* __restrict__ images, unsigned lines, unsigned full,
                                              unsigned empty, int team, const TeamsShape& shape) {
    const int worker = threadIdx.x % FILLERS, plane = shape.height * WIDTH;
    // Neighbouring lanes put their pixels to neighbouring places.
    const int quad = worker < HALF ? Runs<HALF>::window(worker) : worker;
    const QuadPlaces<HALF> places(quad + LEAD_QUADS, threadIdx.x & 8);
    Ring ring(GROUPS);
    Bands bands(shape, team);
    while (bands.take(shape)) {
      const signed char* const image = images + static_cast<size_t>(bands.n) * 3 * plane;
#pragma unroll 1
      for (int group = bands.first - LEAD; group < bands.last; ++group) {
        const int first_line = (2 * group - 1) * STRIDE_H - shape.pad_h + TAPS_H;
        unsigned colours[GROUP][3];
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
          const int line = first_line + i;
          colours[i][0] = colours[i][1] = colours[i][2] = 0;
          if (quad < QUADS && static_cast<unsigned>(line) < static_cast<unsigned>(shape.height)) {
#pragma unroll
            for (int c = 0; c < 3; ++c) colours[i][c] = four_pixels<WIDTH>(image + c * plane + line * WIDTH, quad * 4);
          }
        }
        // The L2 then has the lines of the group after the next one when they are read.
        const int ahead = first_line + 2 * GROUP, piece = worker % PIECES;
        if (worker < 3 * PIECES && ahead >= 0 && ahead + GROUP <= shape.height)
          prefetch(image + worker / PIECES * plane + ahead * WIDTH + piece * 128);
        mbarrier_wait(empty + 8 * ring.slot, ring.parity ^ 1);
        if (quad < QUADS) {
#pragma unroll
          for (int i = 0; i < GROUP; ++i)
            places.put(lines + (ring.slot * GROUP + i) * LINE, interleave(colours[i][0], colours[i][1], colours[i][2]));
        }
        fence_async_proxy();
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(full + 8 * ring.slot);
        ring.advance();
      }
    }
  }

  // A team's products, maxima and requantisation.
  static __device__ __forceinline__ void multiply(const uint4* __restrict__ weights,
                                                  const ChannelPair* __restrict__ channels,
                                                  unsigned char* __restrict__ output, unsigned lines, unsigned full,
                                                  unsigned empty, int team, const TeamsShape& shape) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, group = lane / 4, quad = lane % 4;
    unsigned a[TAPS_H][4];
#pragma unroll
    for (int r = 0; r < TAPS_H; ++r) {
      const uint4 words = weights[r * 128 + thread];
      a[r][0] = words.x;
      a[r][1] = words.y;
      a[r][2] = words.z;
      a[r][3] = words.w;
    }
    const ChannelPair pair = channels[warp * 8 + group];
    wait_for_previous();

    const unsigned long long descriptor = wgmma_descriptor(lines, 2 * HALF * 16, 128);
    const unsigned descriptor_low = static_cast<unsigned>(descriptor);
    int evens[TILE_N / 2], odds[TILE_N / 2];               // sums of an even row, and of an odd one
    auto begin = [&](int (&sums)[TILE_N / 2], int line) {  // starts the products of a row whose windows begin there
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
    // The maxima over three columns of a row, of a channel and its run of windows: use(i, maximum) for each of them.
    auto across = [&](const int (&sums)[TILE_N / 2], int half, auto use) {
      auto column = [&](int parity, int i) { return sums[4 * (parity * (HALF / 8) + i / 2) + 2 * half + i % 2]; };
      const int beside = __shfl_up_sync(0xFFFFFFFFu, column(1, RUN - 1), 1);
      int left = quad == 0 ? NOTHING : beside;
#pragma unroll
      for (int i = 0; i < RUN; ++i) {
        int right = column(1, i);
        // The columns may end with an even one; what follows it is never stored, nor read by the left.
        if (COLUMNS % 2 && i == COLUMNS / 2 % RUN && quad == COLUMNS / 2 / RUN) right = NOTHING;
        use(i, max(max(left, column(0, i)), right));
        left = right;
      }
    };

    Ring filled(GROUPS), emptied(GROUPS);
    auto await_group = [&] {
      mbarrier_wait(full + 8 * filled.slot, filled.parity);
      filled.advance();
    };
    auto release_group = [&] {
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty + 8 * emptied.slot);
      emptied.advance();
    };
    const unsigned staging = lines + RING * LINE;
    unsigned stage = staging + quad * (RUN * CHANNELS / 2) + warp * 8 + group;
    int stage_step = ROW_BYTES;       // to the other half of `staging`
    unsigned char* staged = nullptr;  // where the row goes that waits there
    auto leave = [&](unsigned from) {
      fence_async_proxy();
      if (thread == 0) bulk_store_wait_read<0>();  // the row before has left the other half
      named_barrier(1 + team, 128);
      if (thread == 0 && staged != nullptr) {
        bulk_store(staged, from, ROW_BYTES);
        bulk_store_commit();
      }
    };
    unsigned from = staging + ROW_BYTES;

    int at = 0;                        // where the group begins that is the current row's
    int before[2][RUN], both[2][RUN];  // maxima of the last row, and of the even one
    Bands bands(shape, team);
    while (bands.take(shape)) {
#pragma unroll
      for (int i = 0; i < LEAD; ++i) await_group();
      at += LEAD * GROUP;
      if (bands.first > 0) {
        begin(odds, at - TAPS_H);
        wgmma_wait<0>();
        pin_registers(odds);
#pragma unroll
        for (int half = 0; half < 2; ++half) across(odds, half, [&](int i, int maximum) { before[half][i] = maximum; });
      } else {
#pragma unroll
        for (int i = 0; i < RUN; ++i) before[0][i] = before[1][i] = NOTHING;
      }
      await_group();
      begin(evens, at + STRIDE_H - TAPS_H);
      wgmma_wait<0>();
      pin_registers(evens);
#pragma unroll 1
      for (int pooled = bands.first; pooled < bands.last; ++pooled) {
        begin(odds, at + GROUP - TAPS_H);
        at += GROUP;
#pragma unroll
        for (int half = 0; half < 2; ++half) across(evens, half, [&](int i, int maximum) { both[half][i] = maximum; });
        pin_registers(both[0]);
        pin_registers(both[1]);
        leave(from);
        wgmma_wait<0>();
        pin_registers(odds);
        release_group();
        if (pooled + 1 < bands.last) {
          await_group();
          begin(evens, at + STRIDE_H - TAPS_H);
        }
        const bool exists = ROWS % 2 == 0 || 2 * pooled + 1 < ROWS;  // the odd row
        const unsigned unused[1] = {};
        int low[RUN];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          across(odds, half, [&](int i, int maximum) {
            const int own = exists ? maximum : NOTHING;
            const int result = requantize<0>(max(max(before[half][i], both[half][i]), own), pair, half, unused, 0);
            before[half][i] = own;
            if (half == 0) {
              low[i] = result;
            } else if (3 * RUN + i < POOLED || quad * RUN + i < POOLED) {
              asm volatile("st.shared.b8 [%0], %1;" ::"r"(stage + i * (CHANNELS / 2)), "r"(pack_u4(result, low[i], 0))
                           : "memory");
            }
          });
        staged = output + (static_cast<size_t>(bands.n) * shape.pooled_h + pooled) * ROW_BYTES;
        from = 2 * staging + ROW_BYTES - from;
        stage += stage_step;
        stage_step = -stage_step;
        wgmma_wait<0>();
        pin_registers(evens);
      }
#pragma unroll
      for (int i = 0; i < LEAD; ++i) release_group();
    }
    leave(from);
    if (thread == 0) bulk_store_wait<0>();
  }
};
