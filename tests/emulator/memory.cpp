#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <utility>

namespace emulator {

namespace {

// A stamp: who touched a cell, in which launch.
constexpr int kThreadBits = 40;
constexpr u64 kSeveralThreads = (u64{1} << kThreadBits) - 1;

constexpr u64 launch_of(u64 stamp) { return stamp >> kThreadBits; }

// Whether there is something to keep: what nobody may write has no races.
bool is_tracked(const Region& region) {
  return region.fresh || (settings().check_races && (region.anywhere & kWrite));
}

void make_ready(Region& region, const WarpAccess& access) {
  const int shift = std::countr_zero(access.bytes);
  if (shift < region.shift) region.refine(shift);
  if (!region.writes) region.writes.allocate(region.cells());
  if (!region.reads && (region.anywhere & kRead)) region.reads.allocate(region.cells());
}

}  // namespace

void Stamps::Free::operator()(u64* data) const { std::free(data); }

void Stamps::allocate(size_t count) {
  data_.reset(static_cast<u64*>(std::calloc(count, sizeof(u64))));
  if (!data_) throw std::bad_alloc();
}

// ---- regions -----------------------------------------------------------------------------------

void Region::allow(uintptr_t from, uintptr_t to, u8 access) {
  anywhere |= access;
  if (bytes.empty()) {
    if ((from == low && to == high) || (everywhere & access) == access) {
      everywhere |= access;
      return;
    }
    bytes.assign(high - low, everywhere);
  }
  for (uintptr_t a = from; a < to; ++a) bytes[a - low] |= access;
}

void Region::refine(int to_shift) {
  const int parts = 1 << (shift - to_shift);
  const auto split = [&](Stamps& stamps, const Region& before) {
    if (!stamps) return;
    Stamps smaller;
    smaller.allocate(cells());
    const size_t skipped =
        (low >> shift) - ((before.low >> before.shift) << (before.shift - shift));
    for (size_t c = 0; c < cells(); ++c) smaller[c] = stamps[(c + skipped) / parts];
    stamps = std::move(smaller);
  };
  Region before;
  before.low = low, before.shift = shift;
  shift = to_shift;
  split(writes, before);
  split(reads, before);
}

Region* GlobalMemory::find(uintptr_t address) {
  auto it = regions_.upper_bound(address);
  if (it == regions_.begin()) return nullptr;
  --it;
  return address < it->second.high ? &it->second : nullptr;
}

// The region that takes in all of [low, high), made of those that overlap with it.
Region* GlobalMemory::region_over(uintptr_t low, uintptr_t high) {
  auto first = regions_.upper_bound(low);
  if (first != regions_.begin() && std::prev(first)->second.high > low) --first;
  auto last = first;
  Region whole;
  whole.low = low, whole.high = high;
  for (; last != regions_.end() && last->second.low < high; ++last) {
    Region& part = last->second;
    if (part.contains(low, high)) return &part;
    whole.low = std::min(whole.low, part.low), whole.high = std::max(whole.high, part.high);
    whole.shift = std::min(whole.shift, part.shift);
  }
  for (auto it = first; it != last; ++it) {
    Region& part = it->second;
    if (part.shift != whole.shift) part.refine(whole.shift);
    if (whole.bytes.empty()) whole.bytes.assign(whole.high - whole.low, 0);
    for (uintptr_t a = part.low; a < part.high; ++a) whole.bytes[a - whole.low] = part.allowed(a);
    whole.anywhere |= part.anywhere;
    const auto copy = [&](Stamps& to, Stamps& from) {
      if (!from) return;
      if (!to) to.allocate(whole.cells());
      // The first and the last cell may be those of a neighbour as well.
      for (size_t c = 0; c < part.cells(); ++c) {
        u64& stamp = to[whole.cell(part.low) + c];
        stamp = std::max(stamp, from[c]);
      }
    };
    copy(whole.writes, part.writes);
    copy(whole.reads, part.reads);
  }
  regions_.erase(first, last);
  whole.fresh = is_marked(whole.low, whole.high);
  return &(regions_[whole.low] = std::move(whole));
}

void GlobalMemory::allow(uintptr_t data, s64 element_size, int dims, const s64* sizes,
                         const s64* strides, u8 access) {
  std::vector<std::pair<s64, s64>> extents;  // stride and size in bytes, innermost first
  s64 below = 0, above = 0;
  for (int d = 0; d < dims; ++d) {
    if (sizes[d] == 0) return;
    if (sizes[d] == 1 || strides[d] == 0) continue;
    const s64 stride = strides[d] * element_size;
    (stride < 0 ? below : above) += stride * (sizes[d] - 1);
    extents.emplace_back(std::abs(stride), sizes[d]);
  }
  const uintptr_t low = data + static_cast<uintptr_t>(below);
  Region& region = *region_over(low, data + static_cast<uintptr_t>(above + element_size));
  std::sort(extents.begin(), extents.end());
  s64 run = element_size;  // bytes without a gap
  size_t outer = 0;
  for (; outer < extents.size() && extents[outer].first == run; ++outer)
    run *= extents[outer].second;
  // Every run, by counting through the outer dimensions.
  std::vector<s64> at(extents.size(), 0);
  for (uintptr_t from = low;;) {
    region.allow(from, from + static_cast<uintptr_t>(run), access);
    size_t d = outer;
    for (; d < extents.size(); ++d) {
      const auto [stride, size] = extents[d];
      from += static_cast<uintptr_t>(stride);
      if (++at[d] < size) break;
      from -= static_cast<uintptr_t>(stride * size);
      at[d] = 0;
    }
    if (d == extents.size()) return;
  }
}

void GlobalMemory::mark_unwritten(uintptr_t low, uintptr_t high) {
  if (low >= high) return;
  auto it = unwritten_.upper_bound(low);
  if (it != unwritten_.begin() && std::prev(it)->second >= low) --it;
  while (it != unwritten_.end() && it->first <= high) {
    low = std::min(low, it->first), high = std::max(high, it->second);
    it = unwritten_.erase(it);
  }
  unwritten_[low] = high;
  for (auto& [from, region] : regions_) {
    if (region.low >= high || region.high <= low) continue;
    // What was written before the mark is so no longer.
    region.fresh = true;
    if (!region.writes) continue;
    const uintptr_t begin = std::max(low, region.low), end = std::min(high, region.high);
    for (size_t c = region.cell(begin); c <= region.cell(end - 1); ++c) region.writes[c] = 0;
  }
}

bool GlobalMemory::is_marked(uintptr_t low, uintptr_t high) const {
  auto it = unwritten_.lower_bound(high);  // the first that begins behind
  return it != unwritten_.begin() && std::prev(it)->second > low;
}

void GlobalMemory::forget() {
  regions_.clear();
  unwritten_.clear();
  launch_ = 0;
}

void GlobalMemory::begin_launch() { ++launch_; }

// ---- accesses ----------------------------------------------------------------------------------

Verdict GlobalMemory::check(const WarpAccess& access, Region*& region) {
  Verdict verdict;
  const u8 need = access.write ? kWrite : kRead;
  u64 low = ~u64{0}, high = 0;
  if (access.mask == kAll) {
    for (int l = 0; l < kLanes; ++l) low = std::min(low, access.addresses[l]);
    for (int l = 0; l < kLanes; ++l) high = std::max(high, access.addresses[l]);
  } else {
    each_lane(access.mask, [&](int l) {
      low = std::min(low, access.addresses[l]), high = std::max(high, access.addresses[l]);
    });
  }
  // Most often all lanes are in one tensor without gaps, the one that the instruction touched last.
  if (!region || !region->contains(low, high + access.bytes)) region = find(low);
  const bool whole = region && region->contains(low, high + access.bytes);
  if (whole && region->bytes.empty() && (region->everywhere & need)) {
    if (!track_run(*region, access)) {
      each_lane(access.mask, [&](int l) { track(*region, access, l, verdict); });
    }
    return verdict;
  }
  each_lane(access.mask, [&](int l) {
    const uintptr_t from = access.addresses[l], to = from + access.bytes;
    Region* here = whole ? region : find(from);
    if (!here || !here->contains(from, to)) {
      return verdict.add(l, access.write ? "write out of bounds" : "read out of bounds", true);
    }
    u8 common = 0xff, some = 0;
    for (uintptr_t a = from; a < to; ++a) common &= here->allowed(a), some |= here->allowed(a);
    if (common & need) {
      track(*here, access, l, verdict);
    } else if (common == 0) {
      const bool gap = some == 0;
      verdict.add(l,
                  access.write ? (gap ? "write between a tensor's elements"
                                      : "write over the edge of a tensor's element")
                               : (gap ? "read between a tensor's elements"
                                      : "read over the edge of a tensor's element"),
                  true);
    } else {
      verdict.add(l, access.write ? "write to what is read-only" : "read of what is write-only",
                  true);
    }
  });
  return verdict;
}

void GlobalMemory::track(Region& region, const WarpAccess& access, int lane, Verdict& verdict) {
  if (!is_tracked(region)) return;
  make_ready(region, access);
  const bool races = settings().check_races;
  const u64 me = launch_ << kThreadBits | (access.first_thread + static_cast<u64>(lane) + 1);
  const u64 from = access.addresses[lane];
  const size_t first = region.cell(from), last = region.cell(from + access.bytes - 1);
  const char* wrong = nullptr;
  for (size_t c = first; c <= last; ++c) {
    u64& writer = region.writes[c];
    if (races && writer != me && launch_of(writer) == launch_) {
      wrong = access.write ? "race: write to what another thread has written"
                           : "race: read of what another thread has written";
    }
    if (access.write) {
      const u64 reader = region.reads ? region.reads[c] : 0;
      if (races && reader != me && launch_of(reader) == launch_) {
        wrong = "race: write to what another thread has read";
      }
      writer = me;
      continue;
    }
    u64& reader = region.reads[c];
    if (launch_of(reader) != launch_) {
      reader = me;
    } else if (reader != me) {
      reader = launch_ << kThreadBits | kSeveralThreads;
    }
    if (region.fresh && writer == 0 && is_marked(from, from + access.bytes)) {
      wrong = "read of global memory that nobody wrote";
    }
  }
  if (wrong) verdict.add(lane, wrong, false);
}

// The same for all lanes at once, if one follows the other in memory and nothing is wrong; changes
// nothing otherwise.
bool GlobalMemory::track_run(Region& region, const WarpAccess& access) {
  if (!is_tracked(region)) return true;
  if (access.mask != kAll) return false;
  u64 apart = 0;
  for (u64 l = 0; l < kLanes; ++l) {
    apart |= access.addresses[l] ^ (access.addresses[0] + l * access.bytes);
  }
  if (apart) return false;
  make_ready(region, access);
  const int cells_log2 = std::countr_zero(access.bytes) - region.shift;
  const size_t first = region.cell(access.addresses[0]);
  const u64 count = u64{kLanes} << cells_log2;
  const u64 me = launch_ << kThreadBits | (access.first_thread + 1),
            oldest = launch_ << kThreadBits;
  u64* writes = region.writes.at(first);
  u64* reads = region.reads ? region.reads.at(first) : nullptr;
  u64 wrong = 0;
  for (u64 c = 0; c < count; ++c) {
    wrong |= (writes[c] >= oldest) & (writes[c] != me + (c >> cells_log2));
  }
  if (!access.write && region.fresh) {
    for (u64 c = 0; c < count; ++c) wrong |= writes[c] == 0;
  }
  if (reads) {
    for (u64 c = 0; c < count; ++c) {
      wrong |= (reads[c] >= oldest) & (reads[c] != me + (c >> cells_log2));
    }
  }
  if (wrong) return false;
  u64* to = access.write ? writes : reads;
  for (u64 c = 0; c < count; ++c) to[c] = me + (c >> cells_log2);
  return true;
}

std::string GlobalMemory::describe(uintptr_t address) const {
  char text[160];
  const auto say = [&](const char* where, uintptr_t distance, const Region& region) {
    std::snprintf(text, sizeof text, "%zu bytes %s the %s of %zu bytes at 0x%zx", size_t{distance},
                  where, *where == 'i' ? "region" : "end", size_t{region.high - region.low},
                  size_t{region.low});
    return std::string(text);
  };
  const auto after = regions_.upper_bound(address);
  if (after == regions_.begin()) return "before all memory that kernels may touch";
  const Region& region = std::prev(after)->second;
  if (address < region.high) return say("into", address - region.low, region);
  return say("behind", address - region.high, region);
}

GlobalMemory& global_memory() {
  static GlobalMemory memory;
  return memory;
}

void allow(const void* data, int64_t element_size, int dims, const int64_t* sizes,
           const int64_t* strides, uint8_t access) {
  global_memory().allow(reinterpret_cast<uintptr_t>(data), element_size, dims, sizes, strides,
                        access);
}
void mark_unwritten(const void* data, size_t bytes) {
  const uintptr_t low = reinterpret_cast<uintptr_t>(data);
  global_memory().mark_unwritten(low, low + bytes);
}
void forget_memory() { global_memory().forget(); }

}  // namespace emulator
