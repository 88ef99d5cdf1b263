// Stands in for the functions of libtorch that need a GPU, that hand out memory, or that make
// tensors. All others that an op may call are PyTorch's own (see build.py for the list).
#include <dlfcn.h>
#include <string.h>

#include <memory>
#include <stdexcept>

#include "runtime.h"

using namespace emulator;
using namespace emulator::host;

struct AtenTensorOpaque;
using Tensor = AtenTensorOpaque*;
using StableIValue = uint64_t;

extern "C" {
// PyTorch's own.
int aoti_torch_get_sizes(Tensor, int64_t**);
int aoti_torch_get_strides(Tensor, int64_t**);
int aoti_torch_get_dim(Tensor, int64_t*);
int aoti_torch_get_numel(Tensor, int64_t*);
int aoti_torch_get_dtype(Tensor, int32_t*);
int aoti_torch_get_device_type(Tensor, int32_t*);
int32_t aoti_torch_device_type_cpu();
}

namespace {

// PyTorch's function of the same name as the one here.
template <class F>
F* pytorchs(F*, const char* name) {
  static void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  void* found = library ? dlsym(library, name) : nullptr;
  if (found == nullptr) throw std::runtime_error(std::string("libtorch_cpu has no ") + name);
  return reinterpret_cast<F*>(found);
}
#define PYTORCHS(f) static const auto f##_ = pytorchs(&f, #f)

void check(int error, const char* what) {
  if (error != kSuccess) throw std::runtime_error(std::string("emulator: ") + what + " failed");
}

int64_t element_size(int32_t dtype) {  // by c10::ScalarType
  constexpr int kSizes[] = {1, 1, 2, 4, 8, 2, 4, 8, 4, 8, 16, 1, 1, 1, 4, 2};
  if (dtype < 0 || dtype > 15) throw std::runtime_error("emulator: a dtype that it doesn't know");
  return kSizes[dtype];
}

struct Elements {
  int64_t *sizes, *strides, dims, count, bytes_each;
};

Elements elements_of(Tensor x) {
  Elements e;
  int32_t dtype;
  check(aoti_torch_get_sizes(x, &e.sizes), "get_sizes");
  check(aoti_torch_get_strides(x, &e.strides), "get_strides");
  check(aoti_torch_get_dim(x, &e.dims), "get_dim");
  check(aoti_torch_get_numel(x, &e.count), "get_numel");
  check(aoti_torch_get_dtype(x, &dtype), "get_dtype");
  e.bytes_each = element_size(dtype);
  return e;
}

void hand_out(Tensor x, const void* data, uint8_t access) {
  if (data == nullptr) return;
  int32_t type;
  check(aoti_torch_get_device_type(x, &type), "get_device_type");
  if (type != aoti_torch_device_type_cpu()) {
    throw std::runtime_error("emulator: a tensor that is not the CPU's");
  }
  const Elements e = elements_of(x);
  allow(data, e.bytes_each, static_cast<int>(e.dims), e.sizes, e.strides, access);
}

uint8_t access_to(const void* data) { return may_write(data) ? kRead | kWrite : kRead; }

struct Guard {
  int before;
};

}  // namespace

extern "C" {

int aoti_torch_get_data_ptr(Tensor, void**);
int aoti_torch_get_device_index(Tensor, int32_t*);
int aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                             Tensor*);
int torch_call_dispatcher(const char*, const char*, StableIValue*, uint64_t);
int torch_get_mutable_data_ptr(Tensor, void**);
int torch_get_const_data_ptr(Tensor, const void**);

}  // extern "C"

namespace {

// A new tensor with nothing in it: full of NaN, so that an element that no kernel writes shows, and
// marked, so that a kernel that reads it first is found out.
void make_fresh(Tensor x) {
  PYTORCHS(aoti_torch_get_data_ptr);
  void* data = nullptr;
  check(aoti_torch_get_data_ptr_(x, &data), "get_data_ptr");
  const Elements e = elements_of(x);
  if (e.count == 0) return;
  int64_t last = 0;
  for (int64_t d = 0; d < e.dims; ++d) last += (e.sizes[d] - 1) * e.strides[d];
  const size_t bytes = static_cast<size_t>((last + 1) * e.bytes_each);
  memset(data, 0xFF, bytes);
  own(data);
  hand_out(x, data, kRead | kWrite);
  mark_unwritten(data, bytes);
}

}  // namespace

