// The scan without its stuffing: FF00 becomes FF, restart markers go, and what follows them is remembered as the start of
// an interval. A block per image. The scan begins at any byte; words are written with their first bit highest.
#include "image.cuh"

constexpr int THREADS = 256;
constexpr int BYTES = 16;  // per thread and tile
constexpr int TILE = THREADS * BYTES;

__device__ __forceinline__ u32 swap_bytes(u32 word) { return __byte_perm(word, 0, 0x0123); }

extern "C" __global__ void __launch_bounds__(THREADS)
jpeg_unstuff(const Image* __restrict__ images, u32* __restrict__ stream_bits, u32* __restrict__ damage) {
  extern __shared__ __align__(16) unsigned char memory[];
  u8* const tile = memory;                                             // [TILE + 16]
  u32* const warp_counts = reinterpret_cast<u32*>(memory + TILE + 16);  // [8]: bytes kept, markers << 16

  const Image& image = images[blockIdx.x];
  const u32 skip = static_cast<u32>(reinterpret_cast<u64>(image.scan) & 15);
  const u8* const source = image.scan - skip;
  const u32 length = image.header.scan_bytes + skip;
  const u32 intervals = image.interval_count;
  u8* const stream = reinterpret_cast<u8*>(image.stream);
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;

  u32 left = 0, written = 0, markers = 0, wrong = 0;
  if (thread == 0 && intervals) image.intervals[0] = 0;
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
    u32 kept = 0, restarts = 0;
#pragma unroll
    for (int i = 0; i < BYTES; ++i) {
      const u32 byte = group[i >> 2] >> (8 * (i & 3)) & 255;
      const u32 next = at + i + 1 >= length ? 0xFF : i + 1 < BYTES ? group[(i + 1) >> 2] >> (8 * ((i + 1) & 3)) & 255 : after;
      const bool inside = at + i >= skip && at + i < length;
      const bool second = inside && previous == 0xFF;
      const bool restart = second && byte >= 0xD0 && byte <= 0xD7;
      if (second && byte != 0 && !restart) wrong |= MARKER_IN_SCAN;
      if (inside && byte == 0xFF && at + i + 1 == length) wrong |= MARKER_IN_SCAN;
      const bool keep = inside && (byte == 0xFF ? next == 0 : !second);
      kept |= static_cast<u32>(keep) << i;
      restarts |= static_cast<u32>(restart) << i;
      previous = inside ? byte : 0;
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
    u32 place = left + (before & 0xFFFF), marker = markers + (before >> 16);
#pragma unroll
    for (int i = 0; i < BYTES; ++i) {
      const u32 byte = group[i >> 2] >> (8 * (i & 3)) & 255;
      if (kept >> i & 1) tile[place++] = byte;
      if (restarts >> i & 1) {
        if ((byte & 7) != (marker & 7) || marker + 1 >= intervals) {
          wrong |= intervals ? RESTART_MARKERS : MARKER_IN_SCAN;
        } else {
          image.intervals[marker + 1] = written + place;
        }
        ++marker;
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
    if (intervals) image.intervals[intervals] = written + left;
    if (intervals && markers + 1 != intervals) wrong |= RESTART_MARKERS;
  }
  if (wrong) atomicOr(damage + blockIdx.x, wrong);
}
