// From planes to RGB: libjpeg's fancy upsampling of chroma, and its colour conversion in 16-bit fixed point.
//
// Chroma halved across is a weighted mean of the two nearest, 3 : 1, rounded up and down in turn; halved both ways, of
// four. Neighbours beyond the component are its own edge. A component two pixels wide or less, and one of a quarter, is
// repeated instead. Only luma's window may be read: the windows' own edges are never in sight.
#pragma once
#include "image.cuh"

__device__ __forceinline__ u32 to_rgb(int y, int cb, int cr) {
  constexpr int HALF = 1 << 15;
  y <<= 16;
  const int red = (y + 91881 * cr + (HALF - 91881 * 128)) >> 16;
  const int green = (y - 22554 * cb - 46802 * cr + (HALF + (22554 + 46802) * 128)) >> 16;
  const int blue = (y + 116130 * cb + (HALF - 116130 * 128)) >> 16;
  return pack_bytes(green, red, pack_bytes(0, blue, 0));
}

struct Planes {
  const u8* at[3];  // where pixel (0, 0) is, or would be
  int pitch, chroma_pitch;
  int chroma_width, chroma_height;
  int h, v;
  bool grey, fancy;

  __device__ __forceinline__ explicit Planes(const Image& image) {
    for (int i = 0; i < 3; ++i) {
      const Window& window = image.windows[i];
      at[i] = in_global(window.plane) -
              (static_cast<long long>(window.first_row) * 8 * window.columns + window.first_column) * 8;
    }
    pitch = image.windows[0].columns * 8;
    chroma_pitch = image.windows[1].columns * 8;
    chroma_width = image.windows[1].width;
    chroma_height = image.windows[1].height;
    h = image.header.h;
    v = image.header.v;
    grey = image.header.components == 1;
    fancy = h < 4 && !(h == 2 && chroma_width <= 2);
  }

  // One pixel's chroma, of any sampling.
  __device__ __forceinline__ int chroma(int component, int row, int column) const {
    const u8* const plane = at[component];
    const int i = row / v, j = column / h;
    const u8* const line = plane + static_cast<size_t>(i) * chroma_pitch;
    if (!fancy || (h == 1 && v == 1)) return line[j];
    const int j2 = clamp(column & 1 ? j + 1 : j - 1, 0, chroma_width - 1);
    const u8* const other =
        plane + static_cast<size_t>(clamp(row & 1 ? i + 1 : i - 1, 0, chroma_height - 1)) * chroma_pitch;
    if (h == 1) return (3 * line[j] + other[j] + 1 + (row & 1)) >> 2;
    if (v == 1) return (3 * line[j] + line[j2] + 1 + (column & 1)) >> 2;
    return (3 * (3 * line[j] + other[j]) + 3 * line[j2] + other[j2] + 8 - (column & 1)) >> 4;
  }

  __device__ __forceinline__ u32 rgb(int row, int column) const {
    const int y = at[0][static_cast<size_t>(row) * pitch + column];
    if (grey) return y * 0x010101u;
    return to_rgb(y, chroma(1, row, column), chroma(2, row, column));
  }

  // Four values of a halved component around `column` / 2, from which four pixels come; out: twice what they weigh.
  __device__ __forceinline__ void halved(int component, int row, int column, int (&out)[4]) const {
    const int j = column >> 1, edge = chroma_width - 1;
    const int columns[4] = {max(j - 1, 0), j, min(j + 1, edge), min(j + 2, edge)};
    int c[4];
    const u8* const plane = at[component];
    if (v == 1) {
      const u8* const line = plane + static_cast<size_t>(row) * chroma_pitch;
#pragma unroll
      for (int i = 0; i < 4; ++i) c[i] = line[columns[i]];
      out[0] = (3 * c[1] + c[0] + 1) >> 2;
      out[1] = (3 * c[1] + c[2] + 2) >> 2;
      out[2] = (3 * c[2] + c[1] + 1) >> 2;
      out[3] = (3 * c[2] + c[3] + 2) >> 2;
    } else {
      const int near = row >> 1, far = clamp(row & 1 ? near + 1 : near - 1, 0, chroma_height - 1);
      const u8* const line = plane + static_cast<size_t>(near) * chroma_pitch;
      const u8* const other = plane + static_cast<size_t>(far) * chroma_pitch;
#pragma unroll
      for (int i = 0; i < 4; ++i) c[i] = 3 * line[columns[i]] + other[columns[i]];
      out[0] = (3 * c[1] + c[0] + 8) >> 4;
      out[1] = (3 * c[1] + c[2] + 7) >> 4;
      out[2] = (3 * c[2] + c[1] + 8) >> 4;
      out[3] = (3 * c[2] + c[3] + 7) >> 4;
    }
  }

  // Four pixels from `column`, a multiple of 4, on; what lies beyond the image is anything.
  __device__ __forceinline__ void rgb4(int row, int column, u32 (&out)[4]) const {
    const u32 y = *reinterpret_cast<const u32*>(at[0] + static_cast<size_t>(row) * pitch + column);
    if (grey) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = (y >> (8 * i) & 255) * 0x010101u;
      return;
    }
    int cb[4], cr[4];
    if (h == 1 && v == 1) {
      const size_t place = static_cast<size_t>(row) * chroma_pitch + column;
      const u32 cb4 = *reinterpret_cast<const u32*>(at[1] + place), cr4 = *reinterpret_cast<const u32*>(at[2] + place);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        cb[i] = cb4 >> (8 * i) & 255;
        cr[i] = cr4 >> (8 * i) & 255;
      }
    } else if (h == 2 && fancy) {
      halved(1, row, column, cb);
      halved(2, row, column, cr);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = rgb(row, column + i);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = to_rgb(y >> (8 * i) & 255, cb[i], cr[i]);
  }
};
