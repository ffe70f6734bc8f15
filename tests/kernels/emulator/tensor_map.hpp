// What the emulated driver writes into a tensor map, and the emulated copy engine reads: 128 bytes, as CUDA's.
#pragma once
#include <cstdint>

namespace emulator {

constexpr uint32_t TENSOR_MAP_MARK = 0x70616D21;  // what no other 128 bytes begin with

struct EncodedMap {
  uint32_t mark;
  uint8_t rank, im2col, swizzled, unused;
  uint64_t address;
  uint64_t dims[4];            // elements are bytes; the innermost first
  uint64_t strides[3];         // in bytes, of dims[1] and on
  uint16_t box[4];             // elements that a copy takes; im2col: channels, pixels
  uint16_t steps[4];           // from one of a copy's elements to the next; im2col: from one window to the next
  int16_t lower[2], upper[2];  // im2col: where windows begin: lower ... dim - 1 + upper
};
static_assert(sizeof(EncodedMap) <= 128, "a tensor map has 128 bytes");

}  // namespace emulator
