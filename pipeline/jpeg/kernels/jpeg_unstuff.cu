// The scan without its stuffing: FF00 becomes FF, restart markers go, and what follows them is remembered as the start
// of an interval. A block per image. The scan begins at any byte; words are written with their first bit highest.
#include "image.cuh"

constexpr int THREADS = 256;
constexpr int BYTES = 16;  // per thread and tile
constexpr int TILE = THREADS * BYTES;

__device__ __forceinline__ u32 swap_bytes(u32 word) { return __byte_perm(word, 0, 0x0123); }

// A bit for each byte that is 0, the lowest first.
__device__ __forceinline__ u32 zero_bytes(u32 word) {
  const u32 high = ~(((word & 0x7F7F7F7F) + 0x7F7F7F7F) | word) & 0x80808080;
  return (high >> 7) * 0x10204080 >> 28;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    jpeg_unstuff(const Image* __restrict__ images, u32* __restrict__ stream_bits, u32* __restrict__ damage) {
  extern __shared__ __align__(16) unsigned char memory[];
  u8* const tile = memory;                                              // [TILE + 16]
  u32* const warp_counts = reinterpret_cast<u32*>(memory + TILE + 16);  // [8]: bytes kept, markers << 16

  const Image& image = images[blockIdx.x];
  const u32 skip = static_cast<u32>(reinterpret_cast<u64>(image.scan) & 15);
  const u8* const source = in_global(image.scan - skip);
  const u32 length = image.header.scan_bytes + skip;
  const u32 intervals = image.interval_count;
  u8* const stream = in_global(reinterpret_cast<u8*>(image.stream));
  u32* const starts = in_global(image.intervals);
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;

  u32 left = 0, written = 0, markers = 0, wrong = 0;
  if (thread == 0 && intervals) starts[0] = 0;
  for (u32 start = 0; start < length; start += TILE) {
    const u32 at = start + thread * BYTES;
    uint4 words = make_uint4(0, 0, 0, 0);
    u32 previous = 0, after = 0xFF;  // a scan that ends in FF has lost its marker
    if (at < length) {
      words = *reinterpret_cast<const uint4*>(source + at);
      if (at > skip) previous = source[at - 1];
      if (at + BYTES < length) after = source[at + BYTES];
    }
    const u32 group[4] = {words.x, words.y, words.z, words.w};
    u32 ends = 0, zeros = 0;  // bytes FF and 00, a bit each
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ends |= zero_bytes(~group[i]) << (4 * i);
      zeros |= zero_bytes(group[i]) << (4 * i);
    }
    const u32 from = at < skip ? min(skip - at, 16u) : 0, to = at < length ? min(length - at, 16u) : 0;
    const u32 inside = ((1u << to) - 1) & ~((1u << from) - 1);
    ends &= inside;
    zeros &= inside;
    const u32 second = (ends << 1 | (previous == 0xFF)) & inside;
    const u32 before_zero = zeros >> 1 | static_cast<u32>(after == 0) << 15;
    const u32 kept = inside & ~second & (~ends | before_zero);
    u32 restarts = 0;
    if (to && at + to == length && ends >> (to - 1) & 1) wrong |= MARKER_IN_SCAN;
    for (u32 others = second & ~zeros; others; others &= others - 1) {
      const u32 i = __ffs(others) - 1;
      if ((source[at + i] & 0xF8) == 0xD0) {
        restarts |= 1u << i;
      } else {
        wrong |= MARKER_IN_SCAN;
      }
    }
    const u32 mine = __popc(kept) | __popc(restarts) << 16;
    u32 sum = mine;
    for (int step = 1; step < 32; step <<= 1) {
      const u32 other = __shfl_up_sync(0xFFFFFFFFu, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == 31) warp_counts[warp] = sum;
    __syncthreads();
    u32 before = sum - mine, total = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; ++i) {
      if (i < warp) before += warp_counts[i];
      total += warp_counts[i];
    }
    const u32 begin = left + (before & 0xFFFF);
    u32 place = begin, marker = markers + (before >> 16);
#pragma unroll
    for (int i = 0; i < BYTES; ++i)
      if (kept >> i & 1) tile[place++] = group[i >> 2] >> (8 * (i & 3));
    for (; restarts; restarts &= restarts - 1, ++marker) {
      const u32 i = __ffs(restarts) - 1;
      if ((source[at + i] & 7) != (marker & 7) || marker + 1 >= intervals) {
        wrong |= intervals ? RESTART_MARKERS : MARKER_IN_SCAN;
      } else {
        starts[marker + 1] = written + begin + __popc(kept & ((1u << i) - 1));
      }
    }
    __syncthreads();
    const u32 bytes = left + (total & 0xFFFF), whole = bytes & ~15u;
    markers += total >> 16;
    for (u32 i = thread * BYTES; i < whole; i += TILE) {
      uint4 out = *reinterpret_cast<const uint4*>(tile + i);
      out = make_uint4(swap_bytes(out.x), swap_bytes(out.y), swap_bytes(out.z), swap_bytes(out.w));
      *reinterpret_cast<uint4*>(stream + written + i) = out;
    }
    left = bytes - whole;
    const u8 rest = thread < left ? tile[whole + thread] : 0;
    __syncthreads();
    if (thread < left) tile[thread] = rest;
    written += whole;
    __syncthreads();
  }
  if (thread < left) stream[(written + thread) ^ 3] = tile[thread];
  if (thread == 0) {
    stream_bits[blockIdx.x] = (written + left) * 8;
    if (intervals) starts[intervals] = written + left;
    if (intervals && markers + 1 != intervals) wrong |= RESTART_MARKERS;
  }
  if (wrong) atomicOr(damage + blockIdx.x, wrong);
}
