// From sparse coefficients to planes: a thread a block of 8 x 8, of the windows that are wanted.
#include "islow.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int MOST_LANES = 128;

__device__ const u8 NATURAL[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
                                   12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
                                   35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
                                   58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

// A block's number in the scan.
__device__ __forceinline__ u32 block_number(const Image& image, int component, int row, int column) {
  const int per_mcu = blocks_per_mcu(image.header);
  if (component || image.header.components == 1)
    return (row * image.mcus_x + column) * per_mcu + (component ? per_mcu - 3 + component : 0);
  const int h = image.header.h, v = image.header.v;
  const u32 mcu = row / v * image.mcus_x + column / h;
  return mcu * per_mcu + row % v * h + column % h;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    jpeg_idct(const Image* __restrict__ images, u32* __restrict__ damage) {
  __shared__ __align__(16) short coefficients[WARPS][64 * 32];
  __shared__ u32 first[MOST_LANES];
  __shared__ int before[MOST_LANES][3];
  __shared__ u32 scale[3][64];  // quantization | place << 16, zigzag
  const int id = blockIdx.x, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const Image& image = images[id];
  if (__syncthreads_or(thread == 0 && damage[id])) return;
  const int lanes = image.lanes;
  for (int i = thread; i < lanes; i += THREADS) {
    first[i] = in_global(image.lane_first)[i];
    for (int component = 0; component < 3; ++component)
      before[i][component] = in_global(image.lane_dc)[i * 4 + component];
  }
  for (int i = thread; i < 192; i += THREADS)
    scale[i >> 6][i & 63] = image.header.quantization[i >> 6][i & 63] | static_cast<u32>(NATURAL[i & 63]) << 16;
  __syncthreads();

  const int columns0 = image.windows[0].columns, blocks0 = columns0 * image.windows[0].rows;
  const int columns1 = image.windows[1].columns, blocks1 = columns1 * image.windows[1].rows;
  const int total = blocks0 + (image.header.components == 3 ? 2 * blocks1 : 0);
  short* const block = coefficients[warp] + lane;
  bool beyond = false;
  for (int begin = blockIdx.y * THREADS + warp * 32; begin < total; begin += gridDim.y * THREADS) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i) reinterpret_cast<uint4*>(coefficients[warp])[i * 32 + lane] = make_uint4(0, 0, 0, 0);
    __syncwarp();
    int place = begin + lane;
    if (place >= total) continue;
    int component = 0, columns = columns0;
    if (place >= blocks0) {
      place -= blocks0;
      columns = columns1;
      component = place >= blocks1 ? 2 : 1;
      if (component == 2) place -= blocks1;
    }
    const Window& window = image.windows[component];
    const int row = place / columns, column = place - row * columns;
    const u32 number = block_number(image, component, window.first_row + row, window.first_column + column);

    int owner = 0;
    for (int step = lanes / 2; step; step >>= 1)
      if (first[owner + step] <= number) owner += step;
    const u8* const part = in_global(image.arena) + static_cast<size_t>(owner) * image.lane_bytes;
    const u32* const ends = reinterpret_cast<const u32*>(part + image.lane_bytes) - 1 - (number - first[owner]);
    const u32 begin_symbol = number == first[owner] ? 0 : ends[1], end_symbol = ends[0];
    const u16* const symbols = reinterpret_cast<const u16*>(part);
    const u32* const scales = scale[component];

    // libjpeg keeps a DC in 16 bits, as this does.
    const int dc = static_cast<short>(symbols[begin_symbol] + before[owner][component]);
    int value = dc * static_cast<int>(scales[0] & 0xFFFF);
    u32 sum = abs(value);
    beyond |= dc > LIMIT || dc < -LIMIT || sum > LIMIT;
    block[0] = static_cast<short>(value);
    int index = 0;
    const u32 next = begin_symbol + 1;
    for (u32 at = next & ~7u; at < end_symbol; at += 8) {
      const uint4 words = *reinterpret_cast<const uint4*>(symbols + at);
      const u32 pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (at + i - next >= end_symbol - next) continue;
        const u32 symbol = i & 1 ? pairs[i >> 1] >> 16 : pairs[i >> 1] & 0xFFFF;
        index += (((symbol >> 12) - 1) & 15) + 1;
        if (index > 63) continue;  // of a block that is none
        value = (static_cast<int>(symbol << 20) >> 20) * static_cast<int>(scales[index] & 0xFFFF);
        const u32 size = abs(value);
        beyond |= size > LIMIT;
        sum += size;
        block[(scales[index] >> 16) * 32] = static_cast<short>(value);
      }
    }
    const int pitch = window.columns * 8;
    u8* const out = in_global(window.plane) + static_cast<size_t>(row) * 8 * pitch + column * 8;
    beyond |= idct_block<32>(block, sum > SAFE_SUM, out, pitch);
  }
  if (beyond) atomicOr(damage + id, OUT_OF_RANGE);
}
