// First convolution of the network with its 3x3 maximum of stride 2, on wgmma, the weights as A (see stem_teams.cuh):
// windows of up to 7x7 pixels with stride 2 in five k-steps instead of seven, without a fourth byte per pixel.
//
// The seven pixels of a window's line are 21 bytes: 16 of them, the line's head, are half a k-step
//
//   R0 ... R3  G0 ... G3  B0 ... B3  R4 R5 R6 G4
//
// and the five others, its tail, G5 G6 B4 B5 and B6. Two neighbouring lines are a slot of the ring: slot k, counted
// from the lines above the image that the first window reads, has four pieces of 16 bytes a window: heads of the lines
// 2k and 2k + 1; the tails of 2k - 2, 2k - 1 and 2k; and the tail of 2k + 1. The windows of row r of the convolution
// are the lines 2r ... 2r + 6, so slots r to r + 3:
//
//   steps 0, 1, 2   slot r + 0, 1, 2: the two heads
//   step 3          slot r + 3: the first head, and the tails of 2r + 4, 2r + 5 and 2r + 6
//   step 4          slot r + 1: the tails of 2r, 2r + 1 and 2r + 2, and of 2r + 3
//
// What else lies in a piece meets weights of zero.
//
// Compile-time constants: WIDTH of the image; PAD_W: columns before it, 1 to 4; ROWS of the convolution's outputs,
// COLUMNS of one, and POOLED of a row of maxima; TILE_N: COLUMNS up to a whole number of wgmma columns; BAND.
#include "stem_teams.cuh"

template <int WIDTH, int PAD_W, int TILE_N>
struct DensePixels {
  static constexpr int HALF = TILE_N / 2, QUADS = (WIDTH + 3) / 4;
  static constexpr int PIECE = TILE_N * 16;  // of all windows of a row, even columns, then odd ones
  static constexpr int SLOT = 4 * PIECE, SLOTS = 8;
  static constexpr int ROW = 1, FIRST = -3, LEAD = 2;
  static constexpr int STEPS = 5, GROUP_LINES = 4;
  static constexpr int FILL_REGISTERS = 72, MULTIPLY_REGISTERS = 216;
  static_assert(HALF <= STEM_FILLERS && PAD_W >= 1 && PAD_W <= 4);

  static __device__ __forceinline__ constexpr int first_line(int group) { return 4 * group + 6; }
  static __device__ __forceinline__ constexpr int slot(int i) { return i == 4 ? 1 : i; }
  // From the first of a step's pieces to the second is one piece, and two in step 3; step 4 begins with the third
  // piece.
  static __device__ __forceinline__ constexpr unsigned descriptor(int i) {
    return i == 3 ? PIECE / 16 << 16 : i == 4 ? 2 * PIECE / 16 : 0;
  }

  const int worker, window;
  bool exists[3];           // whether the four pixels before 4 * window do, those there, and those after
  unsigned words[4][3][3];  // of four lines, three colours: the four pixels at 4 * window, those before and after
  unsigned tails[2][2], lasts[2];  // of the two lines before, of the even column and the odd one: tails, and their B6

  __device__ __forceinline__ explicit DensePixels(int thread)
      : worker(thread), window(Runs<HALF>::window(thread)), tails{}, lasts{} {
#pragma unroll
    for (int x = 0; x < 3; ++x) exists[x] = worker < HALF && static_cast<unsigned>(window + x - 1) < QUADS;
  }

  static __device__ __forceinline__ void clear(unsigned, int, int) {}

  __device__ __forceinline__ void fetch(const signed char* image, int height, int first_line) {
    const signed char* const start = image + first_line * WIDTH;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const signed char* const plane = start + c * height * WIDTH;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool line = static_cast<unsigned>(first_line + i) < static_cast<unsigned>(height);
#pragma unroll
        for (int x = 0; x < 3; ++x)
          words[i][c][x] = line && exists[x] ? four_pixels<WIDTH>(plane + i * WIDTH, (window + x - 1) * 4) : 0;
      }
    }
  }

  // Bytes FROM ... FROM + 3 of twelve; zeros after the last.
  template <int FROM>
  static __device__ __forceinline__ unsigned four_bytes(const unsigned (&twelve)[3]) {
    constexpr int SHIFT = FROM % 4, LOW = FROM / 4;
    return __byte_perm(twelve[LOW], LOW < 2 ? twelve[LOW < 2 ? LOW + 1 : 2] : 0, 0x3210 + 0x1111 * SHIFT);
  }

  // A line of the even (ODD = 0) or odd column's window: its head, the first four bytes of its tail, and B4, B5, B6.
  template <int ODD>
  static __device__ __forceinline__ void split(const unsigned (&colours)[3][3], unsigned (&head)[4], unsigned& tail,
                                               unsigned& blue) {
    constexpr int FROM = 4 - PAD_W + 2 * ODD;
    const unsigned red = four_bytes<FROM + 4>(colours[0]), green = four_bytes<FROM + 4>(colours[1]);
    blue = four_bytes<FROM + 4>(colours[2]);
#pragma unroll
    for (int c = 0; c < 3; ++c) head[c] = four_bytes<FROM>(colours[c]);
    head[3] = __byte_perm(red, green, 0x4210);
    tail = __byte_perm(green, blue, 0x5421);
  }

  template <int ODD>
  __device__ __forceinline__ void put_column(unsigned address) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const unsigned at = address + k * SLOT + ODD * (HALF * 16);
      unsigned head[2][4], tail[2], blue[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        split<ODD>(words[2 * k + i], head[i], tail[i], blue[i]);
        share_words(at + i * PIECE, head[i]);
      }
      const unsigned three[4] = {tails[ODD][0], tails[ODD][1], tail[0], __byte_perm(lasts[ODD], blue[0], 0x0610)};
      const unsigned one[2] = {tail[1], blue[1]};
      share_words(at + 2 * PIECE, three);
      share_words(at + 3 * PIECE, one);
      tails[ODD][0] = tail[0];
      tails[ODD][1] = tail[1];
      lasts[ODD] = __byte_perm(blue[0], blue[1], 0x0062);
    }
  }

  __device__ __forceinline__ void put(unsigned address) {
    if (worker >= HALF) return;
    put_column<0>(address + worker * 16);
    put_column<1>(address + worker * 16);
  }
};

template <int WIDTH, int PAD_W, int ROWS, int COLUMNS, int POOLED, int TILE_N, int BAND>
struct StemDenseWgmma {
  using Teams = StemTeams<DensePixels<WIDTH, PAD_W, TILE_N>, WIDTH, ROWS, COLUMNS, POOLED, TILE_N, BAND>;
  static constexpr int THREADS = Teams::THREADS;
  static constexpr int BLOCKS = 1;  // a multiprocessor

  static __device__ __forceinline__ void run(const signed char* __restrict__ images, const uint4* __restrict__ weights,
                                             const ChannelPair* __restrict__ channels,
                                             unsigned char* __restrict__ output, const TeamsShape& shape) {
    Teams::run(images, weights, channels, output, shape);
  }
};
