// PTX instructions of the kernels as C++ functions, named after them; operands in the order of the asm statement.
#pragma once
#include "cuda.hpp"
#include "hopper.hpp"

// --- conversions -----------------------------------------------------------------------------------------------------

template <int BITS, bool SIGNED>
unsigned packed_pair(int high, int low, unsigned rest) {
  constexpr int LOW = SIGNED ? -(1 << (BITS - 1)) : 0, HIGH = (1 << (SIGNED ? BITS - 1 : BITS)) - 1;
  constexpr unsigned MASK = (1u << BITS) - 1;
  const unsigned first = min(max(low, LOW), HIGH) & MASK, second = min(max(high, LOW), HIGH) & MASK;
  return rest << (2 * BITS) | second << BITS | first;
}
inline void cvt_pack_sat_u4_s32_b32(unsigned& d, int a, int b, unsigned c) { d = packed_pair<4, false>(a, b, c); }
inline void cvt_pack_sat_u8_s32_b32(unsigned& d, int a, int b, unsigned c) { d = packed_pair<8, false>(a, b, c); }
inline void cvt_pack_sat_s8_s32_b32(unsigned& d, int a, int b, unsigned c) { d = packed_pair<8, true>(a, b, c); }

// --- permutation of bytes --------------------------------------------------------------------------------------------

// Bit 3 of a nibble of the selector asks for the byte's sign, eight times.
inline void prmt_b32(unsigned& d, unsigned a, unsigned b, unsigned selector) {
  d = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned char byte = __byte_perm(a, b, selector >> 4 * i & 7);
    d |= static_cast<unsigned>(selector >> 4 * i & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;
  }
}

// --- cp.async --------------------------------------------------------------------------------------------------------

inline void cp_async_cg_shared_global(unsigned target, const void* source, int bytes) {
  if (target % 16 || reinterpret_cast<uintptr_t>(source) % 16) emulator::fail("cp.async: misaligned");
  if (static_cast<int>(target) + 16 > emulator::dynamic_end) emulator::fail("cp.async: beyond shared memory");
  auto copy = [=] {
    unsigned char* const to = emulator::shared + target;
    memset(to, 0, 16);
    if (bytes) memcpy(to, source, bytes);
  };
  if (emulator::eager) return copy();
  auto& groups = emulator::current->copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
}
inline void cp_async_commit_group() { emulator::current->copies.emplace_back(); }
inline void cp_async_wait_group(int pending) {
  auto& groups = emulator::current->copies;
  while (static_cast<int>(groups.size()) > pending + 1) {  // the open group does not count
    for (auto& copy : groups.front()) copy();
    groups.pop_front();
  }
}

// --- mma.sync --------------------------------------------------------------------------------------------------------

// A tile of ROWS x 8 x (4 * PLACES * WORDS); a word holds PLACES values of K, the first in its lowest bits. Of the
// words of A, those of rows `group` and group + 8 alternate.
template <bool SIGNED, int PLACES>
int word_value(unsigned word, int i) {
  constexpr int BITS = 32 / PLACES;
  const unsigned raw = word >> (BITS * i) & ((1u << BITS) - 1);
  return SIGNED && raw >> (BITS - 1) ? static_cast<int>(raw) - (1 << BITS) : static_cast<int>(raw);
}

