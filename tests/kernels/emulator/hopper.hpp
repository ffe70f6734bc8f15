// Instructions of sm_90a: the copy engine with its barriers, and wgmma.
//
// The copy engine and wgmma see shared memory through a proxy of their own: what threads wrote is there from the next
// fence.proxy.async on (emulator::async_view). Copies into shared memory and products are both late by default, each by
// itself: a copy happens when somebody waits for its barrier (EAGER: when issued), a product reads its shared operands
// and writes its sums when it is waited for (PROMPT: when issued). A warpgroup's four warps, each of which has sixteen
// rows of a product, are not held together: nothing says that the hardware does.
#pragma once
#include <type_traits>

#include "cuda.hpp"
#include "tensor_map.hpp"

namespace emulator {

// --- shared memory by address
// -----------------------------------------------------------------------------------------

// Static shared memory lies elsewhere in the library: below or above `shared`, by less than 2 GB.
inline unsigned char* shared_bytes_at(unsigned address, unsigned bytes, unsigned alignment) {
  if (address % alignment) fail("shared memory: misaligned");
  if (address < SHARED_BYTES && address + bytes > static_cast<unsigned>(dynamic_end)) fail("beyond shared memory");
  return shared + static_cast<int>(address);
}
inline void check_dynamic(unsigned address, unsigned bytes, unsigned alignment, const char* what) {
  if (address % alignment) fail(what);
  if (address >= SHARED_BYTES || address + bytes > static_cast<unsigned>(dynamic_end))
    fail("copy engine: beyond shared memory");
}
inline void write_async(unsigned address, const void* source, size_t bytes) {
  memcpy(shared + address, source, bytes);
  memcpy(async_view + address, source, bytes);
}

// --- barriers
// ----------------------------------------------------------------------------------------------------------

inline Barrier& barrier_at(unsigned address) {
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail("mbarrier: not initialised");
  return found->second;
}
inline void check_phase(Barrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.pending = barrier.count;
  ++barrier.phase;
}
inline void arrive(Barrier& barrier) {
  if (barrier.pending == 0) fail("mbarrier: more arrivals than it counts");
  --barrier.pending;
  check_phase(barrier);
}
inline void complete(Barrier& barrier, long bytes) {
  barrier.bytes -= bytes;
  check_phase(barrier);
}
inline bool passed(Barrier& barrier, unsigned parity) {
  if ((barrier.phase & 1) != parity) return true;
  if (barrier.pending == 0 && !barrier.copies.empty()) {
    auto copies = std::move(barrier.copies);
    barrier.copies.clear();
    for (auto& copy : copies) copy();
  }
  return (barrier.phase & 1) != parity;
}
inline void copy_in_background(unsigned barrier_address, long bytes, std::function<void()> copy) {
  Barrier& barrier = barrier_at(barrier_address);
  auto whole = [&barrier, bytes, copy] {
    copy();
    complete(barrier, bytes);
  };
  if (eager) return whole();
  barrier.copies.push_back(whole);
}

// --- the copy engine
// -----------------------------------------------------------------------------------------------------

inline EncodedMap read_map(const void* pointer) {
  EncodedMap map;
  memcpy(&map, pointer, sizeof map);
  if (map.mark != TENSOR_MAP_MARK) fail("copy engine: not a tensor map");
  return map;
}
// 16-byte pieces of 128-byte lines change places within eight lines.
inline unsigned swizzle(const EncodedMap& map, unsigned address) {
  return map.swizzled ? address ^ (address >> 7 & 7) << 4 : address;
}
// Calls row(shared address, bytes that exist, pointer to them or null) for each row of a box.
template <typename Row>
void for_each_row(const EncodedMap& map, unsigned address, const int (&start)[4], Row row) {
  unsigned at = address;
  int place[4] = {};
  const int rows = map.rank > 1 ? map.box[1] : 1, planes = map.rank > 2 ? map.box[2] : 1,
            blocks = map.rank > 3 ? map.box[3] : 1;
  for (place[3] = 0; place[3] < blocks; ++place[3])
    for (place[2] = 0; place[2] < planes; ++place[2])
      for (place[1] = 0; place[1] < rows; ++place[1], at += map.box[0]) {
        bool inside = true;
        uint64_t offset = 0;
        for (int i = 1; i < map.rank; ++i) {
          const int64_t index = static_cast<int64_t>(start[i]) + place[i] * map.steps[i];
          inside &= index >= 0 && index < static_cast<int64_t>(map.dims[i]);
          offset += index * map.strides[i - 1];
        }
        const int64_t first = start[0], left = static_cast<int64_t>(map.dims[0]) - first;
        if (first < 0) fail("copy engine: a negative innermost coordinate");
        const int bytes = inside ? static_cast<int>(std::clamp<int64_t>(left, 0, map.box[0])) : 0;
        row(at, bytes, bytes ? reinterpret_cast<unsigned char*>(map.address) + offset + first : nullptr);
      }
}
inline unsigned box_bytes(const EncodedMap& map) {
  unsigned bytes = map.box[0];
  for (int i = 1; i < map.rank; ++i) bytes *= map.box[i];
  return bytes;
}
inline void put_row(const EncodedMap& map, unsigned address, const unsigned char* source, int bytes) {
  for (int i = 0; i < map.box[0]; i += 16) {
    unsigned char piece[16] = {};
    if (i < bytes) memcpy(piece, source + i, min(16, bytes - i));
    write_async(swizzle(map, address + i), piece, 16);
  }
}
inline void load_box(unsigned target, const void* pointer, unsigned barrier, const int (&start)[4], int rank) {
  const EncodedMap map = read_map(pointer);
  if (map.im2col || map.rank != rank) fail("copy engine: a map of another kind");
  check_dynamic(target, box_bytes(map), 128, "copy engine: misaligned box");
  const std::vector<int> from(start, start + 4);
  copy_in_background(barrier, box_bytes(map), [=] {
    const int place[4] = {from[0], from[1], from[2], from[3]};
    for_each_row(map, target, place,
                 [&](unsigned at, int bytes, const unsigned char* source) { put_row(map, at, source, bytes); });
  });
}
inline void load_windows(unsigned target, const void* pointer, unsigned barrier, const int (&start)[4], int tap_w,
                         int tap_h) {
  const EncodedMap map = read_map(pointer);
  if (!map.im2col) fail("copy engine: a map of another kind");
  const int channels = map.box[0], pixels = map.box[1];
  check_dynamic(target, channels * pixels, 128, "copy engine: misaligned column");
  const std::vector<int> from(start, start + 4);
  copy_in_background(barrier, static_cast<long>(channels) * pixels, [=] {
    int64_t w = from[1], h = from[2], n = from[3];
    for (int i = 0; i < pixels; ++i) {
      const int64_t x = w + tap_w, y = h + tap_h;
      const bool inside = x >= 0 && x < static_cast<int64_t>(map.dims[1]) && y >= 0 &&
                          y < static_cast<int64_t>(map.dims[2]) && n >= 0 && n < static_cast<int64_t>(map.dims[3]);
      const auto* source = reinterpret_cast<const unsigned char*>(map.address) +
                           (inside ? from[0] + x * map.strides[0] + y * map.strides[1] + n * map.strides[2] : 0);
      put_row(map, target + i * channels, source, inside ? std::min<int64_t>(channels, map.dims[0] - from[0]) : 0);
      w += map.steps[1];
      if (w > static_cast<int64_t>(map.dims[1]) - 1 + map.upper[0]) {
        w = map.lower[0];
        h += map.steps[2];
        if (h > static_cast<int64_t>(map.dims[2]) - 1 + map.upper[1]) {
          h = map.lower[1];
          ++n;
        }
      }
    }
  });
}

// --- stores of the copy engine
// -------------------------------------------------------------------------------------------

// `pieces` are (where from, where to, bytes); they are read by the first wait for reads, and written by a whole wait.
inline void store_in_background(std::vector<StorePiece> pieces) {
  BulkStore store{std::move(pieces), {}, false};
  if (eager) {
    store.read();
    store.write();
    return;
  }
  auto& groups = current->stores;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(std::move(store));
}
inline void wait_for_stores(int pending, bool only_reads) {
  auto& groups = current->stores;
  const int closed = groups.empty() ? 0 : static_cast<int>(groups.size()) - 1;
  for (int i = 0; i < closed - pending; ++i)
    for (auto& store : groups[i]) {
      store.read();
      if (!only_reads) store.write();
    }
  if (!only_reads)
    for (int i = 0; i < closed - pending; ++i) groups.pop_front();
}
inline void store_box(const void* pointer, unsigned source, const int (&start)[4], int rank) {
  const EncodedMap map = read_map(pointer);
  if (map.im2col || map.rank != rank) fail("copy engine: a map of another kind");
  check_dynamic(source, box_bytes(map), 128, "copy engine: misaligned box");
  std::vector<StorePiece> pieces;
  for_each_row(map, source, start, [&](unsigned at, int bytes, unsigned char* target) {
    for (int i = 0; i < bytes; i += 16)
      pieces.push_back({swizzle(map, at + i), target + i, static_cast<unsigned>(min(16, bytes - i))});
  });
  store_in_background(std::move(pieces));
}

// --- wgmma
// ------------------------------------------------------------------------------------------------------------

// Core matrix (8 columns of N x 16 places of K) number (block of N, half of K) of an operand without swizzle.
struct Descriptor {
  unsigned start, k_stride, row_stride;
  explicit Descriptor(unsigned long long bits)
      : start((bits & 0x3FFF) << 4), k_stride((bits >> 16 & 0x3FFF) << 4), row_stride((bits >> 32 & 0x3FFF) << 4) {
    if (bits >> 49) fail("wgmma: only operands without swizzle are emulated");
  }
  unsigned matrix(int block, int half) const { return start + half * k_stride + block * row_stride; }
};

template <int N, bool A_SIGNED, bool B_SIGNED>
__attribute__((optimize("O3"))) void multiply_tile(const short (&a)[16][32], const Descriptor& b, int (&sums)[16][N]) {
  static short columns[32][N];
  for (int block = 0; block < N / 8; ++block)
    for (int half = 0; half < 2; ++half) {
      const unsigned at = b.matrix(block, half);
      if (at + 128 > static_cast<unsigned>(dynamic_end)) fail("wgmma: an operand beyond shared memory");
      for (int column = 0; column < 8; ++column)
        for (int k = 0; k < 16; ++k) {
          const unsigned char value = async_view[at + column * 16 + k];
          columns[half * 16 + k][block * 8 + column] = B_SIGNED ? static_cast<signed char>(value) : value;
        }
    }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 32; ++k) {
      const int value = a[row][k];
      for (int column = 0; column < N; ++column) sums[row][column] += value * columns[k][column];
    }
}

