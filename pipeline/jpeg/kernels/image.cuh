// What the kernels share about images. Header, Window, Axis and Image are made from STRUCTS of pipeline/jpeg/plan.py.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

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
