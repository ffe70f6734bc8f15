// ldmatrix: tiles of 8 rows x 16 bytes from shared memory to the registers in which mma wants them (sm_75 and later).
//
// Lane l gives the address of row l % 8 of tile l / 8; lane 4 * group + quad receives bytes 4 * quad ... + 3 of row
// `group` of every tile, a register each. The eight rows of a tile should lie in different banks.
#pragma once

// Four tiles.
__device__ __forceinline__ void load_tiles(unsigned (&d)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

// Two tiles: lanes 0 to 15 give the addresses.
__device__ __forceinline__ void load_tiles(unsigned (&d)[2], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(address)
               : "memory");
}
