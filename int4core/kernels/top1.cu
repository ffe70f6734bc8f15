// Scale and top-1: the class with the largest float32 quotient sum / out_scale, the first of equals. A block per image.
// Compile-time constants: WARPS.
#include "ptx/dependency.cuh"

struct Best {
  float score;
  int index;
};

__device__ __forceinline__ Best better(Best a, Best b) {
  return b.score > a.score || (b.score == a.score && b.index < a.index) ? b : a;
}

__device__ __forceinline__ Best best_of_warp(Best best) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    Best other;
    other.score = __shfl_xor_sync(0xFFFFFFFFu, best.score, step);
    other.index = __shfl_xor_sync(0xFFFFFFFFu, best.index, step);
    best = better(best, other);
  }
  return best;
}

template <int WARPS>
struct Top1 {
  static constexpr int THREADS = 32 * WARPS;

  static __device__ __forceinline__ void run(const int* __restrict__ sums, const float* __restrict__ out_scale,
                                             int* __restrict__ output, const int classes) {
    extern __shared__ __align__(128) unsigned char memory[];
    let_next_start();
    wait_for_previous();
    Best* const candidates = reinterpret_cast<Best*>(memory);
    const int* const row = sums + static_cast<size_t>(blockIdx.x) * classes;
    Best best = {-__int_as_float(0x7F800000), 0x7FFFFFFF};
    for (int i = threadIdx.x; i < classes; i += THREADS) {
      const Best candidate = {__fdiv_rn(__int2float_rn(row[i]), out_scale[i]), i};
      best = better(best, candidate);
    }
    best = best_of_warp(best);
    if (threadIdx.x % 32 == 0) candidates[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x < 32) {
      best = best_of_warp(candidates[threadIdx.x % WARPS]);
      if (threadIdx.x == 0) output[blockIdx.x] = best.index;
    }
  }
};
