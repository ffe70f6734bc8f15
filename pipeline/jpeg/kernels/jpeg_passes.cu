// The resize of jpeg_resize.cu for images of any shape and in either order, in two passes with device memory between
// them.
//
// Compile-time constants: SIZE.
#include "resample.cuh"

// Between the passes: the first one's output, of the rows or columns that the second one reads.
template <int SIZE>
struct JpegFirstPass {
  static constexpr int THREADS = 256;

  static __device__ __forceinline__ void run(const Image* __restrict__ images, const u32* __restrict__ order,
                                             const u32* __restrict__ damage) {
    const int id = order[blockIdx.x];
    if (damage[id]) return;
    const Image& image = images[id];
    const Planes planes(image);
    const bool down = image.vertical_first;
    const Axis &axis = down ? image.y : image.x, &kept = down ? image.x : image.y;
    const int* const taps = in_global(axis.taps);
    u32* const passes = in_global(image.passes);
    const int length = kept.end - kept.begin;
    const u64 total = static_cast<u64>(length) * SIZE;
    for (u64 i = static_cast<u64>(blockIdx.y) * THREADS + threadIdx.x; i < total;
         i += static_cast<u64>(gridDim.y) * THREADS) {
      const int output = down ? i / length : i % SIZE,
                along = kept.begin + static_cast<int>(down ? i % length : i / SIZE);
      const int first = taps[output], count = taps[SIZE + output];
      Sum sum;
      for (int tap = 0; tap < count; ++tap) {
        const u32 pixel = down ? planes.rgb(first + tap, along) : planes.rgb(along, first + tap);
        sum.add(pixel, taps[(2 + tap) * SIZE + output]);
      }
      passes[i] = sum.rgb();
    }
  }
};

template <int SIZE>
struct JpegSecondPass {
  static constexpr int THREADS = 256;

  static __device__ __forceinline__ void run(const Image* __restrict__ images, const u32* __restrict__ order,
                                             const u32* __restrict__ damage, const signed char* __restrict__ table) {
    const int id = order[blockIdx.x];
    if (damage[id]) return;
    const Image& image = images[id];
    const bool down = !image.vertical_first;
    const Axis& axis = down ? image.y : image.x;
    const int* const taps = in_global(axis.taps);
    const u32* const passes = in_global(image.passes);
    u8* const out = in_global(image.out);
    const int length = image.x.end - image.x.begin;
    for (int i = blockIdx.y * THREADS + threadIdx.x; i < SIZE * SIZE; i += gridDim.y * THREADS) {
      const int row = i / SIZE, column = i % SIZE, output = down ? row : column;
      const int first = taps[output] - axis.begin, count = taps[SIZE + output];
      Sum sum;
      for (int tap = 0; tap < count; ++tap) {
        const size_t place =
            down ? static_cast<size_t>(first + tap) * SIZE + column : static_cast<size_t>(row) * length + first + tap;
        sum.add(passes[place], taps[(2 + tap) * SIZE + output]);
      }
      const u32 rgb = sum.rgb();
      for (int channel = 0; channel < 3; ++channel)
        out[static_cast<size_t>(channel) * SIZE * SIZE + i] = table[channel * 256 + (rgb >> (8 * channel) & 255)];
    }
  }
};
