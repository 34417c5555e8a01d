// A step of the forward pass and the backward that is stated beside it.

#include "harness/parallel/collective_function.h"

#include <gtest/gtest.h>

namespace moe::parallel {
namespace {

TEST(CollectiveFunction, RunsTheBackwardThatStandsBesideIt) {
  const at::Tensor x = at::ones({2, 2}, at::kDouble).requires_grad_();
  WithBackward(x, Identity, [](const at::Tensor& d) { return d * 3.0; }).sum().backward();
  EXPECT_TRUE(x.grad().equal(at::full({2, 2}, 3.0, at::kDouble)));
}

TEST(CollectiveFunction, GivesTheBackwardAContiguousGradient) {
  const at::Tensor x = at::ones({2, 2}, at::kDouble).requires_grad_();
  bool is_contiguous = false;
  const at::Tensor y = WithBackward(x, Identity, [&](const at::Tensor& d) {
    is_contiguous = d.is_contiguous();
    return d;
  });
  y.backward(at::ones({1, 1}, at::kDouble).expand({2, 2}));  // as sums make them
  EXPECT_TRUE(is_contiguous);
}

TEST(CollectiveFunction, RunsTheForwardOutsideTheGraph) {
  const at::Tensor x = at::ones({2}, at::kDouble).requires_grad_();
  bool tracked = true;
  WithBackward(
      x,
      [&](const at::Tensor& input) {
        tracked = input.requires_grad();
        return input * 2.0;
      },
      Identity);
  EXPECT_FALSE(tracked);
}

// Autograd takes an output that is the input itself for a view of it, and skips the backward.
TEST(CollectiveFunction, OfAnIdentityReturnsANewTensor) {
  const at::Tensor x = at::ones({2}, at::kDouble).requires_grad_();
  EXPECT_FALSE(WithBackward(x, Identity, Identity).is_alias_of(x));
}

}  // namespace
}  // namespace moe::parallel
