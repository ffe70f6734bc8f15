// Reads the samples of a batch out of mapped host memory, by slot, into one array on the device.
//
// The host link answers about a microsecond after it is asked, so what counts is how many bytes are asked for at a
// time: every thread has GROUP loads of 16 bytes under way. A few blocks saturate the link; more would only take
// multiprocessors from the network that runs beside them.
//
// The host writes slots and samples between launches: loads are `cv`, which never answers from a cache.

constexpr int THREADS = 256;
constexpr int GROUP = 8;
constexpr int TILE = THREADS * GROUP;

extern "C" __global__ void __launch_bounds__(THREADS)
    gather(const uint4* __restrict__ arena, const int* __restrict__ slots, uint4* __restrict__ out,
           long long slot_words, int sample_words, int count) {
  const int tiles = (sample_words + TILE - 1) / TILE;
  for (long long job = blockIdx.x; job < static_cast<long long>(count) * tiles; job += gridDim.x) {
    const int sample = static_cast<int>(job / tiles);
    const int first = static_cast<int>(job % tiles) * TILE + threadIdx.x;
    const uint4* from = arena + __ldcv(slots + sample) * slot_words;
    uint4* to = out + static_cast<long long>(sample) * sample_words;
    uint4 words[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
      if (first + i * THREADS < sample_words) words[i] = __ldcv(from + first + i * THREADS);
    }
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
      if (first + i * THREADS < sample_words) to[first + i * THREADS] = words[i];
    }
  }
}
