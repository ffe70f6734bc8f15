// The windows of a convolution: where they begin in a tensor, and which tap and channels of them a block of K is.
//
// `ConvShape`, and the `Window` of a tensor in it, come from conv_tile.py: CONV_SHAPE and WINDOW.
#pragma once

// The window of an output pixel: its first pixel, and the 16-byte piece where that lies; outside if there is no such
// output.
struct WindowPlace {
  int h, w, piece;

  __device__ __forceinline__ void locate(const ConvShape& shape, const Window& window, int pixel, bool exists) {
    constexpr int OUTSIDE = -(1 << 20);
    const int line = pixel / shape.q, n = line / shape.p;
    h = exists ? (line - n * shape.p) * window.stride - window.pad : OUTSIDE;
    w = (pixel - line * shape.q) * window.stride - window.pad;
    piece = exists ? ((n * window.h + h) * window.w + w) * window.pieces : 0;
  }
};

// A block of K: its tap, and which of the tap's blocks of channels it is.
struct KBlock {
  int tap_h, tap_w, channel_block;

  __device__ __forceinline__ void advance(const Window& window) {
    if (++channel_block == window.channel_blocks) {
      channel_block = 0;
      if (++tap_w == window.taps) {
        tap_w = 0;
        ++tap_h;
      }
    }
  }

  // Of the tap from a window's first pixel, in 16-byte pieces.
  __device__ __forceinline__ int offset(const Window& window) const {
    return (tap_h * window.w + tap_w) * window.pieces;
  }

  __device__ __forceinline__ bool inside(const WindowPlace& place, const Window& window) const {
    return static_cast<unsigned>(place.h + tap_h) < static_cast<unsigned>(window.h) &&
           static_cast<unsigned>(place.w + tap_w) < static_cast<unsigned>(window.w);
  }
};
