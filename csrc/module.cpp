// The Python module fastscore._C: build information, CPU capability, test hooks. Importing it loads
// the library and so registers the ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <latch>
#include <numeric>
#include <thread>
#include <vector>

#include "cpu/capability.h"
#include "cpu/kernels.h"

#ifndef FASTSCORE_CUDA_ARCHS
#define FASTSCORE_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace {

using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

// (log, cos, sin, normals) of word pairs, through the kernels of the instruction set in use.
py::tuple box_muller_words(const Words& words) {
  if (words.ndim() != 2 || words.shape(1) != 2) {
    throw py::value_error("box_muller_words: words must be of shape (n, 2)");
  }
  const py::ssize_t n = words.shape(0);
  py::array_t<float> log(n), cosine(n), sine(n), normals({n, py::ssize_t{2}});
  using namespace fastscore;
  FASTSCORE_BEST(box_muller_words)
  (words.data(), n, log.mutable_data(), cosine.mutable_data(), sine.mutable_data(),
   normals.mutable_data());
  return py::make_tuple(log, cosine, sine, normals);
}

// The four words of one Philox4x32-10 block.
py::array_t<uint32_t> philox4x32(const Words& counter, const Words& key) {
  if (counter.ndim() != 1 || counter.shape(0) != 4 || key.ndim() != 1 || key.shape(0) != 2) {
    throw py::value_error("philox4x32: counter must be of shape (4,) and key of shape (2,)");
  }
  py::array_t<uint32_t> out(4);
  using namespace fastscore;
  FASTSCORE_BEST(philox_words)
  (counter.data(), key.data(), out.mutable_data());
  return out;
}

// Fused multiply-adds of float32 in a second by so many threads at once: what bounds arithmetic.
double multiply_add_rate(int threads) {
  constexpr int64_t kRounds = int64_t{1} << 18;
  using namespace fastscore;
  std::vector<double> rates(threads);
  std::vector<std::thread> workers;
  std::latch all(threads);
  for (double& rate : rates) {
    workers.emplace_back([&rate, &all] {
      float sum;
      all.arrive_and_wait();
      const auto start = std::chrono::steady_clock::now();
      const int64_t count = FASTSCORE_BEST(multiply_adds)(kRounds, &sum);
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
      rate = static_cast<double>(count) / passed.count();
    });
  }
  for (std::thread& worker : workers) worker.join();
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of fastscore: registers torch.ops.fastscore.*";
  fastscore::capability();  // A wrong FASTSCORE_CPU_CAPABILITY is an import error, not a surprise.
  m.def("cpu_capability", [] { return fastscore::capability_name(fastscore::capability()); });
  m.def("cpu_capabilities", &fastscore::available_capabilities);
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"));
  m.def("box_muller_words", &box_muller_words, py::arg("words"));
  m.def("multiply_add_rate", &multiply_add_rate, py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());
  m.attr("cuda_archs") = FASTSCORE_CUDA_ARCHS;
  m.attr("compiler") = __VERSION__;
  m.attr("torch_version") = FASTSCORE_TORCH_VERSION;
}
