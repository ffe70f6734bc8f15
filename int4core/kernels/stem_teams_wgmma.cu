// First convolution of the network with its 3x3 maximum of stride 2, on wgmma, the weights as A (see stem_teams.cuh):
// windows as they lie in the image, at four bytes per pixel.
//
// A line of a window is one k-step, two halves of four pixels, 16 bytes each. A line of the image is four planes of
// them: the first halves of even and of odd columns, then the second halves.
//
// Compile-time constants: TAPS_H; STRIDE_H; WIDTH of the image; LEAD_QUADS: groups of four pixels before the image that
// the first window reads; ROWS of the convolution's outputs, COLUMNS of one, and POOLED of a row of maxima; TILE_N:
// COLUMNS up to a whole number of wgmma columns; RING: lines of the image that a team keeps; BAND.
#include "stem_teams.cuh"

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

template <int TAPS_H, int STRIDE_H, int WIDTH, int LEAD_QUADS, int TILE_N, int RING>
struct WholePixels {
  static constexpr int HALF = TILE_N / 2, QUADS = (WIDTH + 3) / 4;
  static constexpr int SLOT = 4 * HALF * 16, SLOTS = RING;  // lines of the image
  static constexpr int ROW = STRIDE_H, GROUP = 2 * ROW, GROUP_LINES = GROUP;
  static constexpr int FIRST = STRIDE_H - TAPS_H, LEAD = (TAPS_H + GROUP - 1) / GROUP;
  static constexpr int STEPS = TAPS_H;
  static constexpr int FILL_REGISTERS = 56, MULTIPLY_REGISTERS = 224;
  static_assert(QUADS <= STEM_FILLERS && HALF <= STEM_FILLERS);

  static __device__ __forceinline__ constexpr int first_line(int group) { return (2 * group - 1) * STRIDE_H + TAPS_H; }
  static __device__ __forceinline__ constexpr int slot(int i) { return i; }
  static __device__ __forceinline__ constexpr unsigned descriptor(int) { return 0; }

  const int quad;  // that this thread fetches; neighbouring lanes put theirs to neighbouring places
  const QuadPlaces<HALF> places;
  unsigned colours[GROUP][3];

  __device__ __forceinline__ explicit WholePixels(int worker)
      : quad(worker < HALF ? Runs<HALF>::window(worker) : worker), places(quad + LEAD_QUADS, worker & 8) {}

  // What windows read beside the image: zeros.
  static __device__ __forceinline__ void clear(unsigned ring, int thread, int threads) {
    constexpr int BEYOND = HALF + 2 - QUADS;
    for (int i = thread; i < RING * BEYOND; i += threads) {
      const int line = i / BEYOND, place = i - line * BEYOND;
      QuadPlaces<HALF>(place < LEAD_QUADS ? place : place + QUADS, false)
          .put(ring + line * SLOT, make_uint4(0, 0, 0, 0));
    }
  }

  __device__ __forceinline__ void fetch(const signed char* image, int height, int first_line) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const signed char* const plane = image + (c * height + first_line) * WIDTH;
#pragma unroll
      for (int i = 0; i < GROUP; ++i) {
        const bool exists = quad < QUADS && static_cast<unsigned>(first_line + i) < static_cast<unsigned>(height);
        colours[i][c] = exists ? four_pixels<WIDTH>(plane + i * WIDTH, quad * 4) : 0;
      }
    }
  }

  __device__ __forceinline__ void put(unsigned address) const {
    if (quad >= QUADS) return;
#pragma unroll
    for (int i = 0; i < GROUP; ++i)
      places.put(address + i * SLOT, interleave(colours[i][0], colours[i][1], colours[i][2]));
  }
};

template <int TAPS_H, int STRIDE_H, int WIDTH, int LEAD_QUADS, int ROWS, int COLUMNS, int POOLED, int TILE_N, int RING,
          int BAND>
struct StemTeamsWgmma {
  using Lines = WholePixels<TAPS_H, STRIDE_H, WIDTH, LEAD_QUADS, TILE_N, RING>;
  using Teams = StemTeams<Lines, WIDTH, ROWS, COLUMNS, POOLED, TILE_N, BAND>;
  static constexpr int THREADS = Teams::THREADS;
  static constexpr int BLOCKS = 1;  // a multiprocessor

  static __device__ __forceinline__ void run(const signed char* __restrict__ images, const uint4* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const TeamsShape& shape) {
    Teams::run(images, weights, channels, output, shape);
  }
};
