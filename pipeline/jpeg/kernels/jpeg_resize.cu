// Upsampling, colour, both passes of the resize (horizontal first), crop and table in one: a block BAND rows of a
// sample. Rows of the image are made RGB a few at a time, resized across into `middle`, and from there down into the
// sample.
//
// For images of which ROW_PIXELS hold a row and MIDDLE_ROWS the rows of one output row; jpeg_passes.cu takes the
// others.
//
// Compile-time constants: SIZE, a multiple of 4 up to 256.
#include "resample.cuh"

constexpr int BAND = 16;
constexpr int MIDDLE_ROWS = 28;
constexpr int ROW_PIXELS = 2752;
constexpr int AT_ONCE = 8;    // rows of the image
constexpr int HELD_TAPS = 4;  // weights a thread keeps in registers

// `rows` of `width` pixels each, every thread one output pixel of each: TAPS of them where known, or `count`.
template <int SIZE, int TAPS, int ROWS>
__device__ __forceinline__ void resize_across(const u32* rows, int width, const int (&held)[HELD_TAPS],
                                              const int* weights, int count, u32* middle) {
  Sum sums[ROWS];
  if (TAPS) {
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap)
#pragma unroll
      for (int row = 0; row < ROWS; ++row) sums[row].add(rows[row * width + tap], held[tap]);
  } else {
    for (int tap = 0; tap < count; ++tap) {
      const int weight = weights[tap * SIZE];
#pragma unroll
      for (int row = 0; row < ROWS; ++row) sums[row].add(rows[row * width + tap], weight);
    }
  }
#pragma unroll
  for (int row = 0; row < ROWS; ++row) middle[row * SIZE] = sums[row].rgb();
}

template <int SIZE>
struct JpegResize {
  static constexpr int THREADS = SIZE, QUADS = SIZE / 4;
  static constexpr int BLOCKS = (__CUDA_ARCH__ >= 900 ? 5 : 4) - (SIZE > 224);  // that shared memory has room for

  static __device__ __forceinline__ void run(const Image* __restrict__ images, const u32* __restrict__ order,
                                             const u32* __restrict__ damage, const signed char* __restrict__ table) {
    __shared__ __align__(16) u32 middle[MIDDLE_ROWS * SIZE];
    __shared__ __align__(16) u32 rows[ROW_PIXELS + HELD_TAPS];
    __shared__ signed char values[3 * 256];
    const int id = order[blockIdx.x], thread = threadIdx.x;
    if (damage[id]) return;
    const Image& image = images[id];
    for (int i = thread; i < 3 * 256; i += SIZE) values[i] = table[i];
    const Planes planes(image);
    const int *const across = in_global(image.x.taps), *const down = in_global(image.y.taps);
    const int left = image.x.begin & ~3, quads = (image.x.end - left + 3) >> 2, width = quads * 4;
    const int at_once = min(AT_ONCE, ROW_PIXELS / width);
    const int first = across[thread] - left, count = across[SIZE + thread], most = image.x.most_taps;
    const int* const weights = across + 2 * SIZE + thread;
    int held[HELD_TAPS];
#pragma unroll
    for (int tap = 0; tap < HELD_TAPS; ++tap) held[tap] = tap < most ? weights[tap * SIZE] : 0;

    u8* const out = in_global(image.out);
    const int stop = min(static_cast<int>(blockIdx.y + 1) * BAND, SIZE);
    for (int i = blockIdx.y * BAND; i < stop;) {
      const int top = down[i];
      int next = i + 1;
      while (next < stop && down[next] + down[SIZE + next] - top <= MIDDLE_ROWS) ++next;
      const int bottom = down[next - 1] + down[SIZE + next - 1];
      for (int row = top; row < bottom; row += at_once) {
        const int here = min(at_once, bottom - row);
        __syncthreads();
        for (int j = thread; j < quads * here; j += SIZE) {
          const int line = j / quads, quad = j - line * quads;
          u32 pixels[4];
          planes.rgb4(row + line, left + quad * 4, pixels);
          *reinterpret_cast<uint4*>(rows + line * width + quad * 4) =
              make_uint4(pixels[0], pixels[1], pixels[2], pixels[3]);
        }
        __syncthreads();
        u32* const to = middle + (row - top) * SIZE + thread;
        const u32* const in = rows + first;
        if (here == AT_ONCE && most <= 3) {
          resize_across<SIZE, 3, AT_ONCE>(in, width, held, weights, count, to);
        } else if (here == AT_ONCE && most == 4) {
          resize_across<SIZE, 4, AT_ONCE>(in, width, held, weights, count, to);
        } else if (here == AT_ONCE) {
          resize_across<SIZE, 0, AT_ONCE>(in, width, held, weights, count, to);
        } else {
          for (int line = 0; line < here; ++line)
            resize_across<SIZE, 0, 1>(in + line * width, width, held, weights, count, to + line * SIZE);
        }
      }
      __syncthreads();
      const int quad = thread % QUADS;
      for (int row = i + thread / QUADS; row < next; row += 4) {
        const u32* in = middle + (down[row] - top) * SIZE + quad * 4;
        const int taps = down[SIZE + row];
        const int* const weight = down + 2 * SIZE + row;
        Sum sums[4];
        for (int tap = 0; tap < taps; ++tap, in += SIZE) {
          const uint4 pixels = *reinterpret_cast<const uint4*>(in);
          const int w = weight[tap * SIZE];
          sums[0].add(pixels.x, w);
          sums[1].add(pixels.y, w);
          sums[2].add(pixels.z, w);
          sums[3].add(pixels.w, w);
        }
        u32 rgb[4];
#pragma unroll
        for (int pixel = 0; pixel < 4; ++pixel) rgb[pixel] = sums[pixel].rgb();
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) {
          u32 word = 0;
#pragma unroll
          for (int pixel = 0; pixel < 4; ++pixel)
            word |= static_cast<u32>(static_cast<u8>(values[channel * 256 + (rgb[pixel] >> (8 * channel) & 255)]))
                    << (8 * pixel);
          *reinterpret_cast<u32*>(out + (static_cast<size_t>(channel) * SIZE + row) * SIZE + quad * 4) = word;
        }
      }
      __syncthreads();
      i = next;
    }
  }
};
