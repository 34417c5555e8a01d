// What experts do to a hidden unit between their linear layers, as data: hidden = a(gate) b(up).
// The layers, and the backward pass of the whole, are the same for every kind: expert.h.
#pragma once

#include <functional>
#include <optional>
#include <string_view>

namespace moe::reference {

// A function of one variable that is applied to every element, and its derivative.
struct Function {
  using Of = std::function<double(double)>;

  std::string_view name;
  Of value;      // f
  Of slope;      // f'
  Of curvature;  // f''
  // What f and f' are off by at most, in units, where the results that implementations round on
  // the way are off by one unit each.
  Of size;
  Of slope_size;
  // Where f and f' are exact in every dtype, whatever the implementation; and where that is, in
  // words.
  std::function<bool(double)> is_exact;
  std::string_view exact_where;
};

struct ExpertKind {
  Function a;
  std::optional<Function> b;  // without it b(up) is up
};

// a(u) = silu(u) = u sigmoid(u) (Shazeer, "GLU variants improve transformer", arXiv 2002.05202).
ExpertKind SwiGlu();

}  // namespace moe::reference
