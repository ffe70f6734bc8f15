// Pillow's resampling of packed RGB words: sums in 22-bit fixed point from one half on, saturated to uint8.
#pragma once
#include "colour.cuh"

constexpr int WEIGHT_BITS = 22;

struct Sum {
  int red = 1 << (WEIGHT_BITS - 1), green = red, blue = red;

  __device__ __forceinline__ void add(u32 rgb, int weight) {
    red += static_cast<int>(rgb & 255) * weight;
    green += static_cast<int>(rgb >> 8 & 255) * weight;
    blue += static_cast<int>(rgb >> 16) * weight;  // nothing lies above it
  }
  __device__ __forceinline__ u32 rgb() const {
    return pack_bytes(green >> WEIGHT_BITS, red >> WEIGHT_BITS, pack_bytes(0, blue >> WEIGHT_BITS, 0));
  }
};
