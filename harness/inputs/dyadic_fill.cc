#include "harness/inputs/dyadic_fill.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>

#include "harness/base/error.h"
#include "harness/inputs/hash.h"
#include "reference/expert.h"

namespace moe {
namespace {

// What enters the experts' function of w1 x, at the least in magnitude where it is not 0, and the
// logits of experts that are not chosen: sigmoid is exactly 1 there, or at its negative exactly 0,
// in float64 and so in float32, since exp(-2^10) underflows in both.
constexpr double kSaturated = 1024.0;

constexpr std::uint64_t kMostRedraws = 1000;

// Fewer columns would make tokens of one class the same.
constexpr std::int64_t kFewestFeatures = 4;

// The Math of reference/expert.h for one hidden unit of one token.
struct NumberMath {
  using Rows = double;
  static double Value(const reference::Function& f, double u) { return f.value(u); }
  static double Slope(const reference::Function& f, double u) { return f.slope(u); }
  static double Multiply(double a, double b) { return a * b; }
};

bool IsPowerOfTwo(double number) {
  int exponent = 0;
  return std::abs(std::frexp(number, &exponent)) == 0.5;  // exact: frexp takes the bits apart
}

double ScoreOf(const Model& model) {
  return model.score_function == ScoreFunction::kSoftmax ? 1.0 / static_cast<double>(model.top_k)
                                                         : 0.5;
}

// What every chosen expert's output counts for: all K scores of a token are equal.
double CombineWeightOf(const Model& model) {
  const double normal = model.route_norm ? 1.0 / static_cast<double>(model.top_k) : ScoreOf(model);
  return std::abs(model.route_scale) * normal;
}

bool IsGroupLimited(const Model& model) {
  return model.limited_groups < model.expert_groups;
}

double SignOf(std::uint64_t word) {
  return (word & 1U) != 0 ? -1.0 : 1.0;
}

DyadicBlocks BlocksOf(const CaseSpec& spec) {
  const Model& model = spec.model;
  DyadicBlocks blocks;
  blocks.routing = model.experts - std::ssize(spec.numerics.idle_experts);
  const std::int64_t rest = model.d_model - blocks.routing;
  blocks.balance = model.shared_gate ? rest / 3 : 0;
  blocks.feature = rest - blocks.balance;
  return blocks;
}

std::uint64_t FlatIndex(const Shape& shape, std::span<const std::int64_t> index) {
  std::uint64_t flat = 0;
  for (std::size_t dim = 0; dim < shape.size(); ++dim) {
    flat = flat * static_cast<std::uint64_t>(shape[dim]) + static_cast<std::uint64_t>(index[dim]);
  }
  return flat;
}

}  // namespace

std::string FindInexact(const CaseSpec& spec) {
  const Model& m = spec.model;
  const bool normalised = m.score_function == ScoreFunction::kSoftmax || m.route_norm;
  if (normalised && m.top_k == 1) {
    return "top_k 1 with normalised scores gives the gate no gradient; use 2 or more";
  }
  if (normalised && !IsPowerOfTwo(static_cast<double>(m.top_k))) {
    return fmt::format(
        "top_k {} makes scores of 1/{}, which no sum of powers of two equals; use a "
        "power of two, or sigmoid without route_norm",
        m.top_k, m.top_k);
  }
  if (!IsPowerOfTwo(m.route_scale)) {
    return fmt::format("route_scale {} rounds what it scales; use a power of two", m.route_scale);
  }
  if (IsGroupLimited(m) && m.limited_groups > m.top_k) {
    return fmt::format(
        "limited_groups {} leaves a choice between equal groups to top_k {}; use at "
        "most {}",
        m.limited_groups, m.top_k, m.top_k);
  }
  if (IsGroupLimited(m) && !spec.numerics.idle_experts.empty()) {
    return "idle_experts do not go with groups here; leave one of them out";
  }
  if (spec.program.dp_reduction == DpReduction::kMean) {
    for (const Layout& layout : spec.layouts) {
      const std::int64_t ranks = layout.dp_replicate * layout.dp_shard * layout.cp;
      if (!IsPowerOfTwo(static_cast<double>(ranks))) {
        return fmt::format(
            "dp_reduction mean divides by the {} data-parallel ranks of {}; use "
            "layouts with a power of two of them, or sum",
            ranks, ToText(layout));
      }
    }
  }
  const DyadicBlocks blocks = BlocksOf(spec);
  if (blocks.feature < kFewestFeatures) {
    return fmt::format(
        "d_model {} leaves too little beside one column for each of {} experts; use "
        "at least {}",
        m.d_model, blocks.routing, blocks.routing + kFewestFeatures + (m.shared_gate ? 1 : 0));
  }
  return "";
}

DyadicFill::DyadicFill(const CaseSpec& spec)
    : model_(spec.model), seed_(spec.numerics.seed), blocks_(BlocksOf(spec)) {
  const auto& idle = spec.numerics.idle_experts;
  for (std::int64_t expert = 0; expert < model_.experts; ++expert) {
    if (std::find(idle.begin(), idle.end(), expert) == idle.end()) {
      busy_experts_.push_back(expert);
    }
  }
  redraws_.resize(UnitIndex(model_.experts, model_.d_shared), 0);
  std::vector<std::int64_t> tokens;
  for (std::int64_t expert = 0; expert < model_.experts; ++expert) {
    tokens.clear();
    for (std::int64_t token = 0; token < model_.tokens; ++token) {
      if (IsMember(expert, ClassOf(token))) {
        tokens.push_back(token);
      }
    }
    if (!tokens.empty()) {
      DrawHiddenUnits(expert, tokens, spec.path);
    }
  }
  tokens.resize(static_cast<std::size_t>(model_.tokens));
  std::iota(tokens.begin(), tokens.end(), 0);
  DrawHiddenUnits(model_.experts, tokens, spec.path);
}

DyadicFill::UnitGradients DyadicFill::GradientsOf(std::int64_t expert, std::int64_t unit,
                                                  std::span<const std::int64_t> tokens) const {
  const bool shared = expert == model_.experts;
  const Element w1 = ElementOf(shared ? "shared_w1_FD" : "w1_EFD");
  const Element w3 = ElementOf(shared ? "shared_w3_FD" : "w3_EFD");
  const Element w2 = ElementOf(shared ? "shared_w2_DF" : "w2_EDF");
  const auto at = [&](const Element& element, std::int64_t row, std::int64_t column) {
    return shared ? element(std::array{row, column}) : element(std::array{expert, row, column});
  };
  const reference::ExpertKind kind = reference::SwiGlu();
  UnitGradients d_D;
  d_D.fill(std::vector<double>(static_cast<std::size_t>(model_.d_model), 0.0));
  for (const std::int64_t token : tokens) {
    const std::int64_t feature = FeatureOf(token);
    const std::int64_t output = OutputOf(token);
    const double x = X(token, feature);
    const double gate = at(w1, unit, feature) * x;
    const double up = at(w3, unit, feature) * x;
    const double d_hidden = DY(token, output) * at(w2, output, unit);
    const auto hidden_unit = Activate(NumberMath(), kind, gate, up);
    const auto gradient = ActivateBackward(NumberMath(), kind, hidden_unit, d_hidden);
    d_D[0][static_cast<std::size_t>(feature)] += gradient.d_gate_NF * x;
    d_D[1][static_cast<std::size_t>(feature)] += gradient.d_up_NF * x;
    d_D[2][static_cast<std::size_t>(output)] += DY(token, output) * hidden_unit.hidden_NF;
  }
  return d_D;
}

void DyadicFill::DrawHiddenUnits(std::int64_t expert, std::span<const std::int64_t> tokens,
                                 const std::string& where) {
  const bool shared = expert == model_.experts;
  const std::int64_t units = shared ? model_.d_shared : model_.d_expert;
  std::array<std::set<std::vector<double>>, 3> seen;  // no gradient at all, and those drawn already
  for (auto& gradients : seen) {
    gradients.insert(std::vector<double>(static_cast<std::size_t>(model_.d_model), 0.0));
  }
  for (std::int64_t unit = 0; unit < units; ++unit) {
    UnitGradients drawn = GradientsOf(expert, unit, tokens);
    while (seen[0].contains(drawn[0]) || seen[1].contains(drawn[1]) || seen[2].contains(drawn[2])) {
      if (++redraws_[UnitIndex(expert, unit)] > kMostRedraws) {
        throw Error(where, fmt::format("the fill is dyadic, and {} tokens are too few to give each "
                                       "of {} hidden units gradients of its own; use more tokens, "
                                       "another seed, or a smaller {}",
                                       tokens.size(), units, shared ? "d_shared" : "d_expert"));
      }
      drawn = GradientsOf(expert, unit, tokens);
    }
    for (std::size_t i = 0; i < seen.size(); ++i) {
      seen[i].insert(std::move(drawn[i]));
    }
  }
}

std::int64_t DyadicFill::ClassOf(std::int64_t token) const {
  return token % blocks_.routing;
}

// The tokens of one class take column by column of a block, from a start of its own.
std::int64_t DyadicFill::ColumnOf(std::int64_t token, const std::string& block,
                                  std::int64_t columns) const {
  const auto token_class = static_cast<std::uint64_t>(ClassOf(token));
  const auto start = static_cast<std::int64_t>(Mix(KeyOf(seed_, block) + token_class) >> 32U);
  return (token / blocks_.routing + start) % columns;
}

std::int64_t DyadicFill::FeatureOf(std::int64_t token) const {
  return blocks_.routing + ColumnOf(token, "feature", blocks_.feature);
}

std::int64_t DyadicFill::BalanceOf(std::int64_t token) const {
  return blocks_.routing + blocks_.feature + ColumnOf(token, "balance", blocks_.balance);
}

bool DyadicFill::IsFeature(std::int64_t column) const {
  return column >= blocks_.routing && column < blocks_.routing + blocks_.feature;
}

// For each slot this is a one-to-one map from classes to experts, so that every expert is chosen by
// K classes. The slots go round `limited_groups` groups.
std::int64_t DyadicFill::ExpertOf(std::int64_t token_class, std::int64_t slot) const {
  const std::int64_t groups = IsGroupLimited(model_) ? model_.expert_groups : 1;
  const std::int64_t limit = IsGroupLimited(model_) ? model_.limited_groups : 1;
  const std::int64_t size = blocks_.routing / groups;
  const std::int64_t slots_per_group = (model_.top_k + limit - 1) / limit;
  // Far apart, so that they tend to live on different ranks, but not at one fixed partner.
  const std::int64_t stride = std::max<std::int64_t>(1, size / slots_per_group - 1);
  const std::int64_t group = (token_class / size + slot % limit) % groups;
  const std::int64_t place = (token_class % size + slot / limit * stride) % size;
  return busy_experts_[static_cast<std::size_t>(group * size + place)];
}

bool DyadicFill::IsMember(std::int64_t expert, std::int64_t token_class) const {
  for (std::int64_t slot = 0; slot < model_.top_k; ++slot) {
    if (ExpertOf(token_class, slot) == expert) {
      return true;
    }
  }
  return false;
}

double DyadicFill::SharedGate(std::int64_t column) const {
  if (column < blocks_.routing) {
    return 0.0;
  }
  // 2, so that the gate's part of d_x has the smallest step of the experts' part.
  return 2.0 * SignOf(Mix(KeyOf(seed_, "shared_gate_D") ^ static_cast<std::uint64_t>(column)));
}

double DyadicFill::X(std::int64_t token, std::int64_t column) const {
  if (column < blocks_.routing) {
    return column == ClassOf(token) ? 1.0 : 0.0;
  }
  const double sign = SignOf(Mix(KeyOf(seed_, "x_TD") ^ static_cast<std::uint64_t>(token)));
  const std::int64_t feature = FeatureOf(token);
  if (column == feature) {
    return sign;
  }
  if (IsFeature(column) || column != BalanceOf(token)) {
    return 0.0;
  }
  return SharedGate(feature) * SharedGate(column) > 0.0 ? -sign : sign;
}

std::int64_t DyadicFill::OutputOf(std::int64_t token) const {
  const std::uint64_t word = Mix(KeyOf(seed_, "d_y_TD") ^ static_cast<std::uint64_t>(token));
  return static_cast<std::int64_t>((word >> 1U) % static_cast<std::uint64_t>(model_.d_model));
}

double DyadicFill::DY(std::int64_t token, std::int64_t column) const {
  const std::uint64_t word = Mix(KeyOf(seed_, "d_y_TD") ^ static_cast<std::uint64_t>(token));
  return column == OutputOf(token) ? SignOf(word) : 0.0;
}

double DyadicFill::GateMagnitude(std::uint64_t index) const {
  return (Mix(KeyOf(seed_, "gate_ED") ^ index) & 1U) != 0 ? 2.0 * kSaturated : kSaturated;
}

double DyadicFill::Gate(std::int64_t expert, std::int64_t column) const {
  if (column >= blocks_.routing) {
    return 0.0;
  }
  const auto row = static_cast<std::uint64_t>(expert);
  if (model_.gate_bias) {  // the bias keeps all experts out, and the gate lets the class's in
    return IsMember(expert, column) ? GateMagnitude(row) : 0.0;
  }
  const auto index =
      row * static_cast<std::uint64_t>(model_.d_model) + static_cast<std::uint64_t>(column);
  return IsMember(expert, column) ? 0.0 : -GateMagnitude(index);
}

std::size_t DyadicFill::UnitIndex(std::int64_t expert, std::int64_t unit) const {
  return static_cast<std::size_t>(expert * model_.d_expert + unit);
}

DyadicFill::Element DyadicFill::Projection(const std::string& name, double scale) const {
  const bool is_w1 = name.find("w1") != std::string::npos;
  std::string w1 = name;
  w1.replace(w1.find(is_w1 ? "w1" : "w3"), 2, "w1");
  const Shape shape = ShapeOf(name, model_);
  const bool shared = name.starts_with("shared");
  return [this, shared, is_w1, scale, shape, name_key = KeyOf(seed_, name),
          name_w1_key = KeyOf(seed_, w1)](std::span<const std::int64_t> index) {
    if (!IsFeature(index.back())) {
      return 0.0;
    }
    const std::uint64_t flat = FlatIndex(shape, index);
    const std::uint64_t more =
        redraws_[UnitIndex(shared ? model_.experts : index[0], index[index.size() - 2])];
    const std::uint64_t key = Mix(name_key + more);
    const std::uint64_t w1_key = Mix(name_w1_key + more);
    // Where w1 gives 0, SiLU's slope is 1/2; a factor of 2 there keeps the smallest step at 1.
    const bool is_zero = (Mix(w1_key ^ flat) >> 1U) % 8 == 0;
    const double magnitude = is_w1 ? (is_zero ? 0.0 : scale) : (is_zero ? 2.0 * scale : scale);
    return SignOf(Mix(key ^ flat)) * magnitude;
  };
}

DyadicFill::Element DyadicFill::ElementOf(const std::string& name) const {
  const double weight = CombineWeightOf(model_);
  const bool is_before = model_.score_placement == ScorePlacement::kBeforeExperts;
  if (name == "x_TD") {
    return [this](std::span<const std::int64_t> index) { return X(index[0], index[1]); };
  }
  if (name == "d_y_TD") {
    return [this](std::span<const std::int64_t> index) { return DY(index[0], index[1]); };
  }
  if (name == "gate_ED") {
    return [this](std::span<const std::int64_t> index) { return Gate(index[0], index[1]); };
  }
  if (name == "gate_bias_E") {
    return [this](std::span<const std::int64_t> index) {
      return -GateMagnitude(static_cast<std::uint64_t>(index[0]));
    };
  }
  if (name == "expert_bias_E") {
    // At most an eighth of a score: it never chooses, and where it leaks into a weight it shows.
    return
        [key = KeyOf(seed_, name), score = ScoreOf(model_)](std::span<const std::int64_t> index) {
          const std::uint64_t word = Mix(key ^ static_cast<std::uint64_t>(index[0]));
          return SignOf(word) * score * static_cast<double>(1 + (word >> 1U) % 4) / 32.0;
        };
  }
  if (name == "shared_gate_D") {
    return [this](std::span<const std::int64_t> index) { return SharedGate(index[0]); };
  }
  // Routed and shared experts, on either side of the score, add to y and d_x in the same step,
  // kSaturated times the combine weight.
  if (name == "w1_EFD") {
    return Projection(name, is_before ? kSaturated / weight : kSaturated);
  }
  if (name == "shared_w1_FD") {
    return Projection(name, kSaturated);
  }
  if (name == "w3_EFD" || name == "shared_w3_FD") {
    return Projection(name, 1.0);
  }
  const bool shared = name == "shared_w2_DF";  // else w2_EDF
  const double scale = shared ? weight * (model_.shared_gate ? 2.0 : 1.0) : 1.0;
  return [this, shared, scale, shape = ShapeOf(name, model_),
          key = KeyOf(seed_, name)](std::span<const std::int64_t> index) {
    const std::uint64_t more =
        redraws_[UnitIndex(shared ? model_.experts : index[0], index.back())];
    return SignOf(Mix(Mix(key + more) ^ FlatIndex(shape, index))) * scale;
  };
}

}  // namespace moe
