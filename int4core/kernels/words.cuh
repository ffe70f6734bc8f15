// Rows of packed values between memory and registers, 32-bit words at a time.
#pragma once

// COUNT consecutive words in accesses of up to 16 bytes; the address is a multiple of the access.
template <int COUNT>
__device__ __forceinline__ void read_words(unsigned (&words)[COUNT], const void* source) {
  if constexpr (COUNT == 1) {
    words[0] = *static_cast<const unsigned*>(source);
  } else if constexpr (COUNT == 2) {
    const uint2 value = *static_cast<const uint2*>(source);
    words[0] = value.x;
    words[1] = value.y;
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
      const uint4 value = static_cast<const uint4*>(source)[i / 4];
      words[i] = value.x;
      words[i + 1] = value.y;
      words[i + 2] = value.z;
      words[i + 3] = value.w;
    }
  }
}

template <int COUNT>
__device__ __forceinline__ void write_words(void* target, const unsigned (&words)[COUNT]) {
  if constexpr (COUNT == 1) {
    *static_cast<unsigned*>(target) = words[0];
  } else if constexpr (COUNT == 2) {
    *static_cast<uint2*>(target) = make_uint2(words[0], words[1]);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
      static_cast<uint4*>(target)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
  }
}
