// A launch: its parameters, the order of its blocks and warps, the barriers of a block.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <stdexcept>

#include "faults.h"
#include "machine.h"

namespace emulator {

namespace {

constexpr u32 kMostThreads = 1024, kMostBlocks = 0x7fffffff;

// Memory for the registers of all warps, kept from launch to launch.
u8* register_memory(size_t bytes) {
  static std::vector<u8> memory;
  if (memory.size() < bytes + kSlotAlignment) memory.resize(bytes + kSlotAlignment);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (-address & (kSlotAlignment - 1));
}

void fill(const Registers& registers, Slot slot, int width, u64 value) {
  switch (width) {
    case 0:
      registers.predicate(slot) = value ? kAll : 0;
      break;
    case 2:
      std::fill_n(registers.lanes<u16>(slot), kLanes, static_cast<u16>(value));
      break;
    case 4:
      std::fill_n(registers.lanes<u32>(slot), kLanes, static_cast<u32>(value));
      break;
    default:
      std::fill_n(registers.lanes<u64>(slot), kLanes, value);
  }
}

class Runner {
 public:
  Runner(Launch& launch, std::mt19937_64& random)
      : launch_(launch), kernel_(launch.kernel), random_(random) {
    const u32 count = (launch.threads + kLanes - 1) / kLanes;
    // Warps that never wait for each other run one after the other with the same registers.
    const u32 files = kernel_.has_barrier ? count : 1;
    u8* base = register_memory(size_t{files} * kernel_.register_bytes);
    warps_.resize(count);
    for (u32 n = 0; n < count; ++n) {
      warps_[n].launch = &launch;
      warps_[n].index = n;
      warps_[n].registers = Registers(base + size_t{n % files} * kernel_.register_bytes);
      order_.push_back(n);
    }
    for (u32 n = 0; n < files; ++n) set_constants(warps_[n].registers);
    if (settings().order == Order::kBackwards) std::reverse(order_.begin(), order_.end());
  }

  void run_block() {
    launch_.shared.begin_block();
    for (Warp& warp : warps_) begin(warp);
    do {
      if (settings().order == Order::kShuffled) std::shuffle(order_.begin(), order_.end(), random_);
      for (u32 n : order_) {
        if (!warps_[n].alive) continue;
        if (!kernel_.has_barrier) set_identity(warps_[n]);
        run_warp(warps_[n]);
      }
    } while (pass_barrier());
  }

  void add_counts() const {
    for (const Warp& warp : warps_) {
      counts().warp_instructions += warp.warp_instructions;
      counts().thread_instructions += warp.thread_instructions;
    }
  }

 private:
  void set_constants(const Registers& registers) {
    std::memset(registers.lanes<u8>(0), 0xa5, kernel_.register_bytes);  // what nobody wrote
    for (const Constant& c : kernel_.constants) fill(registers, c.slot, c.width, c.value);
    for (const SpecialRegister& special : kernel_.specials) {
      u32* lanes = registers.lanes<u32>(special.slot);
      for (u32 l = 0; l < kLanes; ++l) {
        if (special.what == Special::kNtid) lanes[l] = launch_.threads;
        if (special.what == Special::kNctaid) lanes[l] = launch_.blocks;
        if (special.what == Special::kLaneid) lanes[l] = l;
      }
    }
  }

  // Who the threads of a warp are, and that they have written nothing yet.
  void set_identity(const Warp& warp) {
    for (const SpecialRegister& special : kernel_.specials) {
      u32* lanes = warp.registers.lanes<u32>(special.slot);
      if (special.what == Special::kCtaid) std::fill_n(lanes, kLanes, launch_.block);
      if (special.what == Special::kTid) {
        for (u32 l = 0; l < kLanes; ++l) lanes[l] = warp.index * kLanes + l;
      }
    }
    if (kernel_.watched_from < kernel_.register_bytes) {
      std::memset(warp.registers.lanes<u8>(kernel_.watched_from), 0xff,
                  kernel_.register_bytes - kernel_.watched_from);
    }
  }

