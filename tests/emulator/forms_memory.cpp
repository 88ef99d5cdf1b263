// Loads and stores.
#include <cstring>

#include "forms.h"

namespace emulator {

namespace {

// Lanes that may go on, of those whose address suits the size of the access.
u32 aligned(const Warp& warp, const Instruction& i, const u64* addresses, u32 bytes, u32 mask) {
  u64 low_bits = 0;
  if (mask == kAll) {
    for (int l = 0; l < kLanes; ++l) low_bits |= addresses[l];
  } else {
    each_lane(mask, [&](int l) { low_bits |= addresses[l]; });
  }
  if (low_bits % bytes == 0) return mask;
  each_lane(mask, [&](int l) {
    if (addresses[l] % bytes == 0) return;
    fault_at(warp, i, l, "misaligned address of " + std::to_string(bytes) + " bytes", addresses[l]);
    mask &= ~(u32{1} << l);
  });
  return mask;
}

u32 check_global(const Warp& warp, const Instruction& i, const u64* addresses, u32 bytes, u32 mask,
                 bool write) {
  if (!settings().check_memory) return mask;
  Launch& launch = *warp.launch;
  const u64 first_thread = u64{launch.block} * launch.threads + warp.thread(0);
  const Verdict verdict = global_memory().check({addresses, mask, bytes, write, first_thread},
                                                launch.regions[i.access]);
  each_lane(verdict.faulty, [&](int l) {
    fault_at(warp, i, l, verdict.what[l], addresses[l], global_memory().describe(addresses[l]));
  });
  return mask & ~verdict.blocked;
}

u32 check_shared(const Warp& warp, const Instruction& i, const u64* addresses, u32 bytes, u32 mask,
                 bool write) {
  SharedMemory& shared = warp.launch->shared;
  each_lane(mask, [&](int l) {
    if (!shared.contains(addresses[l], bytes)) {
      fault_at(warp, i, l, write ? "write out of shared memory" : "read out of shared memory",
               addresses[l], "of " + std::to_string(shared.size()) + " bytes");
      mask &= ~(u32{1} << l);
      return;
    }
    const Toucher who{warp.thread(l), warp.index, warp.barriers};
    const char* wrong = shared.touch(addresses[l], bytes, write, who);
    if (wrong) fault_at(warp, i, l, wrong, addresses[l], "shared");
  });
  return mask;
}

u32 check_parameters(const Warp& warp, const Instruction& i, const u64* addresses, u32 bytes,
                     u32 mask) {
  const u64 size = warp.launch->parameters.size();
  each_lane(mask, [&](int l) {
    if (addresses[l] <= size && bytes <= size - addresses[l]) return;
    fault_at(warp, i, l, "read out of the parameters", addresses[l],
             "of " + std::to_string(size) + " bytes");
    mask &= ~(u32{1} << l);
  });
  return mask;
}

template <Space S>
u8* memory_at(const Warp& warp, u64 address) {
  if constexpr (S == Space::kGlobal) return reinterpret_cast<u8*>(address);
  if constexpr (S == Space::kShared) return warp.launch->shared.at(address);
  if constexpr (S == Space::kParameter) return warp.launch->parameters.data() + address;
}

// Every lane's address, and the lanes that may touch it.
template <Space S>
u32 locate(const Warp& warp, const Instruction& i, u32 bytes, u32 mask, bool write,
           u64 (&addresses)[kLanes]) {
  const u64 offset = static_cast<u64>(i.immediate);
  if (i.address_bytes == 8) {
    const Source<u64> base(warp.registers, i.in[0]);
    for (int l = 0; l < kLanes; ++l) addresses[l] = base[l] + offset;
  } else if (i.address_bytes == 4) {
    const Source<u32> base(warp.registers, i.in[0]);
    for (int l = 0; l < kLanes; ++l) addresses[l] = static_cast<u32>(base[l] + offset);
  } else {
    for (u64& address : addresses) address = offset;
  }
  mask = aligned(warp, i, addresses, bytes, mask);
  if (mask == 0) return mask;
  if constexpr (S == Space::kGlobal) {
    return check_global(warp, i, addresses, bytes, mask, write);
  } else if constexpr (S == Space::kShared) {
    return check_shared(warp, i, addresses, bytes, mask, write);
  } else {
    return check_parameters(warp, i, addresses, bytes, mask);
  }
}

// T: in memory; R: in the register, to which T is extended by its sign or zeros.
template <Space S, class T, class R>
void load(Warp& warp, const Instruction& i, u32 mask) {
  u64 addresses[kLanes];
  const u32 good = locate<S>(warp, i, sizeof(T) * i.count, mask, false, addresses);
  for (int n = 0; n < i.count; ++n) {
    R* to = warp.registers.lanes<R>(i.out[n]);
    const auto load_lane = [&](int l) {
      T value;
      std::memcpy(&value, memory_at<S>(warp, addresses[l]) + n * sizeof(T), sizeof value);
      to[l] = static_cast<R>(value);
    };
    if (good == kAll) {
      for (int l = 0; l < kLanes; ++l) load_lane(l);
    } else {
      each_lane(good, load_lane);
      each_lane(mask & ~good, [&](int l) { to[l] = 0; });
    }
  }
}

template <Space S, class T, class R>
void store(Warp& warp, const Instruction& i, u32 mask) {
  u64 addresses[kLanes];
  const u32 good = locate<S>(warp, i, sizeof(T) * i.count, mask, true, addresses);
  const int first = i.address_bytes ? 1 : 0;  // operand 0 is the address' register, if there is one
  for (int n = 0; n < i.count; ++n) {
    const Source<R> from(warp.registers, i.in[first + n]);
    const auto store_lane = [&](int l) {
      const T value = static_cast<T>(from[l]);
      std::memcpy(memory_at<S>(warp, addresses[l]) + n * sizeof(T), &value, sizeof value);
    };
    if (good == kAll) {
      for (int l = 0; l < kLanes; ++l) store_lane(l);
    } else {
      each_lane(good, store_lane);
    }
  }
}

template <bool kLoad, Space S, class T>
Handler handler_of(int register_bytes) {
  const auto with = [](auto r) -> Handler {
    using R = decltype(r);
    if constexpr (sizeof(R) < sizeof(T))
      return nullptr;
    else if constexpr (kLoad)
      return load<S, T, R>;
    else
      return store<S, T, R>;
  };
  switch (register_bytes) {
    case 2:
      return with(u16{});
    case 4:
      return with(u32{});
    case 8:
      return with(u64{});
    default:
      return nullptr;
  }
}

template <bool kLoad, Space S>
Handler handler_of(Element element, int register_bytes) {
  switch (element.bytes) {
    case 1:
      return element.is_signed ? handler_of<kLoad, S, s8>(register_bytes)
                               : handler_of<kLoad, S, u8>(register_bytes);
    case 2:
      return element.is_signed ? handler_of<kLoad, S, s16>(register_bytes)
                               : handler_of<kLoad, S, u16>(register_bytes);
    case 4:
      return element.is_signed ? handler_of<kLoad, S, s32>(register_bytes)
                               : handler_of<kLoad, S, u32>(register_bytes);
    case 8:
      return handler_of<kLoad, S, u64>(register_bytes);
    default:
      return nullptr;
  }
}

}  // namespace

Handler load_handler(Space space, Element element, int register_bytes) {
  switch (space) {
    case Space::kGlobal:
      return handler_of<true, Space::kGlobal>(element, register_bytes);
    case Space::kShared:
      return handler_of<true, Space::kShared>(element, register_bytes);
    case Space::kParameter:
      return handler_of<true, Space::kParameter>(element, register_bytes);
  }
  return nullptr;
}

Handler store_handler(Space space, Element element, int register_bytes) {
  switch (space) {
    case Space::kGlobal:
      return handler_of<false, Space::kGlobal>(element, register_bytes);
    case Space::kShared:
      return handler_of<false, Space::kShared>(element, register_bytes);
    case Space::kParameter:  // read-only
      return nullptr;
  }
  return nullptr;
}

}  // namespace emulator
