// What the kernels of the family `dual` work on, on every device. Plain data.
#pragma once

#include "activations.h"
#include "view.h"

namespace fastscore {

enum class DualPass { kForward, kBackward, kSlope, kSlopeBackward };

// A view that a pass does not use has no data.
struct DualArgs {
  Activation activation;
  double a, b;  // its parameters
  View h, hdot;
  View grad_value, grad_out;  // backward: upstream
  View value, out;            // forward: results; backward: gradients of h and hdot
  int64_t first_tangent;      // index in hdot, grad_out and out of the first tangent's elements
  int64_t tangents, numel;    // numel: of h
  // The slope's passes have no hdot: out is the slope, and grad_out its upstream gradient.
};

}  // namespace fastscore
