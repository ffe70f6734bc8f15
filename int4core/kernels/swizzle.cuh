// Boxes of 128 bytes a row as the copy engine swizzles them: piece i (16 bytes) of row r lies at place i xor (r mod 8).
#pragma once
#include "ptx/mbarrier.cuh"

constexpr int BOX_ALIGNMENT = 1024;  // of a box

// The first place for a box in dynamic shared memory.
__device__ __forceinline__ unsigned first_box(const unsigned char* memory) {
  return (shared_address(memory) + BOX_ALIGNMENT - 1) & ~(BOX_ALIGNMENT - 1u);
}

// The row of each eight that a group of four lanes takes, so that a quarter of a warp meets all eight places that a
// piece can be swizzled to: groups 0 to 3 take rows 0, 3, 5, 6, groups 4 to 7 rows 1, 2, 4, 7.
__device__ __forceinline__ int dealt_row(int group) {
  return 2 * (group & 3) + ((group ^ (group >> 1) ^ (group >> 2)) & 1);
}
