// The driver's calls that kernels need on the host: tensor maps of byte tensors, refused as the driver refuses them.
#include <cstring>

#include "tensor_map.hpp"

using emulator::EncodedMap;

namespace {

constexpr int INVALID_VALUE = 1, UINT8 = 0, NO_INTERLEAVE = 0, NO_SWIZZLE = 0, SWIZZLE_128 = 3;

bool encode_tensor(EncodedMap& map, int type, uint32_t rank, void* address, const uint64_t* dims,
                   const uint64_t* strides, int interleave, int swizzle) {
  memset(&map, 0, sizeof map);
  const uint64_t start = reinterpret_cast<uint64_t>(address);
  if (type != UINT8 || rank < 2 || rank > 4 || start % 16 || interleave != NO_INTERLEAVE) return false;
  if (swizzle != NO_SWIZZLE && swizzle != SWIZZLE_128) return false;
  map.mark = emulator::TENSOR_MAP_MARK;
  map.rank = rank;
  map.swizzled = swizzle == SWIZZLE_128;
  map.address = start;
  for (uint32_t i = 0; i < rank; ++i) {
    if (dims[i] == 0 || dims[i] > uint64_t{1} << 32) return false;
    map.dims[i] = dims[i];
  }
  for (uint32_t i = 0; i + 1 < rank; ++i) {
    if (strides[i] % 16 || strides[i] >= uint64_t{1} << 40) return false;
    map.strides[i] = strides[i];
  }
  return true;
}

bool fits_row(const EncodedMap& map, uint32_t bytes) { return bytes % 16 == 0 && (!map.swizzled || bytes <= 128); }

}  // namespace

extern "C" int cuTensorMapEncodeTiled(void* target, int type, uint32_t rank, void* address, const uint64_t* dims,
                                      const uint64_t* strides, const uint32_t* box, const uint32_t* steps,
                                      int interleave, int swizzle, int, int fill) {
  EncodedMap map;
  if (!encode_tensor(map, type, rank, address, dims, strides, interleave, swizzle) || fill) return INVALID_VALUE;
  for (uint32_t i = 0; i < rank; ++i) {
    if (box[i] == 0 || box[i] > 256 || steps[i] == 0 || steps[i] > 8 || (i == 0 && steps[i] != 1)) return INVALID_VALUE;
    map.steps[i] = steps[i];
    map.box[i] = (box[i] + steps[i] - 1) / steps[i];
  }
  if (!fits_row(map, box[0])) return INVALID_VALUE;
  memcpy(target, &map, sizeof map);
  return 0;
}

extern "C" int cuTensorMapEncodeIm2col(void* target, int type, uint32_t rank, void* address, const uint64_t* dims,
                                       const uint64_t* strides, const int* lower, const int* upper, uint32_t channels,
                                       uint32_t pixels, const uint32_t* steps, int interleave, int swizzle, int,
                                       int fill) {
  EncodedMap map;
  if (rank != 4 || !encode_tensor(map, type, rank, address, dims, strides, interleave, swizzle) || fill)
    return INVALID_VALUE;
  map.im2col = 1;
  if (channels == 0 || channels > 256 || pixels == 0 || pixels > 1024 || !fits_row(map, channels)) return INVALID_VALUE;
  map.box[0] = channels;
  map.box[1] = pixels;
  for (int i = 0; i < 4; ++i) {
    if (steps[i] == 0 || steps[i] > 8) return INVALID_VALUE;
    map.steps[i] = steps[i];
  }
  for (int i = 0; i < 2; ++i) {
    if (lower[i] < -128 || lower[i] > 127 || upper[i] < -128 || upper[i] > 127) return INVALID_VALUE;
    map.lower[i] = lower[i];
    map.upper[i] = upper[i];
  }
  memcpy(target, &map, sizeof map);
  return 0;
}
