#include "harness/layout/fault.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <span>
#include <sstream>
#include <vector>

#include "harness/base/error.h"

namespace moe {
namespace {

using Kind = Fault::Kind;

// Paths at whose head a step can lose or double what comes along them.
constexpr std::array kPaths = {Path::kGate, Path::kRouted, Path::kShared, Path::kScores};
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

std::vector<std::string_view> PathNames() {
  std::vector<std::string_view> names;
  for (const Path path : kPaths) {
    names.push_back(ToText(path));
  }
  return names;
}

std::string LetterOf(Argument argument) {
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
      return fmt::format("{}", fmt::join(PathNames(), "|"));
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

std::string OneOf(const std::string& text, std::span<const std::string_view> known,
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
      fault.name = OneOf(text, PathNames(), "path", where);
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
    if (form->place == Place::kTensor ||
        (TakesCounts(form->kind) && place == tensor::tokens_per_expert_E)) {
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

std::optional<std::size_t> DimOf(std::string_view tensor, std::string_view units) {
  const TensorRow* row = FindTensor(tensor);
  if (row == nullptr || units == "tokens" || units == "experts") {
    return row == nullptr ? std::nullopt : row->PlaceOf(units == "tokens" ? Dim::kT : Dim::kE);
  }
  const auto of_experts = row->PlaceOf(Dim::kF);
  return of_experts ? of_experts : row->PlaceOf(Dim::kS);
}

}  // namespace moe
