// stmatrix: 8x8 tiles of 16-bit elements from registers, where mma leaves them, to shared memory (sm_90 and later).
#pragma once

// Four tiles, transposed: of tile i, register i of a lane holds row lane / 4, columns 2 * (lane % 4) and the next;
// column c becomes 16 bytes at the address that lane 8 * i + c gives.
__device__ __forceinline__ void store_transposed(unsigned address, const unsigned (&tiles)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(tiles[0]),
               "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3])
               : "memory");
}
