// Huffman decoding: LANES threads per image. Every lane owns an equal range of the scan's bits, and the blocks that
// begin in it.
//
// Where a block begins is not known but at the scan's start. A lane therefore begins LEAD bits before its range, with a
// guess, and throws away what it decodes there: Huffman codes find their step again. It enters its range at what it
// takes for the first block. Then it is checked, not hoped: a lane whose entry is not its neighbour's exit decodes
// again from there, until all agree; as lane 0 is right, so are all then.
//
// Output is sparse. A lane's part of the arena is filled from below with 16 bits a coefficient (distance from the one
// before, modulo 16, << 12 | value; the first of a block is its DC, relative to the lane's start) and from above with
// 32 bits a block: where its coefficients end.
//
// RESTARTS: the scan has restart markers. Then lanes own whole intervals, whose start and number of blocks are known.
// Compile-time constants: LANES, RESTARTS.
#include "huffman.cuh"
#include "ring.cuh"

constexpr u32 LEAD = 8192;
constexpr u32 NEVER = 0xFFFFFFFFu;
constexpr u32 EVERYONE = 0xFFFFFFFFu;
constexpr u32 BLOCK_BYTES = 64 * 2 + 8 + 2 * 4;  // the most that one more block takes of a lane's part
constexpr u32 PADDING = 7;                       // bits that may be left behind the last block

// A place in the scan where a block begins: bit << 3 | the block's number in its MCU.
typedef u32 Place;

struct Range {
  Place entry;
  u32 end, bits;  // of the range, of the scan
  u32 blocks_per_mcu;
  const u32* intervals;  // bytes where they begin
  u32 interval, interval_end, interval_blocks, blocks;
};

struct Part {  // of the arena, a lane's
  u8* begin;
  u32 bytes;
};

struct Decoded {
  Place exit;
  u32 blocks, symbols;
  int dc[3];                  // sums of differences
  u32 wrong_at;               // the first block with what is no code or goes beyond the last coefficient
  u32 tail_first, tail_last;  // blocks done where no more than PADDING bits are left: from, to
  bool full;                  // more came than the arena has room for
  bool uneven;                // an interval is longer or shorter than its blocks
};

