#include "flow.h"

#include <algorithm>

namespace emulator {

void RegisterSet::unite(const RegisterSet& other) {
  for (size_t w = 0; w < words_.size(); ++w) words_[w] |= other.words_[w];
}
void RegisterSet::intersect(const RegisterSet& other) {
  for (size_t w = 0; w < words_.size(); ++w) words_[w] &= other.words_[w];
}
void RegisterSet::subtract(const RegisterSet& other) {
  for (size_t w = 0; w < words_.size(); ++w) words_[w] &= ~other.words_[w];
}

std::vector<BasicBlock> basic_blocks(const Kernel& kernel, size_t registers) {
  const s32 size = static_cast<s32>(kernel.code.size());
  std::vector<u8> leads(static_cast<size_t>(size) + 1, 0);
  leads[0] = leads[static_cast<size_t>(size)] = 1;
  for (s32 at = 0; at < size; ++at) {
    const Instruction& i = kernel.code[static_cast<size_t>(at)];
    if (i.flow == Flow::kBranch) leads[static_cast<size_t>(i.target)] = 1;
    if (i.flow == Flow::kBranch || i.flow == Flow::kExit) leads[static_cast<size_t>(at) + 1] = 1;
  }
  std::vector<BasicBlock> blocks;
  std::vector<size_t> block_of(static_cast<size_t>(size) + 1, 0);
  const RegisterSet none(registers);
  for (s32 at = 0; at < size; ++at) {
    if (leads[static_cast<size_t>(at)]) blocks.push_back({at, at, {}, none, none, none});
    blocks.back().end = at + 1;
    block_of[static_cast<size_t>(at)] = blocks.size() - 1;
  }
  for (BasicBlock& block : blocks) {
    const Instruction& last = kernel.code[static_cast<size_t>(block.end) - 1];
    const bool stops = last.flow == Flow::kBranch || last.flow == Flow::kExit;
    // A label may be behind the last instruction: whoever gets there, is told so by the machine.
    if (last.flow == Flow::kBranch && last.target < size) {
      block.next.push_back(block_of[static_cast<size_t>(last.target)]);
    }
    if ((!stops || last.guard != kNone) && block.end < size) {
      block.next.push_back(block_of[static_cast<size_t>(block.end)]);
    }
  }
  return blocks;
}

void find_needed(const Kernel& kernel, std::vector<BasicBlock>& blocks, size_t registers) {
  std::vector<RegisterSet> reads, writes;  // of a block: what it reads first, what it writes surely
  for (const BasicBlock& block : blocks) {
    RegisterSet read(registers), written(registers);
    for (s32 at = block.begin; at < block.end; ++at) {
      const Instruction& i = kernel.code[static_cast<size_t>(at)];
      each_read(i, [&](Slot r) {
        if (!written.has(r)) read.add(r);
      });
      if (i.guard == kNone) each_write(i, [&](Slot r) { written.add(r); });
    }
    reads.push_back(std::move(read));
    writes.push_back(std::move(written));
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t b = blocks.size(); b-- > 0;) {
      BasicBlock& block = blocks[b];
      for (size_t next : block.next) block.needed_behind.unite(blocks[next].needed_before);
      RegisterSet before = block.needed_behind;
      before.subtract(writes[b]);
      before.unite(reads[b]);
      if (before == block.needed_before) continue;
      block.needed_before = std::move(before);
      changed = true;
    }
  }
}

void find_written(const Kernel& kernel, std::vector<BasicBlock>& blocks,
                  const RegisterSet& constants, size_t registers) {
  // All that nobody has yet said otherwise of; the first block knows the constants alone.
  for (BasicBlock& block : blocks) block.written_before = RegisterSet(registers, true);
  blocks[0].written_before = constants;
  for (bool changed = true; changed;) {
    changed = false;
    for (const BasicBlock& block : blocks) {
      RegisterSet behind = block.written_before;
      for (s32 at = block.begin; at < block.end; ++at) {
        const Instruction& i = kernel.code[static_cast<size_t>(at)];
        if (i.guard == kNone) each_write(i, [&](Slot r) { behind.add(r); });
      }
      for (size_t next : block.next) {
        RegisterSet both = blocks[next].written_before;
        both.intersect(behind);
        if (both == blocks[next].written_before) continue;
        blocks[next].written_before = std::move(both);
        changed = true;
      }
    }
  }
}

}  // namespace emulator
