// Barriers of some of a block's warps: 1 to 15; __syncthreads is barrier 0.
#pragma once

// Waits for `threads` threads, a multiple of 32, at barrier `id`.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