template <int N>
struct WgmmaOperands {
  int* d[N / 2];
  unsigned a[4];
  unsigned long long b;
  int accumulate;
};

template <int N, bool A_SIGNED, bool B_SIGNED>
void issue_product(WgmmaOperands<N>& mine) {
  together(warp(), lane(), mine, [](WgmmaOperands<N>** all) {
    struct Product {
      short a[16][32];
      int* d[16][N];
    };
    auto product = std::make_shared<Product>();
    for (int thread = 0; thread < 32; ++thread) {
      const auto& one = *all[thread];
      if (one.b != all[0]->b || !one.accumulate != !all[0]->accumulate) fail("wgmma: threads with different operands");
      const int row = thread / 4, quad = thread % 4;
      for (int word = 0; word < 4; ++word)
        for (int i = 0; i < 4; ++i) {
          const unsigned char value = one.a[word] >> 8 * i;
          product->a[row + word % 2 * 8][word / 2 * 16 + quad * 4 + i] =
              A_SIGNED ? static_cast<signed char>(value) : value;
        }
      for (int i = 0; i < N / 2; ++i) product->d[row + i / 2 % 2 * 8][i / 4 * 8 + quad * 2 + i % 2] = one.d[i];
    }
    ++products[current->thread.x / 32].issued;
    const Descriptor b(all[0]->b);
    const bool accumulate = all[0]->accumulate;
    auto compute = [product, b, accumulate] {
      static int sums[16][N];
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < N; ++column) sums[row][column] = accumulate ? *product->d[row][column] : 0;
      multiply_tile<N, A_SIGNED, B_SIGNED>(product->a, b, sums);
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < N; ++column) *product->d[row][column] = sums[row][column];
    };
    if (prompt) return compute();
    products[current->thread.x / 32].open.push_back(compute);
  });
}

