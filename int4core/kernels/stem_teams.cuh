// How the stem kernels with warps of their own for the image work: the 64 channels are the rows of A, whose k-steps
// stay in a thread's registers for the whole kernel; B are the windows of a row of the convolution's outputs, of the
// even columns, then of the odd ones, N together. A row of maxima is made of two rows of products, which have
// accumulators of their own: the products of one run while the other one is reduced.
//
// Of eight neighbouring columns of a wgmma, a thread gets two. The windows are laid so that what a thread gets of all
// of them is a run of neighbouring windows: their maxima take one value of another thread, the last one of the run
// before. A thread's sums of rows `group` and `group` + 8 are two neighbouring channels: a byte of the output, which
// leaves in whole rows.
//
// Roles: TEAMS warpgroups multiply, each with bands of BAND rows of maxima and a ring of its own. Of one more
// warpgroup, two warps a team fill its ring, with what one more row of maxima needs (a group) at a time.
//
// `Lines` says how windows lie in the ring, and fills it:
//   SLOTS of SLOT bytes are the ring, a row's windows begin ROW slots after those of the row before, and a group is two
//   rows; those of a row of maxima begin FIRST slots after its own group, LEAD groups before it;
//   STEPS of K: step i begins in the row's slot(i), and adds descriptor(i) to the lower word of the slot's descriptor;
//   FILL_REGISTERS of a thread that fills, and MULTIPLY_REGISTERS of one that multiplies;
//   clear(ring, thread, threads) makes the ring's parts that are never filled;
//   a group is GROUP_LINES of the image from first_line(group) on, counted from the lines above it that windows read:
//   fetch(image, height, line) reads them into registers, put(address) lays them there.
#pragma once
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

constexpr int STEM_TEAMS = 2;
constexpr int STEM_FILLERS = 128 / STEM_TEAMS;  // threads that fill a team's ring

// Windows of HALF even or odd columns, 16 bytes each: a quarter of them is a run, and thread `quad` of a wgmma's four
// gets two of a run in each of its core matrices.
template <int HALF>
struct Runs {
  static constexpr int LENGTH = HALF / 4;
  static_assert(LENGTH % 2 == 0);

  // The byte where window i begins.
  static __device__ __forceinline__ int place(int i) {
    const int run = i / LENGTH, step = i - run * LENGTH;
    return (step / 2 * 8 + run * 2 + step % 2) * 16;
  }
  // The window that begins at byte 16 * n.
  static __device__ __forceinline__ int window(int n) { return n % 8 / 2 * LENGTH + n / 8 * 2 + n % 2; }
};

// Lines of all three colours, of a team's image, to the L2: LINES of them that exist, a piece a thread.
template <int WIDTH, int LINES>
__device__ __forceinline__ void prefetch_lines(const signed char* image, int height, int first_line) {
  constexpr int PIECES = (LINES * WIDTH + 127) / 128;
  static_assert(3 * PIECES <= STEM_FILLERS);
  const int worker = threadIdx.x % STEM_FILLERS, colour = worker / PIECES, piece = worker - colour * PIECES;
  if (colour < 3 && first_line >= 0 && first_line + LINES <= height)
    prefetch(image + (colour * height + first_line) * WIDTH + piece * 128);
}

template <class Lines, int WIDTH, int ROWS, int COLUMNS, int POOLED, int TILE_N, int BAND>
struct StemTeams {
  static constexpr int TEAMS = STEM_TEAMS, FILLERS = STEM_FILLERS, CHANNELS = 64;
  static constexpr int THREADS = 128 * (TEAMS + 1);
  static constexpr int HALF = TILE_N / 2;  // even columns, and odd ones
  static constexpr int RUN = Runs<HALF>::LENGTH;
  static constexpr int SLOTS = Lines::SLOTS, GROUP = 2 * Lines::ROW, LEAD = Lines::LEAD, STEPS = Lines::STEPS;
  static constexpr int GROUPS = SLOTS / GROUP;  // that the ring holds
  static constexpr int ROW_BYTES = POOLED * (CHANNELS / 2);
  static constexpr int RING_BYTES = SLOTS * Lines::SLOT, TEAM_BYTES = RING_BYTES + 2 * ROW_BYTES;
  static constexpr int NOTHING = -2147483647 - 1;  // less than every sum
  static_assert(SLOTS % GROUP == 0 && GROUPS >= LEAD + 2);

  // Bands of a team, one after another; where there are few, every block's first team gets one before the second does.
  struct Bands {
    int next, step, end;
    int n, first, last;  // the image of the band, its first row of maxima, and the one after its last
    __device__ __forceinline__ Bands(const TeamsShape& shape, int team)
        : next(team * gridDim.x + blockIdx.x), step(gridDim.x * TEAMS), end(shape.bands) {}
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
    const unsigned ring = shared_address(memory) + team * TEAM_BYTES;
    const unsigned full = shared_address(barriers) + team * (16 * GROUPS), empty = full + 8 * GROUPS;
    if (threadIdx.x == 0) {
      for (int i = 0; i < TEAMS * 2 * GROUPS; ++i)
        mbarrier_init(shared_address(barriers + i), i / GROUPS % 2 == 0 ? FILLERS / 32 : 4);
      mbarrier_init_fence();
    }
    if (fills) {
      Lines::clear(ring, threadIdx.x % FILLERS, FILLERS);
      fence_async_proxy();
    }
    __syncthreads();
    let_next_start();
    if (fills) {
      release_registers<Lines::FILL_REGISTERS>();
      wait_for_previous();
      fill(images, ring, full, empty, team, shape);
    } else {
      claim_registers<Lines::MULTIPLY_REGISTERS>();
      multiply(weights, channels, output, ring, full, empty, team, shape);
    }
  }