// All threads of a warp together; those that are not active idle.
template <bool OUTPUT, bool RESTARTS>
__device__ __forceinline__ void decode(const Tables& tables, Ring& ring, const Range& range, bool active, Part part,
                                       Decoded& done) {
  constexpr bool BY_INTERVALS = RESTARTS && OUTPUT;
  u32 bit = range.entry >> 3, block = range.entry & 7;
  u32 blocks = 0, symbols = 0, wrong_at = NEVER, tail_first = NEVER, tail_last = 0;
  u32 packed_low = 0, packed_high = 0;
  int dc0 = 0, dc1 = 0, dc2 = 0;
  bool full = false, uneven = false;
  u32 interval = range.interval, interval_bits = 0, interval_left = 0, soft_end = range.end;
  if (BY_INTERVALS) {
    active &= interval < range.interval_end;
    if (active) {
      bit = range.intervals[interval] * 8;
      interval_bits = range.intervals[interval + 1] * 8;
      interval_left = min(range.interval_blocks, range.blocks - interval * range.interval_blocks);
    }
  } else {
    if (OUTPUT && range.end == range.bits) soft_end -= min(soft_end, PADDING);
    if (OUTPUT && bit >= soft_end && bit <= range.bits) tail_first = 0;
    active &= bit < range.end;
  }

  uint2 begins = tables.of_block[block];
  u32 table = IDLE, index = 1;
  ring.stop();
  if (active) {
    ring.start(bit);
    table = begins.x & 0xFFFF;
    index = 0;
  }
  while (__any_sync(EVERYONE, table != IDLE)) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const u32 window = ring.window(bit);
      u32 entry = tables.first[table + (window >> (index ? 32 - AC_BITS : 32 - DC_BITS))];
      if (entry == LONG) {
        entry = long_code(tables, table, window >> 16);
        if (OUTPUT && entry == NO_CODE) wrong_at = min(wrong_at, blocks);
      }
      const u32 size = entry >> 5 & 31, move = entry >> 10;
      if (OUTPUT) {
        const u32 behind = __funnelshift_l(0, window, entry);  // by the code's length, the lowest five bits
        const u32 flip = ~static_cast<u32>(static_cast<int>(behind) >> 31);
        const u32 bits = __funnelshift_l(behind ^ flip, 0, size);
        int value = static_cast<int>(bits ^ flip) - static_cast<int>(flip);
        u32 symbol = (static_cast<u32>(value) & 0xFFF) | (entry << 2 & 0xF000);
        if (index == 0) {
          const u32 component = begins.x >> 24;
          if (component == 0) {
            value = dc0 += value;
          } else if (component == 1) {
            value = dc1 += value;
          } else {
            value = dc2 += value;
          }
          symbol = static_cast<u32>(value);
        }
        if (entry - 1 < END << 10) {  // neither idle nor an end
          packed_low = __byte_perm(packed_low, packed_high, 0x5432);
          packed_high = __byte_perm(packed_high, symbol, 0x5432);
          ++symbols;
          if (!(symbols & 3))
            *reinterpret_cast<uint2*>(part.begin + symbols * 2 - 8) = make_uint2(packed_low, packed_high);
        }
      }
      bit += (entry & 31) + size;
      ring.advance(bit);
      if (index == 0) table = begins.y;
      index += move;
      if (index < 64) continue;

      if (OUTPUT && move != END && index > 64) wrong_at = min(wrong_at, blocks);
      ++blocks;
      if (OUTPUT) *reinterpret_cast<u32*>(part.begin + part.bytes - 4 * blocks) = symbols;
      block = block + 1 == range.blocks_per_mcu ? 0 : block + 1;
      begins = tables.of_block[block];
      table = begins.x & 0xFFFF;
      index = 0;
      bool over = false;
      if (BY_INTERVALS) {
        if (bit > interval_bits) {
          uneven = over = true;
        } else if (--interval_left == 0) {
          uneven |= bit + PADDING < interval_bits;
          over = ++interval == range.interval_end;
          if (!over) {
            bit = interval_bits;
            interval_bits = range.intervals[interval + 1] * 8;
            interval_left = min(range.interval_blocks, range.blocks - interval * range.interval_blocks);
            dc0 = dc1 = dc2 = 0;
            ring.start(bit);
          }
        }
      } else if (bit >= soft_end) {
        if (OUTPUT && bit <= range.bits) {
          tail_first = min(tail_first, blocks);
          tail_last = blocks;
        }
        over = bit >= range.end;
      }
      if (OUTPUT && symbols * 2 + blocks * 4 + BLOCK_BYTES > part.bytes) full = over = true;
      if (over) {
        table = IDLE;
        index = 1;
        ring.stop();
      }
    }
    ring.step();
  }
  if (OUTPUT && symbols & 3) {
    u64 packed = static_cast<u64>(packed_high) << 32 | packed_low;
    *reinterpret_cast<u64*>(part.begin + (symbols & ~3u) * 2) = packed >> 16 * (4 - (symbols & 3));
  }
  done = {bit << 3 | block, blocks, symbols, {dc0, dc1, dc2}, wrong_at, tail_first, tail_last, full, uneven};
}

template <int LANES, bool RESTARTS>
struct JpegEntropy {
  static constexpr int THREADS = LANES;
  static constexpr int BLOCKS = LANES == 32 ? 16 : 8;  // a multiprocessor

