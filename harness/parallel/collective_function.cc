#include "harness/parallel/collective_function.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace moe::parallel {
namespace {

struct BackwardHolder : torch::CustomClassHolder {
  explicit BackwardHolder(TensorMap map) : backward(std::move(map)) {}
  TensorMap backward;
};

class CollectiveFunction : public torch::autograd::Function<CollectiveFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const TensorMap& map, TensorMap backward_map) {
    context->saved_data["backward"] =
        at::IValue::make_capsule(c10::make_intrusive<BackwardHolder>(std::move(backward_map)));
    const at::Tensor output = map(input.detach());
    // A new tensor even for an identity: autograd would take the input itself for a view.
    return output.is_alias_of(input) ? output.clone() : output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list d_outputs) {
    const auto holder = context->saved_data["backward"].toCapsule();
    const auto& map = static_cast<const BackwardHolder&>(*holder).backward;
    // An incoming gradient may be expanded or transposed; collectives need the real thing.
    return {map(d_outputs[0].contiguous()), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor WithBackward(const at::Tensor& input, const TensorMap& forward, TensorMap backward) {
  return CollectiveFunction::apply(input, forward, std::move(backward));
}

at::Tensor Identity(const at::Tensor& input) {
  return input;
}

}  // namespace moe::parallel
