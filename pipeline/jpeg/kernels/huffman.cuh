// Huffman tables for decoding, built by a block from the counts and symbols of the file.
//
// An entry says, of one symbol: bits of its code, bits of the value that follows, and by how much it moves the index of
// the coefficient (END: the block is over). Codes of up to DC_BITS and AC_BITS bits are found by one look-up; longer AC
// codes by a second one, as they lie close together behind the shorter ones; what is left, and what is no code, by
// search.
#pragma once
#include "image.cuh"

constexpr int DC_BITS = 8;
constexpr int AC_BITS = 11;
constexpr int SECOND = 256;
constexpr u32 DC_ENTRIES = 1u << DC_BITS;
constexpr u32 AC_ENTRIES = 1u << AC_BITS;
constexpr u32 IDLE = 2 * (DC_ENTRIES + AC_ENTRIES);  // a table of one entry that moves nothing

constexpr u32 END = 63;
constexpr u32 LONG = 0xFFFF;                         // not in the first table
constexpr u32 NO_CODE = 1u | 1u << 5 | END << 10;    // unlike any end of block: that has no value
constexpr int MOST_DC_BITS = 11, MOST_AC_BITS = 10;  // of a value: more there are not in 8-bit images

struct Tables {
  u16 first[IDLE + 8];
  u16 second[2 * SECOND];
  u32 limit[4][17];  // 16-bit codes from this on are longer
  int delta[4][17];  // from a code to its symbol's place
  u8 symbols[4][256];
  uint2 of_block[8];  // by place in the MCU: the DC table's begin | component << 24, the AC table's begin
};

static_assert(sizeof(Tables) == 11888, "what launches.py asks for");

__device__ __forceinline__ u32 table_begin(u32 table) {
  return table < 2 ? table * DC_ENTRIES : 2 * DC_ENTRIES + (table - 2) * AC_ENTRIES;
}

__device__ __forceinline__ u32 entry_of(bool ac, u32 bits, u32 symbol) {
  if (!ac) return symbol > MOST_DC_BITS ? NO_CODE : bits | symbol << 5 | 1u << 10;
  const u32 run = symbol >> 4, size = symbol & 15;
  if (size > MOST_AC_BITS) return NO_CODE;
  return bits | size << 5 | (size ? run + 1 : run == 15 ? 16 : END) << 10;
}

// The entry of the code that the 16 bits begin with, which has `bits` bits or more.
__device__ __forceinline__ u32 search(const Tables& tables, u32 table, u32 code16, u32 bits) {
  while (bits <= 16 && code16 >= tables.limit[table][bits]) ++bits;
  if (bits > 16) return NO_CODE;
  const int place = static_cast<int>(code16 >> (16 - bits)) + tables.delta[table][bits];
  return entry_of(table >= 2, bits, tables.symbols[table][place & 255]);
}

__device__ __forceinline__ u32 long_code(const Tables& tables, u32 begin, u32 code16) {
  if (begin < 2 * DC_ENTRIES) return search(tables, begin / DC_ENTRIES, code16, 1);
  const u32 ac = (begin - 2 * DC_ENTRIES) / AC_ENTRIES, place = code16 - tables.limit[2 + ac][AC_BITS];
  const u32 entry = place < SECOND ? tables.second[ac * SECOND + place] : 0;
  return entry ? entry : search(tables, 2 + ac, code16, 1);
}

__device__ __forceinline__ u16 first_entry(const Tables& tables, u32 place) {
  const bool ac = place >= 2 * DC_ENTRIES;
  const u32 within = ac ? place - 2 * DC_ENTRIES : place;
  const u32 wide = ac ? AC_BITS : DC_BITS, table = (within >> wide) + (ac ? 2 : 0);
  const u32 code16 = (within & ((1u << wide) - 1)) << (16 - wide);
  if (code16 >= tables.limit[table][wide]) return LONG;
  const u32 entry = search(tables, table, code16, 1);
  return entry == NO_CODE ? LONG : entry;
}

__device__ __forceinline__ u16 second_entry(const Tables& tables, u32 place) {
  const u32 table = 2 + place / SECOND, code16 = tables.limit[table][AC_BITS] + place % SECOND;
  return code16 > 0xFFFF ? 0 : search(tables, table, code16, AC_BITS + 1);
}

// All threads of the block; false when a table is none. Ends without a barrier.
template <int THREADS>
__device__ __forceinline__ bool build_tables(const Header& header, Tables& tables) {
  const int thread = threadIdx.x;
  bool good = true;
  for (int i = thread; i < 1024; i += THREADS) tables.symbols[i >> 8][i & 255] = header.symbols[i >> 8][i & 255];
  if (thread < 4) {
    u32 code = 0;
    int place = 0;
    for (int bits = 1; bits <= 16; ++bits) {
      const int count = header.counts[thread][bits - 1];
      tables.delta[thread][bits] = place - static_cast<int>(code);
      code += count;
      place += count;
      good &= count == 0 || code < 1u << bits;  // the code of ones alone is none
      tables.limit[thread][bits] = code << (16 - bits);
      code <<= 1;
    }
    if (thread < 2)
      for (int i = 0; i < place && i < 256; ++i) good &= header.symbols[thread][i] <= 15;
  }
  if (thread < blocks_per_mcu(header)) {
    const int luma = blocks_per_mcu(header) - (header.components == 1 ? 0 : 2);
    const int component = thread < luma ? 0 : thread - luma + 1;
    tables.of_block[thread] =
        make_uint2(table_begin(header.dc_table[component]) | component << 24, table_begin(header.ac_table[component]));
  }
  __syncthreads();
  for (u32 i = thread; i < IDLE; i += THREADS) tables.first[i] = first_entry(tables, i);
  if (thread < 8) tables.first[IDLE + thread] = 0;
  for (u32 i = thread; i < 2 * SECOND; i += THREADS) tables.second[i] = second_entry(tables, i);
  return good;
}
