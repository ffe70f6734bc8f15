// CUDA C++ on a CPU, for tests: every thread of a block is a fiber, blocks run one after another.
//
// A fiber runs until it has to wait: at __syncthreads, at an instruction that a whole warp or warpgroup executes
// together, or at an mbarrier. Copies that run in the background (cp.async, the bulk copy engine) happen as late as the
// program allows, or at once, as the run's flags say: a missing wait shows in the first, a buffer that is overwritten
// too early in the second. Inline PTX is translated by tests/kernels/emulator/translate.py to calls of the functions in
// ptx.hpp.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __restrict__ __restrict

using std::max;
using std::min;
using std::size_t;

struct Index {
  int x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

constexpr int SHARED_BYTES = 256 * 1024;
constexpr int DYNAMIC_START = 384;  // dynamic shared memory begins at a multiple of 128, and of no more
alignas(1024) static unsigned char shared[SHARED_BYTES], async_view[SHARED_BYTES];
static int dynamic_end;

// Of the copy engine: see hopper.hpp.
struct StorePiece {
  unsigned source;
  unsigned char* target;
  unsigned bytes;
};
struct BulkStore {
  std::vector<StorePiece> pieces;
  std::vector<unsigned char> held;
  bool was_read;
  void read() {
    if (was_read) return;
    was_read = true;
    for (const auto& piece : pieces)
      held.insert(held.end(), async_view + piece.source, async_view + piece.source + piece.bytes);
  }
  void write() const {
    size_t at = 0;
    for (const auto& piece : pieces) {
      memcpy(piece.target, held.data() + at, piece.bytes);
      at += piece.bytes;
    }
  }
};
struct Barrier {
  int count, pending;
  long bytes;
  unsigned phase;
  std::vector<std::function<void()>> copies;
};
struct Products {  // of a warp
  long issued = 0;
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> groups;
};

struct Fiber {
  Index thread;
  jmp_buf state;
  const std::function<bool()>* ready = nullptr;  // what it waits for
  bool done = false, started = false;
  std::deque<std::vector<std::function<void()>>> copies;  // groups of cp.async; the last is still open
  std::deque<std::vector<BulkStore>> stores;              // groups of the copy engine, likewise
};

// Threads that execute an instruction together: each brings its operands, the last one computes.
struct Group {
  int size = 0, arrived = 0;
  unsigned long long turn = 0;
  std::vector<void*> operands;
};

static std::vector<Fiber> fibers;
static Fiber* current;
static jmp_buf scheduler;
static Index block, grid, block_size;
static bool eager, prompt;
static Group everyone, named[16];
static std::vector<Group> warps;
static std::vector<Products> products;
static std::unordered_map<unsigned, Barrier> barriers;

// Ends the launch; `what` is for whoever asked for it.
static jmp_buf abandoned;
static const char* failure;
[[noreturn]] inline void fail(const char* what) {
  failure = what;
  _longjmp(abandoned, 1);
}

inline void wait_for(const std::function<bool()>& ready) {
  if (ready()) return;
  current->ready = &ready;
  if (!_setjmp(current->state)) _longjmp(scheduler, 1);
}

template <typename Operands, typename Complete>
void together(Group& group, int place, Operands& mine, Complete complete) {
  group.operands[place] = &mine;
  const unsigned long long turn = group.turn;
  if (++group.arrived == group.size) {
    complete(reinterpret_cast<Operands**>(group.operands.data()));
    group.arrived = 0;
    ++group.turn;
    return;
  }
  wait_for([&group, turn] { return group.turn != turn; });
}

inline int lane() { return current->thread.x % 32; }
inline Group& warp() { return warps[current->thread.x / 32]; }

static std::function<void()>* body;
inline void fiber_main() {
  (*body)();
  for (auto& group : current->stores)
    for (auto& store : group) {
      if (!store.was_read) fail("a thread left before the copy engine had read what it stores");
      store.write();
    }
  current->done = true;
  _longjmp(scheduler, 1);
}

// The first warp that can run, as far as it can, again and again: threads of earlier warps are as far ahead as the
// program lets them, or of later ones in `reverse`.
inline void run_block(const Index& size, std::vector<unsigned char*>& stacks, size_t stack_bytes, bool reverse) {
  const int count = size.x;
  fibers.clear();
  fibers.resize(count);
  auto group = [](int members) {
    Group g;
    g.size = members;
    g.operands.resize(members);
    return g;
  };
  everyone = group(count);
  warps.assign((count + 31) / 32, group(32));
  for (auto& barrier : named) barrier = Group();
  products.assign(warps.size(), Products());
  barriers.clear();
  static ucontext_t contexts, back;
  int left = count;
  auto resume = [&](int i) {
    Fiber& fiber = fibers[i];
    if (fiber.done || (fiber.ready && !(*fiber.ready)())) return false;
    fiber.ready = nullptr;
    current = &fiber;
    if (!_setjmp(scheduler)) {
      if (fiber.started) _longjmp(fiber.state, 1);
      fiber.started = true;
      fiber.thread = {i, 0, 0};
      getcontext(&contexts);
      contexts.uc_stack.ss_sp = stacks[i];
      contexts.uc_stack.ss_size = stack_bytes;
      contexts.uc_link = &back;
      makecontext(&contexts, fiber_main, 0);
      setcontext(&contexts);
    }
    if (fiber.done) {
      --left;
      --everyone.size;  // threads that have left are not waited for
      if (everyone.size && everyone.arrived == everyone.size) {
        everyone.arrived = 0;
        ++everyone.turn;
      }
    }
    return true;
  };
  auto run_warp = [&](int first) {
    const int last = min(first + 32, count) - 1;
    bool moved = false;
    for (int i = first; i <= last; ++i) moved |= resume(reverse ? last + first - i : i);
    return moved;
  };
  while (left) {
    bool moved = false;
    for (int first = 0; first < count && !moved; first += 32) {
      const int from = reverse ? (count - 1) / 32 * 32 - first : first;
      while (run_warp(from)) moved = true;
    }
    if (!moved) fail("no thread can run: a deadlock");
  }
  for (size_t i = 0; i < products.size(); ++i) {
    if (!products[i].open.empty() || !products[i].groups.empty()) fail("a warp left before its products were done");
    if (products[i].issued != products[i / 4 * 4].issued) fail("warps of a warpgroup with different products");
  }
  for (const auto& one : barriers)
    if (!one.second.copies.empty()) fail("a block left before its copies were done");
}

// Gives null, or what went wrong.
inline const char* launch(const Index& size, const Index& threads, int shared_bytes, std::function<void()> kernel,
                          int flags) {
  constexpr size_t STACK = 256 * 1024;
  static std::vector<unsigned char*> stacks;
  while (stacks.size() < static_cast<size_t>(threads.x))
    stacks.push_back(static_cast<unsigned char*>(
        mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
  eager = flags & 1;
  prompt = flags & 4;
  dynamic_end = DYNAMIC_START + shared_bytes;
  body = &kernel;
  if (_setjmp(abandoned)) return failure;
  if (dynamic_end > SHARED_BYTES) fail("more shared memory than there is");
  grid = size;
  block_size = threads;
  for (block.z = 0; block.z < size.z; ++block.z)
    for (block.y = 0; block.y < size.y; ++block.y)
      for (block.x = 0; block.x < size.x; ++block.x) {
        memset(shared, 0xA5, sizeof shared);  // what a block finds there is nobody's
        memset(async_view, 0xA5, sizeof async_view);
        run_block(threads, stacks, STACK, flags & 2);
      }
  return nullptr;
}

}  // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block)
#define gridDim (emulator::grid)
#define blockDim (emulator::block_size)

inline void __syncthreads() {
  int nothing = 0;
  emulator::together(emulator::everyone, emulator::everyone.arrived, nothing, [](int**) {});
}

inline void __syncwarp() {
  int nothing = 0;
  emulator::together(emulator::warp(), emulator::lane(), nothing, [](int**) {});
}

template <typename T>
T exchange(T value, int source) {
  struct Operands {
    T given, taken;
    int source;
  } mine = {value, value, source};
  emulator::together(emulator::warp(), emulator::lane(), mine, [](Operands** all) {
    for (int i = 0; i < 32; ++i) all[i]->taken = all[all[i]->source]->given;
  });
  return mine.taken;
}
template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return exchange(value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return exchange(value, emulator::lane() ^ mask);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int lanes) {
  return exchange(value, max(emulator::lane() - lanes, 0));
}

// Whether one of the group's threads brings true.
inline int any_of(emulator::Group& group, int place, int mine) {
  struct Operands {
    int given, taken, size;
  } operands = {mine, 0, group.size};
  emulator::together(group, place, operands, [](Operands** all) {
    int any = 0;
    for (int i = 0; i < all[0]->size; ++i) any |= all[i]->given != 0;
    for (int i = 0; i < all[0]->size; ++i) all[i]->taken = any;
  });
  return operands.taken;
}
inline int __any_sync(unsigned, int mine) { return any_of(emulator::warp(), emulator::lane(), mine); }
inline int __all_sync(unsigned, int mine) { return !__any_sync(0, !mine); }
inline int __syncthreads_or(int mine) { return any_of(emulator::everyone, emulator::everyone.arrived, mine); }

// A read that never answers from a cache; there is none here.
template <typename T>
T __ldcv(const T* pointer) {
  return *pointer;
}

inline size_t __cvta_generic_to_shared(const void* pointer) {
  return static_cast<const unsigned char*>(pointer) - emulator::shared;
}

#define __builtin_assume(condition) ((void)0)

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const unsigned long long bits = static_cast<unsigned long long>(high) << 32 | low;
  return static_cast<unsigned>(bits << (shift & 31) >> 32);
}
inline int __viaddmin_s32_relu(int a, int b, int c) { return max(min(a + b, c), 0); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned atomicOr(unsigned* address, unsigned bits) {
  const unsigned old = *address;
  *address = old | bits;
  return old;
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  const unsigned long long old = *address;
  *address = old + value;
  return old;
}
inline double __dmul_rn(double a, double b) { return a * b; }

inline float __int_as_float(int x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
inline float __uint_as_float(unsigned x) { return __int_as_float(static_cast<int>(x)); }
inline int __float_as_int(float f) {
  int x;
  memcpy(&x, &f, 4);
  return x;
}
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline int __double2int_rn(double x) { return static_cast<int>(rint(x)); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __hiloint2double(int high, int low) {
  const uint64_t bits = static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low);
  double x;
  memcpy(&x, &bits, 8);
  return x;
}
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// A product of floats is exact in a double; rounding the sum the same way twice is rounding it once.
inline float rounded_fma(float a, float b, float c, int mode) {
  fesetround(mode);
  volatile double product = static_cast<double>(a) * b;
  volatile double sum = product + c;
  volatile float result = static_cast<float>(sum);
  fesetround(FE_TONEAREST);
  return result;
}
inline float __fmaf_rd(float a, float b, float c) { return rounded_fma(a, b, c, FE_DOWNWARD); }
inline float __fmaf_ru(float a, float b, float c) { return rounded_fma(a, b, c, FE_UPWARD); }
