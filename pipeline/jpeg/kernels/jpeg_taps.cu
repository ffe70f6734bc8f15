// Pillow's weights of a bilinear resampling, of the output pixels that are kept: in float64 as Pillow computes them,
// then rounded to 22 bits. Products are written out, so that none is fused with an addition.
//
// An axis' taps: int first[SIZE], count[SIZE], weight[most_taps][SIZE]. Compile-time constants: SIZE.
#include "image.cuh"

template <int SIZE>
struct JpegTaps {
  static constexpr int THREADS = 128;

  static __device__ __forceinline__ void run(const Image* __restrict__ images) {
    const Image& image = images[blockIdx.x];
    const Axis axis = blockIdx.y ? image.y : image.x;
    const double scale = static_cast<double>(axis.old_size) / axis.new_size;
    const double support = scale < 1.0 ? 1.0 : scale, shrink = 1.0 / support;
    for (int i = threadIdx.x; i < SIZE; i += THREADS) {
      const double centre = __dmul_rn(axis.offset + i + 0.5, scale);
      const int begin = max(static_cast<int>(centre - support + 0.5), 0);
      const int count = min(static_cast<int>(centre + support + 0.5), axis.old_size) - begin;
      axis.taps[i] = begin;
      axis.taps[SIZE + i] = count;
      auto weight = [&](int tap) {
        double distance = __dmul_rn(tap + begin - centre + 0.5, shrink);
        if (distance < 0) distance = -distance;
        return distance < 1.0 ? 1.0 - distance : 0.0;
      };
      double sum = 0.0;
      for (int tap = 0; tap < count; ++tap) sum += weight(tap);
      for (int tap = 0; tap < axis.most_taps; ++tap) {
        const double share = tap >= count ? 0.0 : sum != 0.0 ? weight(tap) / sum : weight(tap);
        axis.taps[(2 + tap) * SIZE + i] = static_cast<int>(0.5 + __dmul_rn(share, 4194304.0));
      }
    }
  }
};
