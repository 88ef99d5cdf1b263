// What went wrong, as lines of text.
#pragma once

#include "emulator.h"

namespace emulator {

// Counts a fault; false when so many have been told that nobody needs the text of one more.
bool count_fault();
void tell_fault(std::string text);

}  // namespace emulator
