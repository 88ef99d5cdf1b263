// What the ops of the family `runge_kutta` agree on. Plain data, for every side.
#pragma once

namespace fastscore {

constexpr int kMostSlopes = 7;  // of the embedded pair of Dormand and Prince

}  // namespace fastscore