  // Two warps that fill a team's ring.
  static __device__ __forceinline__ void fill(const signed char* __restrict__ images, unsigned base, unsigned full,
                                              unsigned empty, int team, const TeamsShape& shape) {
    Lines lines(threadIdx.x % FILLERS);
    Ring ring(GROUPS);
    Bands bands(shape, team);
    const auto image_of = [&](const Bands& those) {
      return images + static_cast<size_t>(those.n) * 3 * shape.height * WIDTH;
    };
    while (bands.take(shape)) {
      Bands later = bands;
      if (later.take(shape))
        prefetch_lines<WIDTH, 8>(image_of(later), shape.height,
                                 max(0, Lines::first_line(later.first - LEAD) - shape.pad_h));
#pragma unroll 1
      for (int group = bands.first - LEAD; group < bands.last; ++group) {
        const int line = Lines::first_line(group) - shape.pad_h;
        lines.fetch(image_of(bands), shape.height, line);
        prefetch_lines<WIDTH, Lines::GROUP_LINES>(image_of(bands), shape.height, line + 2 * Lines::GROUP_LINES);
        mbarrier_wait(empty + 8 * ring.slot, ring.parity ^ 1);
        lines.put(base + ring.slot * (GROUP * Lines::SLOT));
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
    unsigned a[STEPS][4];
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const uint4 words = weights[i * 128 + thread];
      a[i][0] = words.x;
      a[i][1] = words.y;
      a[i][2] = words.z;
      a[i][3] = words.w;
    }
    const ChannelPair pair = channels[warp * 8 + group];
    wait_for_previous();

    const unsigned long long descriptor = wgmma_descriptor(lines, TILE_N * 16, 128);
    const unsigned descriptor_low = static_cast<unsigned>(descriptor);
    int evens[TILE_N / 2], odds[TILE_N / 2];  // sums of an even row, and of an odd one
    unsigned groups[LEAD + 1] = {};  // lower words of the descriptors of a row of maxima's groups, its own last
    // Starts the products of a row whose windows begin FIRST slots after the last group.
    auto begin = [&](int (&sums)[TILE_N / 2], auto first) {
#pragma unroll
      for (int i = 0; i < STEPS; ++i) pin_registers(a[i]);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < STEPS; ++i) {
        const int slot = LEAD * GROUP + decltype(first)::value + Lines::slot(i);
        // No carry leaves the address' bits: 32-bit arithmetic will do.
        const unsigned at = groups[slot / GROUP] + (slot % GROUP * (Lines::SLOT / 16) + Lines::descriptor(i));
        WgmmaS8<TILE_N>::mma(sums, a[i], descriptor >> 32 << 32 | at, i);
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
    auto take_group = [&] {
      mbarrier_wait(full + 8 * filled.slot, filled.parity);
#pragma unroll
      for (int i = 0; i < LEAD; ++i) groups[i] = groups[i + 1];
      groups[LEAD] = descriptor_low + filled.slot * (GROUP * Lines::SLOT / 16);
      filled.advance();
    };
    auto release_group = [&] {
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty + 8 * emptied.slot);
      emptied.advance();
    };
    const unsigned staging = lines + RING_BYTES;
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

    int before[2][RUN], both[2][RUN];  // maxima of the last row, and of the even one
    Bands bands(shape, team);
    while (bands.take(shape)) {
#pragma unroll
      for (int i = 0; i < LEAD; ++i) take_group();
      if (bands.first > 0) {
        begin(odds, Constant<Lines::FIRST + Lines::ROW>{});
        wgmma_wait<0>();
        pin_registers(odds);
#pragma unroll
        for (int half = 0; half < 2; ++half) across(odds, half, [&](int i, int maximum) { before[half][i] = maximum; });
      } else {
#pragma unroll
        for (int i = 0; i < RUN; ++i) before[0][i] = before[1][i] = NOTHING;
      }
      take_group();
      begin(evens, Constant<Lines::FIRST>{});
      wgmma_wait<0>();
      pin_registers(evens);
#pragma unroll 1
      for (int pooled = bands.first; pooled < bands.last; ++pooled) {
        begin(odds, Constant<Lines::FIRST + Lines::ROW>{});
#pragma unroll
        for (int half = 0; half < 2; ++half) across(evens, half, [&](int i, int maximum) { both[half][i] = maximum; });
        pin_registers(both[0]);
        pin_registers(both[1]);
        leave(from);
        const bool more = pooled + 1 < bands.last;
        if (more) take_group();
        wgmma_wait<0>();
        pin_registers(odds);
        if (more) begin(evens, Constant<Lines::FIRST>{});
        release_group();
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
