// The bulk copy engine the other way: shared memory to global memory, in groups of the thread that issues them.
#pragma once
#include "ptx/bulk_copy.cuh"

// `bytes` contiguous bytes; addresses and size are multiples of 16.
__device__ __forceinline__ void bulk_store(void* target, unsigned source, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target), "r"(source), "r"(bytes)
               : "memory");
}

// A box of rows of bytes to byte x of row y and the rows after it; those that do not exist are left out.
__device__ __forceinline__ void rows_store(const TensorMap* map, unsigned source, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(source), "r"(x), "r"(y)
               : "memory");
}

__device__ __forceinline__ void bulk_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups still read shared memory.
template <int PENDING>
__device__ __forceinline__ void bulk_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Waits until at most PENDING of this thread's groups are under way: the others are in global memory.
template <int PENDING>
__device__ __forceinline__ void bulk_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Makes what this thread wrote to shared memory visible to the copy engine and to wgmma; a barrier comes after it.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