extern "C" {

// ---- devices -------------------------------------------------------------------------------

int aoti_torch_get_device_index(Tensor, int32_t* index) {
  *index = devices().device;
  return kSuccess;
}

int aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  if (device < 0 || device >= Devices::kCount) return kInvalidDevice;
  *stream = devices().streams[device];
  return kSuccess;
}

int aoti_torch_create_device_guard(int32_t device, void** guard) {
  if (device < 0 || device >= Devices::kCount) return kInvalidDevice;
  *guard = new Guard{devices().current};
  devices().current = device;
  return kSuccess;
}

int aoti_torch_delete_device_guard(void* guard) {
  const std::unique_ptr<Guard> old(static_cast<Guard*>(guard));
  devices().current = old->before;
  return kSuccess;
}

int torch_c10_cuda_check_msg(int32_t error, const char* file, const char* function, uint32_t line,
                             bool, char** message) {
  *message = nullptr;
  if (error == kSuccess) return kSuccess;
  const std::string text = std::string("CUDA error: ") + words_of(error) + " (emulated, " +
                           function + " in " + file + ":" + std::to_string(line) + ")";
  *message = strdup(text.c_str());
  return kSuccess;
}

void torch_c10_cuda_free_error_msg(char* message) { free(message); }

// ---- memory --------------------------------------------------------------------------------

int aoti_torch_get_data_ptr(Tensor x, void** data) {
  PYTORCHS(aoti_torch_get_data_ptr);
  const int error = aoti_torch_get_data_ptr_(x, data);
  if (error == kSuccess) hand_out(x, *data, access_to(*data));
  return error;
}

int torch_get_mutable_data_ptr(Tensor x, void** data) {
  PYTORCHS(torch_get_mutable_data_ptr);
  const int error = torch_get_mutable_data_ptr_(x, data);
  if (error == kSuccess) hand_out(x, *data, access_to(*data));
  return error;
}

int torch_get_const_data_ptr(Tensor x, const void** data) {
  PYTORCHS(torch_get_const_data_ptr);
  const int error = torch_get_const_data_ptr_(x, data);
  if (error == kSuccess) hand_out(x, *data, kRead);
  return error;
}

// ---- new tensors ---------------------------------------------------------------------------

int aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides,
                             int32_t dtype, int32_t device_type, int32_t, Tensor* out) {
  PYTORCHS(aoti_torch_empty_strided);
  constexpr int32_t kTheOnlyCpu = -1;
  const int error =
      aoti_torch_empty_strided_(dims, sizes, strides, dtype, device_type, kTheOnlyCpu, out);
  if (error == kSuccess) make_fresh(*out);
  return error;
}

// The ops of PyTorch that host code may call. Of others it isn't known what they do to memory.
int torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack,
                          uint64_t version) {
  const std::string name = op;
  const bool empty = name == "aten::empty_like", copy = name == "aten::clone";
  if (!empty && !copy && name != "aten::contiguous") {
    report_fault("host code calls " + name + ", which the emulator doesn't know");
    return kInvalidValue;
  }
  PYTORCHS(torch_call_dispatcher);
  const int error = torch_call_dispatcher_(op, overload, stack, version);
  if (error != kSuccess) return error;
  Tensor out;
  memcpy(&out, stack, sizeof out);
  if (empty) make_fresh(out);
  if (copy) {
    PYTORCHS(aoti_torch_get_data_ptr);
    void* data = nullptr;
    check(aoti_torch_get_data_ptr_(out, &data), "get_data_ptr");
    own(data);
  }
  return kSuccess;
}

}  // extern "C"
