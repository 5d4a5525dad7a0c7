// A pretended accelerator (PrivateUse1): CPU memory and CPU kernels behind a device of its own. See device.py.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_set>

using namespace at;

namespace {
constexpr DeviceType TYPE = DeviceType::PrivateUse1;
const Device DEVICE(TYPE, 0);

// One device with one stream, on which everything has happened when it is asked for.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = TYPE;
  Guard() {}
  explicit Guard(DeviceType) {}
  DeviceType type() const override { return TYPE; }
  Device exchangeDevice(Device) const override { return DEVICE; }
  Device getDevice() const override { return DEVICE; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream stream() const noexcept { return Stream(Stream::DEFAULT, DEVICE); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getDefaultStream(Device) const override { return stream(); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream s) const noexcept override { return s; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Memory: each piece has its size before it.
constexpr size_t HEAD = 64;
std::atomic<size_t> held{0}, most{0};

void give_back(void* p) {
  if (!p) return;
  char* base = static_cast<char*>(p) - HEAD;
  held -= *reinterpret_cast<size_t*>(base);
  free(base);
}

struct Memory final : Allocator {
  DataPtr allocate(size_t n) override {
    if (!n) return {nullptr, nullptr, &give_back, DEVICE};
    char* base = static_cast<char*>(aligned_alloc(64, HEAD + (n + 63) / 64 * 64));
    TORCH_CHECK(base, "CUDA out of memory (pretended)");
    *reinterpret_cast<size_t*>(base) = n;
    size_t now = held += n;
    if (now > most) most = now;
    return {base + HEAD, base + HEAD, &give_back, DEVICE};
  }
  DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t n) const override { memcpy(to, from, n); }
};
Memory memory;
REGISTER_ALLOCATOR(TYPE, &memory);

// The CPU's pinned memory: ordinary, but known by its address.
std::mutex pins_lock;
std::map<uintptr_t, size_t> pins;

void unpin(void* p) {
  if (!p) return;
  {
    std::lock_guard<std::mutex> lock(pins_lock);
    pins.erase(reinterpret_cast<uintptr_t>(p));
  }
  free(p);
}
bool is_pinned(const void* p) {
  auto at = reinterpret_cast<uintptr_t>(p);
  std::lock_guard<std::mutex> lock(pins_lock);
  auto next = pins.upper_bound(at);
  return next != pins.begin() && at < std::prev(next)->first + std::prev(next)->second;
}
struct Pinned final : Allocator {
  DataPtr allocate(size_t n) override {
    void* p = n ? aligned_alloc(64, (n + 63) / 64 * 64) : nullptr;
    if (p) {
      std::lock_guard<std::mutex> lock(pins_lock);
      pins[reinterpret_cast<uintptr_t>(p)] = n;
    }
    return {p, p, &unpin, Device(DeviceType::CPU)};
  }
  DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t n) const override { memcpy(to, from, n); }
};
Pinned pinned;

// Where a GPU's host would wait for it: what is asked for leaves the device, or comes from memory that it cannot read
// by itself. Inside of the CPU's kernels nothing counts.
using Told = void (*)(const char*);
std::atomic<Told> told{nullptr};
thread_local int inside = 0;
struct Inside {
  Inside() { ++inside; }
  ~Inside() { --inside; }
};
void wait(const char* why) {
  auto f = told.load();
  if (f && !inside) f(why);
}

struct Hooks : PrivateUse1HooksInterface {
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  void resizePrivateUse1Bytes(const Storage& s, size_t n) const override {
    auto larger = memory.allocate(n);
    memcpy(larger.mutable_get(), s.data(), std::min(static_cast<size_t>(s.nbytes()), n));
    s.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(larger));
    s.unsafeGetStorageImpl()->set_nbytes(n);
  }
};
Hooks hooks;
struct Registered {
  Registered() { RegisterPrivateUse1HooksInterface(&hooks); }
} registered;

// Tensors
using MaybeType = std::optional<ScalarType>;
using MaybeLayout = std::optional<Layout>;
using MaybeDevice = std::optional<Device>;
using MaybeBool = std::optional<bool>;
using MaybeFormat = std::optional<MemoryFormat>;
using MaybeTensor = std::optional<Tensor>;

Tensor empty(IntArrayRef size, MaybeType dt, MaybeLayout, MaybeDevice, MaybeBool, MaybeFormat mf) {
  return at::detail::empty_generic(size, &memory, DispatchKeySet(DispatchKey::PrivateUse1), dtype_or_default(dt), mf);
}
Tensor empty_strided(IntArrayRef size, IntArrayRef stride, MaybeType dt, MaybeLayout, MaybeDevice, MaybeBool) {
  return at::detail::empty_strided_generic(
      size, stride, &memory, DispatchKeySet(DispatchKey::PrivateUse1), dtype_or_default(dt));
}
// The same memory as a CPU tensor.
Tensor as_cpu(const Tensor& t) {
  if (t.is_cpu()) return t;
  auto storage = t.storage();
  auto count = static_cast<int64_t>(storage.nbytes() / t.element_size());
  auto options = TensorOptions().dtype(t.scalar_type());
  auto flat = at::from_blob(const_cast<void*>(storage.data()), {count}, options);
  return flat.as_strided(t.sizes(), t.strides(), t.storage_offset());
}
Tensor to_device(const Tensor& c) {
  auto out = at::empty(c.sizes(), c.options().device(DEVICE));
  if (c.numel()) as_cpu(out).copy_(c);
  return out;
}
void wait_for_copy(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (from.device() == to.device() || !from.numel()) return;
  const Tensor& host = from.is_cpu() ? from : to;
  // Between types or layouts a copy is made first, in ordinary memory.
  bool as_it_is = from.scalar_type() == to.scalar_type() && from.is_contiguous() && from.sizes() == to.sizes();
  if (non_blocking && as_it_is && is_pinned(host.const_data_ptr())) return;
  wait(from.is_cpu() ? "copied from the CPU" : "copied to the CPU");
}
Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  wait_for_copy(from, to, non_blocking);
  if (from.numel()) {
    auto a = as_cpu(from), b = as_cpu(to);
    b.copy_(a.expand_as(b));
  }
  return to;
}
Tensor copy_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}
Tensor as_strided(const Tensor& s, IntArrayRef size, IntArrayRef stride, std::optional<int64_t> offset) {
  return at::cpu::as_strided(s, size, stride, offset);
}
Tensor& set_offset(Tensor& s, Storage from, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  return at::cpu::set_(s, from, offset, size, stride);
}
Tensor& set_storage(Tensor& s, Storage from) { return at::cpu::set_(s, from); }
Tensor view(const Tensor& s, c10::SymIntArrayRef size) { return at::native::view(s, C10_AS_INTARRAYREF_SLOW(size)); }
Tensor reshape_alias(const Tensor& s, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(s, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
const Tensor& resize(const Tensor& s, c10::SymIntArrayRef size, MaybeFormat mf) {
  return at::native::resize_(s, C10_AS_INTARRAYREF_SLOW(size), mf);
}
Scalar local_scalar(const Tensor& s) {
  wait("looked at");
  return at::native::_local_scalar_dense_cpu(as_cpu(s));
}
Tensor unfold(const Tensor& s, int64_t d, int64_t size, int64_t step) { return at::native::unfold(s, d, size, step); }

// Convolutions have no CPU fallback: torch asks a device of its own for them.
Tensor convolution(const Tensor& x, const Tensor& w, const MaybeTensor& b, IntArrayRef stride, IntArrayRef pad,
                   IntArrayRef dilation, bool transposed, IntArrayRef out_pad, int64_t groups) {
  TORCH_CHECK(x.device() == w.device(), "conv: input on ", x.device(), ", weight on ", w.device());
  at::AutoDispatchBelowAutograd guard;
  MaybeTensor bias;
  if (b && b->defined()) {
    TORCH_CHECK(b->device() == x.device(), "conv: input on ", x.device(), ", bias on ", b->device());
    bias = as_cpu(*b);
  }
  return to_device(
      at::convolution(as_cpu(x), as_cpu(w), bias, stride, pad, dilation, transposed, out_pad, groups));
}
std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& w, IntArrayRef stride, IntArrayRef pad,
    IntArrayRef dilation, bool transposed, IntArrayRef out_pad, int64_t groups, std::array<bool, 3> wanted) {
  at::AutoDispatchBelowAutograd guard;
  std::vector<int64_t> bias{transposed ? w.size(1) * groups : w.size(0)};
  auto found = at::convolution_backward(as_cpu(gradient), as_cpu(x), as_cpu(w), IntArrayRef(bias), stride, pad,
                                        dilation, transposed, out_pad, groups, wanted);
  auto moved = [](const Tensor& t) { return t.defined() ? to_device(t) : t; };
  return {moved(std::get<0>(found)), moved(std::get<1>(found)), moved(std::get<2>(found))};
}
// What a GPU computes only when it knows how much comes out, or that it went well.
const std::unordered_set<std::string> WAITING{
    "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_dim", "aten::bincount",
    "aten::repeat_interleave", "aten::_linalg_svd", "aten::_linalg_eigh", "aten::linalg_eig", "aten::linalg_qr"};
const std::unordered_set<std::string> INDEXING{
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"};

// What CUDA refuses under torch.use_deterministic_algorithms, by the list in its documentation.
const std::unordered_set<std::string> REFUSED{
    "aten::_adaptive_avg_pool2d_backward", "aten::_adaptive_avg_pool3d_backward", "aten::adaptive_max_pool2d_backward",
    "aten::avg_pool3d_backward", "aten::upsample_linear1d_backward", "aten::upsample_bilinear2d_backward",
    "aten::_upsample_bilinear2d_aa_backward", "aten::upsample_bicubic2d_backward",
    "aten::_upsample_bicubic2d_aa_backward", "aten::upsample_trilinear3d_backward", "aten::reflection_pad1d_backward",
    "aten::reflection_pad2d_backward", "aten::reflection_pad3d_backward", "aten::nll_loss_forward",
    "aten::nll_loss2d_forward", "aten::grid_sampler_2d_backward", "aten::grid_sampler_3d_backward", "aten::put_",
    "aten::histc", "aten::kthvalue", "aten::max_unpool2d", "aten::max_unpool3d"};

bool refused(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto& schema = op.schema();
  if (schema.name() == "aten::median") return schema.overload_name().rfind("dim", 0) == 0;
  if (schema.name() == "aten::cumsum") {
    const auto& x = stack[stack.size() - schema.arguments().size()];
    return x.isTensor() && x.toTensor().is_floating_point();
  }
  return REFUSED.count(schema.name()) > 0;
}

bool waits_for_index(const IValue& value) {
  auto waits = [](const Tensor& t) {
    return t.defined() && (t.is_cpu() || t.scalar_type() == kBool || t.scalar_type() == kByte);
  };
  if (value.isOptionalTensorList()) {
    for (const auto& each : value.toOptionalTensorList()) {
      std::optional<Tensor> t = each;
      if (t && waits(*t)) return true;
    }
  } else if (value.isTensorList()) {
    for (const Tensor& t : value.toTensorVector())
      if (waits(t)) return true;
  }
  return false;
}
void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  if (WAITING.count(name)) wait(name.c_str());
  if (INDEXING.count(name) && waits_for_index((*stack)[stack->size() - op.schema().arguments().size() + 1]))
    wait("indexed by a mask or from the CPU");
  if (at::globalContext().deterministicAlgorithms() && refused(op, *stack))
    at::globalContext().alertNotDeterministic(name);
  Inside counts_as_one;
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_and_resize);
  m.impl("as_strided", &as_strided);
  m.impl("set_.source_Storage_storage_offset", &set_offset);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("unfold", &unfold);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
}  // namespace

extern "C" {
size_t pretended_held() { return held; }
size_t pretended_most() { return most; }
void pretended_forget_most() { most = held.load(); }
void pretended_tell_waits(Told f) { told = f; }
}
