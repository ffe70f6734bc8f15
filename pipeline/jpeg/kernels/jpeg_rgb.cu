// Upsampling and colour at full size: uint8 [height][width][3], four pixels per thread.
#include "colour.cuh"

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
    jpeg_rgb(const Image* __restrict__ images, const u32* __restrict__ damage) {
  if (damage[blockIdx.x]) return;
  const Image& image = images[blockIdx.x];
  const Planes planes(image);
  const int width = image.header.width, height = image.header.height, quads = (width + 3) / 4;
  const u64 total = static_cast<u64>(quads) * height;
  for (u64 i = static_cast<u64>(blockIdx.y) * THREADS + threadIdx.x; i < total;
       i += static_cast<u64>(gridDim.y) * THREADS) {
    const int row = i / quads, column = static_cast<int>(i % quads) * 4;
    u32 pixels[4];
    planes.rgb4(row, column, pixels);
    u8* const out = in_global(image.out) + (static_cast<size_t>(row) * width + column) * 3;
    for (int pixel = 0; pixel < 4 && column + pixel < width; ++pixel)
      for (int channel = 0; channel < 3; ++channel) out[pixel * 3 + channel] = pixels[pixel] >> (8 * channel);
  }
}