  void begin(Warp& warp) {
    const u32 left = launch_.threads - warp.index * kLanes;
    warp.alive = left >= kLanes ? kAll : (u32{1} << left) - 1;
    warp.now = {0, warp.alive};
    warp.elsewhere.clear();
    warp.any = false;
    if (kernel_.has_barrier) set_identity(warp);
  }

  // Lets all warps that wait go on; false when all have ended.
  bool pass_barrier() {
    const Warp* first = nullptr;
    bool any = false;
    for (const Warp& warp : warps_) {
      if (!warp.alive) continue;
      if (!first) first = &warp;
      if (warp.now.at != first->now.at) tell(warp, "the warps wait at different barriers");
      any |= warp.any;
    }
    if (!first) return false;
    for (const Warp& warp : warps_) {
      if (!warp.alive) tell(*first, "warp " + std::to_string(warp.index) + " never gets here");
    }
    launch_.shared.pass_barrier();
    for (Warp& warp : warps_) {
      if (!warp.alive) continue;
      const Instruction& i = kernel_.code[static_cast<size_t>(warp.now.at)];
      if (i.flow == Flow::kBarrierOr) {
        warp.registers.set_predicate(i.out[0], warp.now.mask, any ? kAll : 0);
      }
      warp.any = false;
      ++warp.now.at;
    }
    return true;
  }

  void tell(const Warp& warp, const std::string& what) {
    fault(warp, kernel_.code[static_cast<size_t>(warp.now.at)], std::countr_zero(warp.now.mask),
          "barrier of the block: " + what);
  }

  Launch& launch_;
  const Kernel& kernel_;
  std::mt19937_64& random_;
  std::vector<Warp> warps_;
  std::vector<u32> order_;
};

std::vector<u8> parameters_of(const Kernel& kernel, void** args) {
  std::vector<u8> bytes(kernel.parameter_bytes);
  for (size_t n = 0; n < kernel.parameters.size(); ++n) {
    const Parameter& parameter = kernel.parameters[n];
    std::memcpy(bytes.data() + parameter.offset, args[n], parameter.bytes);
  }
  return bytes;
}

}  // namespace

void launch(Kernel* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, void** args) {
  const auto start = std::chrono::steady_clock::now();
  prepare(kernel);
  if (grid.y != 1 || grid.z != 1 || block.y != 1 || block.z != 1) {
    throw std::runtime_error(kernel->readable_name + ": a launch of more than one dimension");
  }
  if (shared_bytes != 0)
    throw std::runtime_error(kernel->readable_name + ": dynamic shared memory");
  const u32 most = kernel->most_threads ? kernel->most_threads : kMostThreads;
  if (grid.x == 0 || grid.x > kMostBlocks || block.x == 0 || block.x > most) {
    return report_fault("bad launch of " + kernel->readable_name + ": " + std::to_string(grid.x) +
                        " blocks of " + std::to_string(block.x) + " threads");
  }
  ++kernel->launches;
  ++counts().launches;
  global_memory().begin_launch();
  Launch launch{*kernel,
                grid.x,
                block.x,
                kernel->reached.data(),
                parameters_of(*kernel, args),
                std::vector<Region*>(kernel->accesses),
                SharedMemory(kernel->shared_bytes, kernel->shared_cell)};
  std::mt19937_64 random(settings().seed);
  std::vector<u32> order;
  if (settings().order == Order::kShuffled) {
    order.resize(grid.x);
    for (u32 n = 0; n < grid.x; ++n) order[n] = n;
    std::shuffle(order.begin(), order.end(), random);
  }
  Runner runner(launch, random);
  for (u32 n = 0; n < grid.x; ++n) {
    switch (settings().order) {
      case Order::kForwards:
        launch.block = n;
        break;
      case Order::kBackwards:
        launch.block = grid.x - 1 - n;
        break;
      case Order::kShuffled:
        launch.block = order[n];
    }
    runner.run_block();
  }
  runner.add_counts();
  counts().seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace emulator