// Operand `i` of the instruction: sums, four words of A, the descriptor, and whether to accumulate.
template <int N, typename T>
void take_operand(WgmmaOperands<N>& operands, int i, T& value) {
  if constexpr (std::is_same_v<T, int>)
    if (i < N / 2) {
      operands.d[i] = &value;
      return;
    }
  if (i < N / 2 + 4)
    operands.a[i - N / 2] = value;
  else if (i == N / 2 + 4)
    operands.b = value;
  else
    operands.accumulate = value != 0;
}
// A whole warp at an instruction that has no operands of its own.
template <typename Complete>
void in_step(Complete complete) {
  int nothing = 0;
  together(warp(), lane(), nothing, [&](int**) { complete(products[current->thread.x / 32]); });
}

}  // namespace emulator

#define EMULATED_WGMMA(N, TYPES, A_SIGNED, B_SIGNED)                          \
  template <typename... T>                                                    \
  void wgmma_mma_async_sync_aligned_m64n##N##k32_s32_##TYPES(T&&... values) { \
    static_assert(sizeof...(T) == N / 2 + 6);                                 \
    emulator::WgmmaOperands<N> mine;                                          \
    int i = 0;                                                                \
    (emulator::take_operand(mine, i++, values), ...);                         \
    emulator::issue_product<N, A_SIGNED, B_SIGNED>(mine);                     \
  }
