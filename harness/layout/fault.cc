#include "harness/layout/fault.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <sstream>
#include <vector>

#include "harness/base/error.h"

namespace moe {
namespace {

using Kind = Fault::Kind;

constexpr std::string_view kCounts = "tokens_per_expert_E";
constexpr std::array<std::string_view, 4> kPaths = {"gate", "routed", "shared", "scores"};
constexpr std::array<std::string_view, 3> kUnitNames = {"experts", "tokens", "hidden"};
constexpr std::array<std::string_view, 5> kModelKeys = {"score_function", "score_placement",
                                                        "route_norm", "route_scale", "expert_bias"};

// What stands behind a fault's first word: an argument, a place, both or neither.
enum class Argument { kNone, kAxis, kRank, kFactor, kUnits, kPath, kModelKey };
enum class Place { kNone, kReduction, kTensor };

struct Form {
  Kind kind;
  std::string_view word;
  Argument argument;
  Place place;
};

constexpr std::array<Form, 24> kForms = {{
    {Kind::kDrop, "drop", Argument::kNone, Place::kReduction},
    {Kind::kRepeat, "repeat", Argument::kNone, Place::kReduction},
    {Kind::kMean, "mean", Argument::kNone, Place::kReduction},
    {Kind::kWrongGroup, "wrong-group", Argument::kAxis, Place::kReduction},
    {Kind::kSkipRank, "skip-rank", Argument::kRank, Place::kReduction},
    {Kind::kDoubleRank, "double-rank", Argument::kRank, Place::kReduction},
    {Kind::kMisread, "misread", Argument::kNone, Place::kReduction},
    {Kind::kDropAll, "drop-all", Argument::kNone, Place::kNone},
    {Kind::kScale, "scale", Argument::kFactor, Place::kTensor},
    {Kind::kPermute, "permute", Argument::kUnits, Place::kTensor},
    {Kind::kMisplace, "misplace", Argument::kAxis, Place::kTensor},
    {Kind::kStaleRank, "stale-rank", Argument::kRank, Place::kTensor},
    {Kind::kRound, "round", Argument::kNone, Place::kTensor},
    {Kind::kCorrupt, "corrupt", Argument::kNone, Place::kTensor},
    {Kind::kNan, "nan", Argument::kNone, Place::kTensor},
    {Kind::kLocalNorm, "local-norm", Argument::kNone, Place::kTensor},
    {Kind::kIdleGarbage, "idle-garbage", Argument::kNone, Place::kTensor},
    {Kind::kLosePath, "lose-path", Argument::kPath, Place::kNone},
    {Kind::kDoublePath, "double-path", Argument::kPath, Place::kNone},
    {Kind::kDropGather, "drop-gather", Argument::kNone, Place::kReduction},
    {Kind::kShuffleRows, "shuffle-rows", Argument::kNone, Place::kNone},
    {Kind::kSplitRows, "split-rows", Argument::kNone, Place::kNone},
    {Kind::kLeakSlots, "leak-slots", Argument::kNone, Place::kNone},
    {Kind::kModel, "model", Argument::kModelKey, Place::kNone},
}};

const Form& FormOf(Kind kind) {
  return *std::find_if(kForms.begin(), kForms.end(),
                       [&](const Form& form) { return form.kind == kind; });
}

std::string_view LetterOf(Argument argument) {
  switch (argument) {
    case Argument::kNone:
      return "";
    case Argument::kAxis:
      return "AXIS";
    case Argument::kRank:
      return "RANK";
    case Argument::kFactor:
      return "F";
    case Argument::kUnits:
      return "experts|tokens|hidden";
    case Argument::kPath:
      return "gate|routed|shared|scores";
    case Argument::kModelKey:
      return "KEY";
  }
  return "";
}

std::string Joined(std::string_view word, std::string_view argument, std::string_view place) {
  return fmt::format("{}{}{}{}{}", word, argument.empty() ? "" : " ", argument,
                     place.empty() ? "" : " ", place);
}

std::string FormText(const Form& form) {
  return Joined(form.word, LetterOf(form.argument),
                form.place == Place::kReduction ? "R"
                : form.place == Place::kTensor  ? "X"
                                                : "");
}

std::string Grammar() {
  return fmt::format(
      "a fault reads {} with R a reduction such as d_gate_ED@tp and X a tensor such as d_gate_ED",
      fmt::join(FaultForms(), ", "));
}

Reduction ParseReduction(std::string_view text, const std::string& where) {
  const std::size_t at = text.find('@');
  const auto axis = AxisFromText(text.substr(at + 1));
  if (at == 0 || !axis) {
    throw Error(where, fmt::format("\"{}\" is no reduction; it reads TENSOR@AXIS with an axis of "
                                   "dp_replicate, dp_shard, cp, tp, edp, ep or etp",
                                   text));
  }
  return {std::string(text.substr(0, at)), *axis};
}

template <typename Number>
std::optional<Number> NumberFrom(std::string_view text) {
  Number number{};
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  return code == std::errc{} && end == text.data() + text.size() ? std::optional(number)
                                                                 : std::nullopt;
}

double ParseFactor(const std::string& text, const std::string& where) {
  const std::size_t slash = text.find('/');
  const auto above = NumberFrom<double>(std::string_view(text).substr(0, slash));
  const auto below = slash == std::string::npos
                         ? std::optional(1.0)
                         : NumberFrom<double>(std::string_view(text).substr(slash + 1));
  if (!above || !below || !std::isfinite(*above / *below)) {
    throw Error(where, fmt::format("\"{}\" is no factor; use a number such as 0.5 or 1/3", text));
  }
  return *above / *below;
}

template <std::size_t n>
std::string OneOf(const std::string& text, const std::array<std::string_view, n>& known,
                  std::string_view what, const std::string& where) {
  if (std::find(known.begin(), known.end(), text) == known.end()) {
    throw Error(where, fmt::format("\"{}\" is no {}; use {}", text, what, fmt::join(known, ", ")));
  }
  return text;
}

void ReadArgument(Fault& fault, Argument argument, const std::string& text,
                  const std::string& where) {
  switch (argument) {
    case Argument::kNone:
      return;
    case Argument::kAxis: {
      const auto axis = AxisFromText(text);
      if (!axis) {
        throw Error(where,
                    fmt::format("\"{}\" is no axis; use dp_replicate, dp_shard, cp, tp, edp, ep or "
                                "etp",
                                text));
      }
      fault.axis = *axis;
      return;
    }
    case Argument::kRank: {
      const auto rank = NumberFrom<std::int64_t>(text);
      if (!rank || *rank < 0) {
        throw Error(where, fmt::format("\"{}\" is no rank; use a whole number from 0", text));
      }
      fault.rank = *rank;
      return;
    }
    case Argument::kFactor:
      fault.factor = ParseFactor(text, where);
      return;
    case Argument::kUnits:
      fault.name = OneOf(text, kUnitNames, "order to change", where);
      return;
    case Argument::kPath:
      fault.name = OneOf(text, kPaths, "path", where);
      return;
    case Argument::kModelKey:
      fault.name =
          OneOf(text, kModelKeys, "option of the model that a step could get wrong", where);
      return;
  }
}

std::string ArgumentText(const Fault& fault, Argument argument) {
  switch (argument) {
    case Argument::kNone:
      return "";
    case Argument::kAxis:
      return std::string(ToText(fault.axis));
    case Argument::kRank:
      return std::to_string(fault.rank);
    case Argument::kFactor:
      return fmt::format("{}", fault.factor);
    case Argument::kUnits:
    case Argument::kPath:
    case Argument::kModelKey:
      return fault.name;
  }
  return "";
}

// A place is told from an argument by what it looks like: R has an @, X a shape suffix.
bool LooksLikePlace(const std::string& word) {
  return word.find_first_of("@_") != std::string::npos && !AxisFromText(word);
}

// A rank's share of the counts is summed by the judge, so it can be missing without a reduction.
bool TakesCounts(Kind kind) {
  return kind == Kind::kSkipRank || kind == Kind::kDoubleRank;
}

std::vector<std::string> ToTexts(const std::vector<Reduction>& reductions) {
  std::vector<std::string> texts;
  for (const Reduction& reduction : reductions) {
    texts.push_back(ToText(reduction));
  }
  return texts;
}

std::string FindReductionMisfit(const Fault& fault, const StepContract& contract) {
  std::vector<Reduction> known = contract.Owed();
  const std::vector<Reduction> settled = contract.Settled();
  known.insert(known.end(), settled.begin(), settled.end());
  if (std::find(known.begin(), known.end(), fault.reduction) == known.end()) {
    if (known.empty()) {
      return fmt::format("{} does not exist here: this layout has no reductions at all",
                         ToText(fault.reduction));
    }
    return fmt::format("{} does not exist here; this layout has {}", ToText(fault.reduction),
                       fmt::join(ToTexts(known), ", "));
  }
  if (fault.kind == Kind::kWrongGroup) {
    if (fault.axis == fault.reduction.axis) {
      return fmt::format("wrong-group {}: {} is the right axis of {}", ToText(fault.axis),
                         ToText(fault.axis), ToText(fault.reduction));
    }
    if (contract.meshes.dense.SizeOf(fault.axis) * contract.meshes.expert.SizeOf(fault.axis) == 1) {
      return fmt::format("wrong-group {}: the axis has size 1 here", ToText(fault.axis));
    }
  }
  return "";
}

std::string FindTensorMisfit(const Fault& fault, const StepContract& contract) {
  const std::string text = ToText(fault);
  if (fault.tensor == kCounts && (TakesCounts(fault.kind) || fault.kind == Kind::kScale)) {
    return "";
  }
  const ContractTensor* tensor = contract.Find(fault.tensor);
  if (tensor == nullptr || !tensor->result) {
    std::vector<std::string> names;
    for (const ContractTensor& known : contract.tensors) {
      if (known.result) {
        names.push_back(known.name);
      }
    }
    return fmt::format("{}: there is no such result here; this layout has {}", text,
                       fmt::join(names, ", "));
  }
  const auto lies = [&](Axis axis, Placement::Kind kind) {
    const Mesh& mesh = contract.meshes.Of(tensor->mesh);
    return mesh.SizeOf(axis) > 1 && PlacementOn(tensor->placements, axis).kind == kind;
  };
  switch (fault.kind) {
    case Kind::kPermute:
      if (!DimOf(fault.tensor, fault.name)) {
        return fmt::format("{}: {} has no {} to permute", text, fault.tensor, fault.name);
      }
      break;
    case Kind::kMisplace:
      if (!lies(fault.axis, Placement::Kind::kShard)) {
        return fmt::format("{}: {} is not sharded over {} here", text, fault.tensor,
                           ToText(fault.axis));
      }
      break;
    case Kind::kStaleRank: {
      const auto& axes = contract.meshes.Of(tensor->mesh).axes;
      if (std::none_of(axes.begin(), axes.end(),
                       [&](Axis axis) { return lies(axis, Placement::Kind::kReplicate); })) {
        return fmt::format("{}: {} has no replicas here", text, fault.tensor);
      }
      break;
    }
    case Kind::kLocalNorm:
    case Kind::kIdleGarbage:
      if (!IsExpertWeight(fault.tensor)) {
        return fmt::format(
            "{}: only the gradients of the experts' weights depend on how many rows "
            "a rank got",
            text);
      }
      if (fault.kind == Kind::kLocalNorm && contract.meshes.expert.SizeOf(Axis::kEdp) == 1) {
        return fmt::format("{}: edp has size 1 here, so there is no share but one's own", text);
      }
      break;
    default:
      break;
  }
  return "";
}

std::string FindGatherMisfit(const Fault& fault, const StepContract& contract) {
  const ContractTensor* y = contract.Find("y_TD");
  const bool gathers = y != nullptr && PlacementOn(y->placements, Axis::kTp) == Shard(0);
  const std::string& tensor = fault.reduction.tensor;
  if (gathers && fault.reduction.axis == Axis::kTp && (tensor == "d_y_TD" || tensor == "x_TD")) {
    return "";
  }
  return fmt::format(
      "{} is gathered nowhere here; {}", ToText(fault.reduction),
      gathers ? "this layout has d_y_TD@tp, x_TD@tp" : "this layout has no sequence parallelism");
}

}  // namespace

std::vector<std::string> FaultForms() {
  std::vector<std::string> forms;
  for (const Form& form : kForms) {
    forms.push_back(FormText(form));
  }
  return forms;
}

std::string ToText(const Fault& fault) {
  const Form& form = FormOf(fault.kind);
  const bool at_reduction = form.place == Place::kReduction && fault.tensor.empty();
  return Joined(form.word, ArgumentText(fault, form.argument),
                at_reduction ? ToText(fault.reduction) : fault.tensor);
}

Fault ParseFault(std::string_view text, const std::string& where) {
  std::istringstream stream{std::string(text)};
  std::vector<std::string> words;
  for (std::string word; stream >> word;) {
    words.push_back(word);
  }
  const auto refuse = [&]() -> void {
    throw Error(where, fmt::format("\"{}\" is no fault; {}", text, Grammar()));
  };
  const auto* const form = std::find_if(kForms.begin(), kForms.end(), [&](const Form& f) {
    return !words.empty() && f.word == words[0];
  });
  if (form == kForms.end()) {
    refuse();
  }
  const bool takes_argument = form->argument != Argument::kNone;
  const bool takes_place = form->place != Place::kNone;
  if (words.size() != 1U + (takes_argument ? 1U : 0U) + (takes_place ? 1U : 0U)) {
    refuse();
  }
  if (takes_argument && takes_place && LooksLikePlace(words[1])) {
    std::swap(words[1], words[2]);
  }
  Fault fault{.kind = form->kind};
  if (takes_place) {
    const std::string& place = words.back();
    if (form->place == Place::kTensor || (TakesCounts(form->kind) && place == kCounts)) {
      if (!LooksLikePlace(place) || place.find('@') != std::string::npos) {
        refuse();
      }
      fault.tensor = place;
    } else if (place.find('@') == std::string::npos) {
      refuse();
    } else {
      fault.reduction = ParseReduction(place, where);
    }
  }
  if (takes_argument) {
    ReadArgument(fault, form->argument, words[1], where);
  }
  return fault;
}

std::string FindMisfit(const Fault& fault, const StepContract& contract) {
  const Form& form = FormOf(fault.kind);
  const std::int64_t world = contract.meshes.dense.WorldSize();
  if (form.argument == Argument::kRank && fault.rank >= world) {
    return fmt::format("{} {}: the ranks are 0 to {}", form.word, fault.rank, world - 1);
  }
  if (fault.kind == Kind::kDropGather) {
    return FindGatherMisfit(fault, contract);
  }
  if (form.place != Place::kNone) {
    return fault.tensor.empty() ? FindReductionMisfit(fault, contract)
                                : FindTensorMisfit(fault, contract);
  }
  switch (fault.kind) {
    case Kind::kDropAll: {
      const std::vector<Reduction> owed = contract.Owed();
      return std::any_of(owed.begin(), owed.end(),
                         [&](const Reduction& r) { return IsOfParameter(r, contract); })
                 ? ""
                 : "drop-all: no parameter is owed a sum here";
    }
    case Kind::kLosePath:
    case Kind::kDoublePath:
      return fault.name == "shared" && contract.Find("d_shared_w1_FD") == nullptr
                 ? fmt::format("{}: the model has no shared experts", ToText(fault))
                 : "";
    case Kind::kLeakSlots:
      return contract.meshes.dense.SizeOf(Axis::kTp) > 1 &&
                     contract.meshes.expert.SizeOf(Axis::kEtp) == 1
                 ? ""
                 : "leak-slots: every rank computes all slots of its tokens here";
    default:
      return "";
  }
}

Model OtherModel(Model model, const std::string& key) {
  if (key == "score_function") {
    model.score_function = model.score_function == ScoreFunction::kSoftmax
                               ? ScoreFunction::kSigmoid
                               : ScoreFunction::kSoftmax;
  } else if (key == "score_placement") {
    model.score_placement = model.score_placement == ScorePlacement::kBeforeExperts
                                ? ScorePlacement::kAfterExperts
                                : ScorePlacement::kBeforeExperts;
  } else if (key == "route_norm") {
    model.route_norm = !model.route_norm;
  } else if (key == "route_scale") {
    model.route_scale = model.route_scale == 1.0 ? 1.5 : 1.0;
  }
  return model;
}

bool IsOfParameter(const Reduction& reduction, const StepContract& contract) {
  const ContractTensor* tensor = contract.Find(reduction.tensor);
  return tensor != nullptr && tensor->result && tensor->name != "y_TD" && tensor->name != "d_x_TD";
}

std::optional<std::size_t> DimOf(std::string_view tensor, std::string_view units) {
  const std::string_view suffix = tensor.substr(tensor.rfind('_') + 1);
  const char letter = units == "experts" ? 'E' : units == "tokens" ? 'T' : 'F';
  const std::size_t dim = suffix.find(letter);
  return dim == std::string_view::npos ? std::nullopt : std::optional(dim);
}

}  // namespace moe
