// A thread's window on its stream: a ring of four groups of 16 bytes in shared memory, filled in the background where
// the chip can (cp.async), and two words of it in registers.
//
// A group is asked for when the one three before it is entered, so it has the time of 352 bits to arrive: 13 symbols of
// at most 27 bits. After every STEPS symbols all but the last UNDER_WAY times' groups are waited for.
#pragma once
#include "image.cuh"
#if __CUDA_ARCH__ >= 800
#include "ptx/cp_async.cuh"
#endif

constexpr int RING_BYTES = 64;
constexpr int STEPS = 2;
constexpr int UNDER_WAY = 4;
static_assert((UNDER_WAY + 1) * STEPS <= 13, "a group has to be there when it is read");

struct Ring {
  unsigned char* memory;  // RING_BYTES, 16-byte aligned
  const u32* words;
  u32 high, low, next_word;  // bits from the one at `bit` on lie in high:low; next_word: the bit where `low` begins

  __device__ __forceinline__ void fetch(u32 group) {
    unsigned char* const target = memory + (group & 3) * 16;
    const u32* const source = words + static_cast<size_t>(group) * 4;
#if __CUDA_ARCH__ >= 800
    cp_async(static_cast<unsigned>(__cvta_generic_to_shared(target)), source, true);
#else
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
#endif
  }

  __device__ __forceinline__ u32 word(u32 index) const {
    return *reinterpret_cast<const u32*>(memory + (index & 15) * 4);
  }

  // After STEPS symbols.
  __device__ __forceinline__ void step() {
#if __CUDA_ARCH__ >= 800
    cp_async_commit();
    cp_async_wait<UNDER_WAY>();
#endif
  }

  __device__ __forceinline__ void start(u32 bit) {
#if __CUDA_ARCH__ >= 800
    cp_async_commit();
    cp_async_wait<0>();  // what is still coming would land on what is fetched here
#endif
    const u32 group = bit >> 7;
    for (u32 i = 0; i < 4; ++i) fetch(group + i);
#if __CUDA_ARCH__ >= 800
    cp_async_commit();
    cp_async_wait<0>();
#endif
    high = word(bit >> 5);
    low = word((bit >> 5) + 1);
    next_word = (bit & ~31u) + 32;
  }

  // Zeros from here on.
  __device__ __forceinline__ void stop() {
    high = low = 0;
    next_word = 0xFFFFFFFFu;
  }

  // 32 bits from `bit` on, which is before next_word.
  __device__ __forceinline__ u32 window(u32 bit) const { return __funnelshift_l(low, high, bit); }

  // Moves on when `bit` has come to next_word or beyond, by less than a word.
  __device__ __forceinline__ void advance(u32 bit) {
    if (bit < next_word) return;
    high = low;
    low = word((next_word >> 5) + 1);
    if (!(next_word & 127)) fetch((next_word >> 7) + 3);
    next_word += 32;
  }
};