  static __device__ __forceinline__ void run(const Image* __restrict__ images, const u32* __restrict__ order,
                                             const u32* __restrict__ stream_bits, u32* __restrict__ damage) {
    extern __shared__ __align__(16) unsigned char memory[];
    unsigned char* const rings = memory;                                    // [LANES][RING_BYTES]
    int* const sums = reinterpret_cast<int*>(memory + LANES * RING_BYTES);  // [4][LANES]
    u32* const exits = reinterpret_cast<u32*>(sums + 4 * LANES);            // [LANES]
    Tables& tables = *reinterpret_cast<Tables*>(exits + LANES);

    const u32 id = order[blockIdx.x];
    const Image& image = images[id];
    const int lane = threadIdx.x;
    if (damage[id]) return;  // by an earlier kernel: nobody writes it before the barrier in build_tables
    u32 wrong = build_tables<LANES>(image.header, tables) ? 0 : BAD_TABLE;

    Range range;
    range.bits = stream_bits[id];
    range.blocks_per_mcu = blocks_per_mcu(image.header);
    range.blocks = image.blocks;
    range.intervals = in_global(image.intervals);
    range.interval_blocks = image.header.restart * range.blocks_per_mcu;
    range.interval = static_cast<u64>(image.interval_count) * lane / LANES;
    range.interval_end = static_cast<u64>(image.interval_count) * (lane + 1) / LANES;
    const u32 begin = image.lane_bits * lane;
    const bool active = lane == 0 || begin + PADDING < range.bits;
    const bool last = active && begin + image.lane_bits + PADDING >= range.bits;
    Ring ring;
    ring.memory = rings + lane * RING_BYTES;
    ring.words = in_global(image.stream);
    const Part part = {in_global(image.arena) + static_cast<size_t>(lane) * image.lane_bytes, image.lane_bytes};
    __syncthreads();

    Decoded done;
    if (RESTARTS) {
      range.entry = 0;
      range.end = 0;
      decode<true, RESTARTS>(tables, ring, range, true, part, done);
    } else {
      const u32 lead = min(LEAD, image.lane_bits / 3);
      range.entry = lane == 0 ? 0 : (begin - lead) << 3;
      range.end = begin;
      decode<false, RESTARTS>(tables, ring, range, active && lane, part, done);
      range.entry = lane == 0 || !active ? 0 : done.exit;
      range.end = last ? range.bits : begin + image.lane_bits;
      decode<true, RESTARTS>(tables, ring, range, active, part, done);
      exits[lane] = done.exit;
      __syncthreads();
      for (;;) {
        const Place due = lane && active ? exits[lane - 1] : range.entry;
        const bool again = due != range.entry;
        if (!__syncthreads_or(again)) break;
        if (__any_sync(EVERYONE, again)) {
          Decoded second;
          range.entry = due;
          decode<true, RESTARTS>(tables, ring, range, again, part, second);
          if (again) {
            done = second;
            exits[lane] = done.exit;
          }
        }
        __syncthreads();
      }
    }

    // What lies before each lane: blocks, and the DC of each component.
    const int mine[4] = {active || RESTARTS ? static_cast<int>(done.blocks) : 0, done.dc[0], done.dc[1], done.dc[2]};
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i * LANES + lane] = mine[i];
    __syncthreads();
    for (int step = 1; step < LANES; step <<= 1) {
      int other[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) other[i] = lane >= step ? sums[i * LANES + lane - step] : 0;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i * LANES + lane] += other[i];
      __syncthreads();
    }
    const u32 first = sums[lane] - mine[0];
    in_global(image.lane_first)[lane] = first;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int before = RESTARTS ? 0 : sums[(i + 1) * LANES + lane] - mine[i + 1];
      in_global(image.lane_dc)[lane * 4 + i] = before;
      if (before != static_cast<short>(before)) wrong |= OUT_OF_RANGE;
    }
    if (done.full) wrong |= TOO_DENSE;
    if (done.wrong_at != NEVER && first + done.wrong_at < range.blocks) wrong |= BAD_CODE;
    if (RESTARTS ? done.uneven
                 : last && (done.tail_first == NEVER || first + done.tail_first > range.blocks ||
                            first + done.tail_last < range.blocks))
      wrong |= BAD_LENGTH;
    if (lane == LANES - 1 && static_cast<u32>(sums[lane]) < range.blocks) wrong |= BAD_LENGTH;
    if (wrong) atomicOr(damage + id, wrong);
  }
};
