// Programmatic dependent launch (sm_90 and later): a kernel starts while the one before it ends. Where a kernel was
// launched without it, or the chip is older, neither of these does anything.
#pragma once

#if __CUDA_ARCH__ >= 900
// From when all blocks have said so, the next kernel's blocks may take what multiprocessors have free.
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }

// Until the kernel before is over and its writes are visible. Every thread calls it before it touches a tensor, to
// write as well as to read: the tensor may lie where the kernel before still reads another one.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
__device__ __forceinline__ void let_next_start() {}
__device__ __forceinline__ void wait_for_previous() {}
#endif
