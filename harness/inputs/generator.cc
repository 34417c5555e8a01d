#include "harness/inputs/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "harness/base/error.h"
#include "harness/inputs/exactness.h"
#include "harness/inputs/hash.h"
#include "reference/moe_reference.h"

namespace moe {
namespace {

// The power of two nearest to 3 / sqrt(length): a dot product of `length` uniform terms then has a
// standard deviation near 1.
double FanInScale(std::int64_t length) {
  return std::exp2(std::round(std::log2(3.0 / std::sqrt(static_cast<double>(length)))));
}

// Rows of tokens are of size 1, what multiplies them keeps them so, and biases are small against
// logits and scores.
double ScaleOf(const TensorRow& row, const Model& model) {
  if (row.HasRows()) {
    return 1.0;
  }
  if (row.dims == "E") {
    return row.role == Role::kParameter ? 0.25 : 0.125;
  }
  return FanInScale(SizeOf(static_cast<Dim>(row.dims.back()), model));
}

constexpr std::uint64_t kMostRedraws = 10'000;

}  // namespace

double MarginFloor(Dtype dtype) {
  return 8.0 * UnitRoundoff(dtype);
}

InputGenerator::InputGenerator(const CaseSpec& spec)
    : model_(spec.model),
      seed_(spec.numerics.seed),
      redraws_T_(static_cast<std::size_t>(spec.model.tokens), 0) {
  if (spec.numerics.fill == Fill::kDyadic) {
    if (const std::string inexact = FindInexact(spec); !inexact.empty()) {
      throw Error(spec.path, "the fill is dyadic, and " + inexact);
    }
    dyadic_.emplace(spec);
    RequireExactness(model_, *this, spec.path);
  }
  DrawRows(spec);
}

double InputGenerator::Value(std::uint64_t tensor_key, double scale, std::int64_t index) const {
  const std::uint64_t word = Mix(tensor_key ^ static_cast<std::uint64_t>(index));
  const auto magnitude = static_cast<double>(1 + (word >> 1U) % 127);  // 7 bits: exact in bfloat16
  return (word & 1U ? -scale : scale) * magnitude / 128.0;
}

void InputGenerator::Read(const std::string& name, const Slice& slice,
                          std::span<double> out) const {
  if (dyadic_) {
    const DyadicFill::Element element = dyadic_->ElementOf(name);
    std::vector<std::size_t> at(slice.index.size(), 0);
    std::vector<std::int64_t> index(slice.index.size());
    for (double& value : out) {
      for (std::size_t dim = 0; dim < at.size(); ++dim) {
        index[dim] = slice.index[dim][at[dim]];
      }
      value = element(index);
      Advance(slice, at);
    }
    return;
  }
  const std::uint64_t key = KeyOf(seed_, name);
  const double scale = ScaleOf(TensorOf(name), model_);
  const Shape shape = ShapeOf(name, model_);
  const bool redrawn = name == tensor::x_TD;
  const std::int64_t rows = static_cast<std::int64_t>(out.size());
  std::vector<std::size_t> at(shape.size(), 0);
  for (std::int64_t element = 0; element < rows; ++element) {
    std::int64_t global = 0;
    for (std::size_t dim = 0; dim < shape.size(); ++dim) {
      global = global * shape[dim] + slice.index[dim][at[dim]];
    }
    // Each redraw is a stream of its own: keys that differ in low bits only would permute one
    // another's rows.
    const std::uint64_t redraws =
        redrawn ? redraws_T_[static_cast<std::size_t>(slice.index[0][at[0]])] : 0;
    const std::uint64_t row_key = redraws == 0 ? key : Mix(key + redraws);
    out[static_cast<std::size_t>(element)] = Value(row_key, scale, global);
    Advance(slice, at);
  }
}

void InputGenerator::DrawRows(const CaseSpec& spec) {
  using reference::Matrix;
  using reference::Vector;
  const auto read = [&](const std::string& name, auto& target) {
    Read(name, WholeOf(ShapeOf(name, model_)),
         {target.data(), static_cast<std::size_t>(target.size())});
  };
  Matrix gate_ED(model_.experts, model_.d_model);
  read(tensor::gate_ED, gate_ED);
  Vector gate_bias_E(model_.gate_bias ? model_.experts : 0);
  Vector expert_bias_E(model_.expert_bias ? model_.experts : 0);
  if (model_.gate_bias) {
    read(tensor::gate_bias_E, gate_bias_E);
  }
  if (model_.expert_bias) {
    read(tensor::expert_bias_E, expert_bias_E);
  }
  double floor = 0.0;
  double unit = 0.0;
  for (const Dtype dtype : spec.numerics.dtypes) {
    floor = std::max(floor, MarginFloor(dtype));
    unit = std::max(unit, std::min(UnitRoundoff(dtype), UnitRoundoff(Dtype::kFloat32)));
  }
  // Of a step that scores in float32 or better, as the judge has it: long dot products may round
  // more than the floor leaves room for.
  const reference::Rounding rounding{.accumulate = unit, .logits = unit, .scores = unit};
  const auto& idle = spec.numerics.idle_experts;
  Slice pending = WholeOf({model_.tokens, model_.d_model});
  smallest_logit_margin_ = INFINITY;
  double best_refused = 0.0;
  while (!pending.index[0].empty()) {
    Matrix x_TD(static_cast<Eigen::Index>(pending.index[0].size()), model_.d_model);
    Read(tensor::x_TD, pending, {x_TD.data(), static_cast<std::size_t>(x_TD.size())});
    const reference::Routing routing =
        reference::Route(model_, x_TD, gate_ED, gate_bias_E, expert_bias_E, rounding);
    std::vector<std::int64_t> again;
    for (Eigen::Index row = 0; row < x_TD.rows(); ++row) {
      const auto chosen = routing.topk_expert_TK.row(row);
      const bool hits_idle = std::any_of(chosen.begin(), chosen.end(), [&](std::int64_t expert) {
        return std::find(idle.begin(), idle.end(), expert) != idle.end();
      });
      const double margin = routing.logit_margin_T(row);
      const std::int64_t token = pending.index[0][static_cast<std::size_t>(row)];
      const bool is_decided = routing.margin_T(row) > routing.margin_bound_T(row);
      if (!hits_idle && margin > floor && is_decided) {
        smallest_logit_margin_ = std::min(smallest_logit_margin_, margin);
        continue;
      }
      best_refused = hits_idle ? best_refused : std::max(best_refused, margin);
      again.push_back(token);
      if (++redraws_T_[static_cast<std::size_t>(token)] > kMostRedraws) {
        throw Error(spec.path,
                    fmt::format("token {} finds no row with a top-k margin above {:.2e}, and above "
                                "what rounding may take, in {} draws (best {:.2e}); use fewer "
                                "experts, a smaller top_k, or another seed",
                                token, floor, kMostRedraws, best_refused));
      }
    }
    pending.index[0] = std::move(again);
  }
}

}  // namespace moe
