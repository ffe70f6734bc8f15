// What the sm_90a kernels share: rings of stages, and rows of packed activations between memory and registers.
#pragma once
#include "ptx/mbarrier.cuh"

template <int V>
struct Constant {
  static constexpr int value = V;
};

// A position in a ring of buffers, and the parity of its barrier's current phase.
struct Ring {
  int count;
  int slot = 0;
  unsigned parity = 0;
  __device__ __forceinline__ explicit Ring(int buffers) : count(buffers) {}
  __device__ __forceinline__ void advance() {
    if (++slot == count) {
      slot = 0;
      parity ^= 1;
    }
  }
};

template <int COUNT>
__device__ __forceinline__ void load_words(unsigned (&words)[COUNT], unsigned address) {
  if constexpr (COUNT == 1) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(words[0]) : "r"(address) : "memory");
  } else if constexpr (COUNT == 2) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(address) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3])
                   : "r"(address + 4 * i)
                   : "memory");
  }
}

// COUNT words to shared memory, in accesses of up to 16 bytes.
template <int COUNT>
__device__ __forceinline__ void share_words(unsigned address, const unsigned (&words)[COUNT]) {
  if constexpr (COUNT == 1) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(words[0]) : "memory");
  } else if constexpr (COUNT == 2) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(words[0]), "r"(words[1]) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address + 4 * i), "r"(words[i]), "r"(words[i + 1]),
                   "r"(words[i + 2]), "r"(words[i + 3])
                   : "memory");
  }
}

template <int COUNT>
__device__ __forceinline__ void store_words(void* target, const unsigned (&words)[COUNT]) {
  if constexpr (COUNT == 2) {
    *static_cast<uint2*>(target) = make_uint2(words[0], words[1]);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
      static_cast<uint4*>(target)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
  }
}

// The A operand of COUNT k-steps from COUNT words of each of a thread's two rows: low nibbles, then high nibbles.
template <int COUNT>
__device__ __forceinline__ void unpack_rows(unsigned (&a)[COUNT][4], const unsigned (&upper)[COUNT],
                                            const unsigned (&lower)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    a[i][0] = upper[i] & 0x0F0F0F0Fu;
    a[i][1] = lower[i] & 0x0F0F0F0Fu;
    a[i][2] = (upper[i] >> 4) & 0x0F0F0F0Fu;
    a[i][3] = (lower[i] >> 4) & 0x0F0F0F0Fu;
  }
}
