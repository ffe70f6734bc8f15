// Signs of four bytes in one instruction. CUDA's __byte_perm takes bytes as they are, and no signs.
#pragma once

// 0xFF for every negative byte, 0 for the others.
__device__ __forceinline__ unsigned byte_signs(unsigned bytes) {
  unsigned signs;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(signs) : "r"(bytes), "r"(0), "n"(0xBA98));
  return signs;
}