template <bool A_SIGNED, int PLACES, int ROWS, int WORDS>
void mma_words(int* const (&d)[ROWS / 4], const unsigned (&a)[WORDS * ROWS / 8], const unsigned (&b)[WORDS]) {
  struct Operands {
    int* d[ROWS / 4];
    unsigned a[WORDS * ROWS / 8], b[WORDS];
  } mine;
  memcpy(mine.d, d, sizeof d);
  memcpy(mine.a, a, sizeof a);
  memcpy(mine.b, b, sizeof b);
  emulator::together(emulator::warp(), emulator::lane(), mine, [](Operands** all) {
    constexpr int K = 4 * PLACES * WORDS, HALVES = ROWS / 8;
    short rows[ROWS][K], columns[8][K];
    for (int lane = 0; lane < 32; ++lane)
      for (int word = 0; word < WORDS; ++word)
        for (int e = 0; e < PLACES; ++e) {
          const int group = lane / 4, place = (word * 4 + lane % 4) * PLACES + e;
          columns[group][place] = word_value<true, PLACES>(all[lane]->b[word], e);
          for (int half = 0; half < HALVES; ++half)
            rows[group + 8 * half][place] = word_value<A_SIGNED, PLACES>(all[lane]->a[word * HALVES + half], e);
        }
    for (int row = 0; row < ROWS; ++row)
      for (int column = 0; column < 8; ++column) {
        int sum = 0;
        for (int k = 0; k < K; ++k) sum += rows[row][k] * columns[column][k];
        *all[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2] += sum;
      }
  });
}
inline void mma_sync_aligned_m8n8k32_row_col_s32_u4_s4_s32(int& d0, int& d1, unsigned a, unsigned b) {
  mma_words<false, 8, 8, 1>({&d0, &d1}, {a}, {b});
}
inline void mma_sync_aligned_m16n8k32_row_col_s32_u4_s4_s32(int& d0, int& d1, int& d2, int& d3, unsigned a0,
                                                            unsigned a1, unsigned b) {
  mma_words<false, 8, 16, 1>({&d0, &d1, &d2, &d3}, {a0, a1}, {b});
}
inline void mma_sync_aligned_m16n8k64_row_col_s32_u4_s4_s32(int& d0, int& d1, int& d2, int& d3, unsigned a0,
                                                            unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                                            unsigned b1) {
  mma_words<false, 8, 16, 2>({&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1});
}
inline void mma_sync_aligned_m8n8k16_row_col_s32_u8_s8_s32(int& d0, int& d1, unsigned a, unsigned b) {
  mma_words<false, 4, 8, 1>({&d0, &d1}, {a}, {b});
}
inline void mma_sync_aligned_m8n8k16_row_col_s32_s8_s8_s32(int& d0, int& d1, unsigned a, unsigned b) {
  mma_words<true, 4, 8, 1>({&d0, &d1}, {a}, {b});
}
inline void mma_sync_aligned_m16n8k32_row_col_s32_u8_s8_s32(int& d0, int& d1, int& d2, int& d3, unsigned a0,
                                                            unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                                            unsigned b1) {
  mma_words<false, 4, 16, 2>({&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1});
}
inline void mma_sync_aligned_m16n8k32_row_col_s32_s8_s8_s32(int& d0, int& d1, int& d2, int& d3, unsigned a0,
                                                            unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                                            unsigned b1) {
  mma_words<true, 4, 16, 2>({&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1});
}

// --- ldmatrix --------------------------------------------------------------------------------------------------------

template <int TILES>
void load_matrices(unsigned* const (&d)[TILES], unsigned address) {
  struct Operands {
    unsigned* d[TILES];
    unsigned address;
  } mine;
  memcpy(mine.d, d, sizeof d);
  mine.address = address;
  emulator::together(emulator::warp(), emulator::lane(), mine, [](Operands** all) {
    for (int tile = 0; tile < TILES; ++tile) {
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        const unsigned from = all[tile * 8 + row]->address;
        if (from % 16) emulator::fail("ldmatrix: misaligned");
        if (static_cast<int>(from) + 16 > emulator::dynamic_end) emulator::fail("ldmatrix: beyond shared memory");
        banks |= 1u << (from / 16 % 8);
        for (int quad = 0; quad < 4; ++quad)
          memcpy(all[row * 4 + quad]->d[tile], emulator::shared + from + quad * 4, 4);
      }
      if (banks != 0xFF) emulator::fail("ldmatrix: rows of a tile in the same banks");
    }
  });
}
inline void ldmatrix_sync_aligned_m8n8_x4_shared_b16(unsigned& d0, unsigned& d1, unsigned& d2, unsigned& d3,
                                                     unsigned address) {
  load_matrices<4>({&d0, &d1, &d2, &d3}, address);
}
inline void ldmatrix_sync_aligned_m8n8_x2_shared_b16(unsigned& d0, unsigned& d1, unsigned address) {
  load_matrices<2>({&d0, &d1}, address);
}
