// What the kernels know of an image: records of IMAGE in pipeline/jpeg/plan.py. Addresses are the device's.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct Header {  // as parse.py packs it
  u32 scan_begin, scan_bytes;
  u16 width, height, restart;
  u8 components, h, v;
  u8 dc_table[3], ac_table[3], pad;
  u8 counts[4][16], symbols[4][256];
  u16 quantization[3][64];
};

struct Window {  // the part of a component that is decoded: a plane of 8 x 8 blocks
  u8* plane;
  int first_column, columns, first_row, rows;  // in blocks
  int width, height;                           // of the whole component, in pixels
};

struct Axis {  // one side's resampling, or one that leaves it as it is
  int* taps;   // see taps.cu
  int old_size, new_size, offset;
  int most_taps;
  int begin, end;  // the pixels that are read
};

struct Image {
  Header header;
  const u8* scan;
  u32* stream;  // the scan without stuffing, in words of which the first bit is the highest
  u8* arena;    // of all lanes
  u32* intervals;
  u32* lane_first;  // [lanes + 1]: blocks before the lane's
  int* lane_dc;     // [lanes][4]: DC before the lane's, by component
  u8* out;          // int8 [3][SIZE][SIZE], or uint8 [height][width][3]
  u32* passes;      // between the two passes
  Window windows[3];
  Axis x, y;
  u32 mcus_x, mcus_y, blocks;  // MCUs a row and a column; blocks of the scan
  u32 lanes, lane_bits, lane_bytes, interval_count;
  int vertical_first;
};

static_assert(sizeof(Image) == 1752, "what plan.py makes");

// Why an image goes to the CPU: bits of its word in `damage`, as DAMAGE in plan.py names them.
enum Damage : u32 {
  MARKER_IN_SCAN = 1,
  RESTART_MARKERS = 2,
  BAD_TABLE = 4,
  TOO_DENSE = 8,
  BAD_CODE = 16,
  BAD_LENGTH = 32,
  OUT_OF_RANGE = 64,
};

// An address out of a record may be of any memory, as far as the compiler knows: loads by it are slower than need be.
template <typename T>
__device__ __forceinline__ T* in_global(T* pointer) {
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

__device__ __forceinline__ int blocks_per_mcu(const Header& header) {
  return header.components == 1 ? 1 : header.h * header.v + 2;
}

__device__ __forceinline__ int clamp(int value, int low, int high) { return min(max(value, low), high); }

// sat(low) | sat(high) << 8 | rest << 16, saturated to uint8
__device__ __forceinline__ u32 pack_bytes(int high, int low, u32 rest) {
  u32 packed;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(high), "r"(low), "r"(rest));
  return packed;
}
