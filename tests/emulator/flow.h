// How control flows through a kernel, and what is known of its registers along the way.
#pragma once

#include <functional>
#include <vector>

#include "ptx.h"

namespace emulator {

// A set of registers, by number.
class RegisterSet {
 public:
  explicit RegisterSet(size_t size, bool full = false)
      : words_((size + 63) / 64, full ? ~u64{0} : 0) {}

  void add(Slot r) { words_[r / 64] |= u64{1} << r % 64; }
  void remove(Slot r) { words_[r / 64] &= ~(u64{1} << r % 64); }
  bool has(Slot r) const { return words_[r / 64] >> r % 64 & 1; }
  void unite(const RegisterSet& other);
  void intersect(const RegisterSet& other);
  void subtract(const RegisterSet& other);
  bool operator==(const RegisterSet&) const = default;

  template <class F>
  void each(F&& f) const {
    for (size_t w = 0; w < words_.size(); ++w) {
      for (u64 bits = words_[w]; bits; bits &= bits - 1) {
        f(static_cast<Slot>(64 * w) + static_cast<Slot>(std::countr_zero(bits)));
      }
    }
  }

 private:
  std::vector<u64> words_;
};

template <class F>
void each_read(const Instruction& i, F&& f) {
  if (i.guard != kNone) f(i.guard);
  for (int n = 0; n < i.ins; ++n) f(i.in[n]);
}
template <class F>
void each_write(const Instruction& i, F&& f) {
  for (int n = 0; n < i.outs; ++n) f(i.out[n]);
}

// Instructions that always run one after the other.
struct BasicBlock {
  s32 begin, end;
  std::vector<size_t> next;
  RegisterSet needed_before, needed_behind;  // that a later instruction may read
  RegisterSet written_before;                // on every way here
};

std::vector<BasicBlock> basic_blocks(const Kernel& kernel, size_t registers);
void find_needed(const Kernel& kernel, std::vector<BasicBlock>& blocks, size_t registers);
// `constants`: written before the kernel starts.
void find_written(const Kernel& kernel, std::vector<BasicBlock>& blocks,
                  const RegisterSet& constants, size_t registers);

// Which instructions are to be watched; `new_shadow` gives a register's shadow a slot.
void find_watches(Kernel& kernel, const std::vector<RegisterInfo>& registers,
                  std::vector<BasicBlock>& blocks, const std::function<Slot()>& new_shadow);

}  // namespace emulator
