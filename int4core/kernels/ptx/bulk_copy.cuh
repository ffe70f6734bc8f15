// The bulk copy engine (TMA): global memory to shared memory, completion counted in bytes on an mbarrier.
#pragma once

// A CUtensorMap as the driver encodes it; passed by value as a __grid_constant__ kernel parameter.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// `bytes` contiguous bytes; addresses and size are multiples of 16.
__device__ __forceinline__ void bulk_copy(unsigned target, const void* source, unsigned bytes, unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
               "l"(source), "r"(bytes), "r"(barrier)
               : "memory");
}

// A column of pixels of an NHWC tensor, in the order of a convolution's outputs: it starts at the window whose
// first element is (n, h, w) and reads tap (tap_h, tap_w) of every window. Out-of-range elements are 0.
__device__ __forceinline__ void im2col_copy(unsigned target, const TensorMap* map, unsigned barrier, int c, int w,
                                            int h, int n, int tap_w, int tap_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(target),
      "l"(map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n), "h"(static_cast<short>(tap_w)),
      "h"(static_cast<short>(tap_h))
      : "memory");
}

// A box of an NHWC tensor that starts at (n, h, w, c). Out-of-range elements are 0.
__device__ __forceinline__ void box_copy(unsigned target, const TensorMap* map, unsigned barrier, int c, int w, int h,
                                         int n) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n)
      : "memory");
}

// A box of rows of bytes that starts at byte x of row y. Rows that do not exist are 0.
__device__ __forceinline__ void rows_copy(unsigned target, const TensorMap* map, unsigned barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
