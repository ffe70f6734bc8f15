// Scale, the best k classes and their scores, bit for bit as int4core/scores.py defines them. A block per image.
//
// A thread has classes threadIdx.x, threadIdx.x + THREADS, ... and offers the best that has not won yet; a round takes
// the best offer. Keys order the classes: the logit in the upper half, as an integer, less the class, so that no two
// are equal. Arithmetic in double is single IEEE operations (the intrinsics are never contracted), and sums are folded
// in the order that scores.py gives.
//
// Output, words of 4 bytes: classes (images), ids (images, k), scores (images, k); k <= 32.
// Compile-time constants: WARPS, a power of two.
#include "ptx/dependency.cuh"

constexpr long long ABOVE_ALL = 0x7FFFFFFFFFFFFFFF, BELOW_ALL = -ABOVE_ALL - 1;
constexpr double LOWEST = -104.0, LOG2_E = 0x1.71547652b82fep+0, LN_2 = 0x1.62e42fefa39efp-1;
constexpr int DEGREE = 11;
constexpr double COEFFICIENTS[DEGREE + 1] = {
    1.0,         1.0,          1.0 / 2.0,     1.0 / 6.0,      1.0 / 24.0,      1.0 / 120.0,
    1.0 / 720.0, 1.0 / 5040.0, 1.0 / 40320.0, 1.0 / 362880.0, 1.0 / 3628800.0, 1.0 / 39916800.0,
};

// exp(x) for x <= 0.
__device__ __forceinline__ double exponential(double x) {
  const double scaled = __dmul_rn(x > LOWEST ? x : LOWEST, LOG2_E);
  const double whole = rint(scaled);
  const double r = __dmul_rn(__dsub_rn(scaled, whole), LN_2);
  double value = COEFFICIENTS[DEGREE];
#pragma unroll
  for (int power = DEGREE - 1; power >= 0; --power) value = __dadd_rn(__dmul_rn(value, r), COEFFICIENTS[power]);
  return __dmul_rn(value, __hiloint2double((1023 + __double2int_rn(whole)) << 20, 0));
}

__device__ __forceinline__ float logit(int sum, float out_scale) { return __fdiv_rn(__int2float_rn(sum), out_scale); }

// Floats as integers of the same order, and back.
__device__ __forceinline__ int reordered(int bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }

__device__ __forceinline__ long long key_of(float logit, int index) {
  return reordered(__float_as_int(logit)) * (1LL << 32) - index;
}
__device__ __forceinline__ int class_of(long long key) { return static_cast<int>(-key); }
__device__ __forceinline__ float logit_of(long long key) {
  return __int_as_float(reordered(static_cast<int>((key + class_of(key)) >> 32)));
}

// The best of a thread's classes below a key.
template <int THREADS>
__device__ __forceinline__ long long best_below(const int* row, const float* out_scale, int classes, long long bound) {
  long long best = BELOW_ALL;
  for (int i = threadIdx.x; i < classes; i += THREADS) {
    const long long key = key_of(logit(row[i], out_scale[i]), i);
    if (key < bound) best = max(best, key);
  }
  return best;
}

// `candidates` of two calls that follow one another must be different ones.
template <int WARPS>
__device__ __forceinline__ long long best_of_block(long long best, long long* candidates) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) best = max(best, __shfl_xor_sync(0xFFFFFFFFu, best, step));
  if (threadIdx.x % 32 == 0) candidates[threadIdx.x / 32] = best;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) best = max(best, candidates[warp]);
  return best;
}

// A thread's part of the sum of exp(logit - largest).
template <int THREADS>
__device__ __forceinline__ double sum_of_thread(const int* row, const float* out_scale, int classes, double largest) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < classes; i += THREADS)
    sum = __dadd_rn(sum, exponential(__dsub_rn(logit(row[i], out_scale[i]), largest)));
  return sum;
}

// The sum of 32 * WARPS terms, for every thread of the one warp that calls it.
template <int WARPS>
__device__ __forceinline__ double folded_sum(const double* terms) {
  double parts[WARPS];
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) parts[warp] = terms[warp * 32 + threadIdx.x % 32];
#pragma unroll
  for (int half = WARPS / 2; half > 0; half /= 2)
#pragma unroll
    for (int warp = 0; warp < half; ++warp) parts[warp] = __dadd_rn(parts[warp], parts[warp + half]);
  double sum = parts[0];
#pragma unroll
  for (int half = 16; half > 0; half /= 2) sum = __dadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, half));
  return sum;
}

template <int WARPS>
struct TopK {
  static constexpr int THREADS = 32 * WARPS;

  static __device__ __forceinline__ void run(const int* __restrict__ sums, const float* __restrict__ out_scale,
                                             int* __restrict__ output, const int classes, const int k) {
    extern __shared__ __align__(128) unsigned char memory[];
    let_next_start();
    wait_for_previous();
    double* const terms = reinterpret_cast<double*>(memory);                      // THREADS
    long long* const candidates = reinterpret_cast<long long*>(terms + THREADS);  // 2 x WARPS
    const int* const row = sums + static_cast<size_t>(blockIdx.x) * classes;
    const int thread = threadIdx.x;

    long long best = best_below<THREADS>(row, out_scale, classes, ABOVE_ALL);
    long long winner = best_of_block<WARPS>(best, candidates);
    const double largest = logit_of(winner);
    terms[thread] = sum_of_thread<THREADS>(row, out_scale, classes, largest);

    long long mine = winner;
    for (int place = 1; place < k; ++place) {
      if (best == winner) best = best_below<THREADS>(row, out_scale, classes, winner);
      winner = best_of_block<WARPS>(best, candidates + place % 2 * WARPS);
      if (thread == place) mine = winner;
    }
    __syncthreads();
    if (thread >= 32) return;
    const double total = folded_sum<WARPS>(terms);
    if (thread >= k) return;
    const size_t images = gridDim.x, at = static_cast<size_t>(blockIdx.x) * k + thread;
    const double score = __ddiv_rn(exponential(__dsub_rn(logit_of(mine), largest)), total);
    if (thread == 0) output[blockIdx.x] = class_of(mine);
    output[images + at] = class_of(mine);
    output[images + images * k + at] = __float_as_int(__double2float_rn(score));
  }
};