#define EMULATED_WGMMA_TYPES(N)         \
  EMULATED_WGMMA(N, u8_s8, false, true) \
  EMULATED_WGMMA(N, s8_s8, true, true)  \
  EMULATED_WGMMA(N, s8_u8, true, false)
EMULATED_WGMMA_TYPES(32)
EMULATED_WGMMA_TYPES(64)
EMULATED_WGMMA_TYPES(96)
EMULATED_WGMMA_TYPES(112)
EMULATED_WGMMA_TYPES(128)
EMULATED_WGMMA_TYPES(256)

inline void wgmma_fence_sync_aligned() {
  emulator::in_step([](emulator::Products&) {});
}
inline void wgmma_commit_group_sync_aligned() {
  emulator::in_step([](emulator::Products& products) {
    products.groups.push_back(std::move(products.open));
    products.open.clear();
  });
}
inline void wgmma_wait_group_sync_aligned(int pending) {
  emulator::in_step([pending](emulator::Products& products) {
    while (static_cast<int>(products.groups.size()) > pending) {
      for (auto& compute : products.groups.front()) compute();
      products.groups.pop_front();
    }
  });
}
inline void setmaxnreg_inc_sync_aligned_u32(int) {}
inline void setmaxnreg_dec_sync_aligned_u32(int) {}
inline void griddepcontrol_launch_dependents() {}
inline void griddepcontrol_wait() {}
inline void prefetch_global_L2(const void* address) { (void)*static_cast<const volatile char*>(address); }

// --- barriers
// ---------------------------------------------------------------------------------------------------------

inline void mbarrier_init_shared_cta_b64(unsigned barrier, int arrivals) {
  emulator::shared_bytes_at(barrier, 8, 8);
  emulator::barriers[barrier] = {arrivals, arrivals, 0, 0, {}};
}
inline void fence_mbarrier_init_release_cluster() {}
inline void fence_proxy_async_shared_cta() { memcpy(emulator::async_view, emulator::shared, emulator::dynamic_end); }
inline void mbarrier_arrive_shared_cta_b64(unsigned barrier) { emulator::arrive(emulator::barrier_at(barrier)); }
inline void mbarrier_arrive_expect_tx_shared_cta_b64(unsigned barrier, unsigned bytes) {
  emulator::barrier_at(barrier).bytes += bytes;
  emulator::arrive(emulator::barrier_at(barrier));
}
inline void mbarrier_try_wait_parity_shared_cta_b64(unsigned address, unsigned parity) {
  emulator::Barrier& barrier = emulator::barrier_at(address);
  emulator::wait_for([&barrier, parity] { return emulator::passed(barrier, parity); });
}
inline void bar_sync(int id, int threads) {
  if (threads % 32 || id < 1 || id > 15) emulator::fail("bar.sync: no such barrier");
  emulator::Group& group = emulator::named[id];
  if (group.size == 0) {
    group.size = threads;
    group.operands.resize(threads);
  }
  if (group.size != threads) emulator::fail("bar.sync: a barrier of another size");
  int nothing = 0;
  emulator::together(group, group.arrived, nothing, [](int**) {});
}

// --- the copy engine
// --------------------------------------------------------------------------------------------------

inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(unsigned target, const void* source,
                                                                           unsigned bytes, unsigned barrier) {
  emulator::check_dynamic(target, bytes, 16, "copy engine: misaligned target");
  if (reinterpret_cast<uintptr_t>(source) % 16 || bytes % 16) emulator::fail("copy engine: misaligned source or size");
  emulator::copy_in_background(barrier, bytes, [=] { emulator::write_async(target, source, bytes); });
}
inline void cp_async_bulk_tensor_4d_shared_cluster_global_im2col_mbarrier_complete_tx_bytes(
    unsigned target, const void* map, unsigned barrier, int c, int w, int h, int n, short tap_w, short tap_h) {
  emulator::load_windows(target, map, barrier, {c, w, h, n}, tap_w, tap_h);
}
inline void cp_async_bulk_tensor_4d_shared_cluster_global_tile_mbarrier_complete_tx_bytes(unsigned target,
                                                                                          const void* map,
                                                                                          unsigned barrier, int c,
                                                                                          int w, int h, int n) {
  emulator::load_box(target, map, barrier, {c, w, h, n}, 4);
}
inline void cp_async_bulk_tensor_2d_shared_cluster_global_tile_mbarrier_complete_tx_bytes(unsigned target,
                                                                                          const void* map,
                                                                                          unsigned barrier, int x,
                                                                                          int y) {
  emulator::load_box(target, map, barrier, {x, y, 0, 0}, 2);
}
inline void cp_async_bulk_tensor_2d_global_shared_cta_tile_bulk_group(const void* map, unsigned source, int x, int y) {
  emulator::store_box(map, source, {x, y, 0, 0}, 2);
}
inline void cp_async_bulk_global_shared_cta_bulk_group(void* target, unsigned source, unsigned bytes) {
  emulator::check_dynamic(source, bytes, 16, "copy engine: misaligned source");
  if (reinterpret_cast<uintptr_t>(target) % 16 || bytes % 16) emulator::fail("copy engine: misaligned target or size");
  emulator::store_in_background({{source, static_cast<unsigned char*>(target), bytes}});
}
inline void cp_async_bulk_commit_group() {
  if (emulator::eager) return;
  if (emulator::current->stores.empty()) emulator::current->stores.emplace_back();
  emulator::current->stores.emplace_back();
}
inline void cp_async_bulk_wait_group(int pending) { emulator::wait_for_stores(pending, false); }
inline void cp_async_bulk_wait_group_read(int pending) { emulator::wait_for_stores(pending, true); }

// --- loads and stores of shared memory
// --------------------------------------------------------------------------------

template <typename... Words>
void load_shared(unsigned address, Words&... words) {
  const unsigned char* from = emulator::shared_bytes_at(address, 4 * sizeof...(words), 4 * sizeof...(words));
  ((memcpy(&words, from, 4), from += 4), ...);
}
inline void ld_shared_b32(unsigned& a, unsigned address) { load_shared(address, a); }
inline void ld_shared_v2_b32(unsigned& a, unsigned& b, unsigned address) { load_shared(address, a, b); }
inline void ld_shared_v4_b32(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned address) {
  load_shared(address, a, b, c, d);
}
template <typename T, typename... Values>
void store_shared(unsigned address, Values... values) {
  const T all[] = {static_cast<T>(values)...};
  memcpy(emulator::shared_bytes_at(address, sizeof all, sizeof all), all, sizeof all);
}
inline void st_shared_b8(unsigned address, unsigned a) { store_shared<unsigned char>(address, a); }
inline void st_shared_b32(unsigned address, unsigned a) { store_shared<unsigned>(address, a); }
inline void st_shared_v2_b32(unsigned address, unsigned a, unsigned b) { store_shared<unsigned>(address, a, b); }
inline void st_shared_v4_b32(unsigned address, unsigned a, unsigned b, unsigned c, unsigned d) {
  store_shared<unsigned>(address, a, b, c, d);
}

// --- stmatrix
// -----------------------------------------------------------------------------------------------------------

inline void stmatrix_sync_aligned_m8n8_x4_trans_shared_b16(unsigned address, unsigned a, unsigned b, unsigned c,
                                                           unsigned d) {
  struct Operands {
    unsigned address, tiles[4];
  } mine = {address, {a, b, c, d}};
  emulator::together(emulator::warp(), emulator::lane(), mine, [](Operands** all) {
    for (int tile = 0; tile < 4; ++tile) {
      unsigned banks = 0;
      for (int column = 0; column < 8; ++column) {
        const unsigned at = all[tile * 8 + column]->address;
        unsigned char* const to = emulator::shared_bytes_at(at, 16, 16);
        banks |= 1u << (at / 16 % 8);
        for (int row = 0; row < 8; ++row) {
          const unsigned short element = all[row * 4 + column / 2]->tiles[tile] >> (16 * (column % 2));
          memcpy(to + 2 * row, &element, 2);
        }
      }
      if (banks != 0xFF) emulator::fail("stmatrix: columns of a tile in the same banks");
    }
  });
}
