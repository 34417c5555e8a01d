#include "harness/layout/fault.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <sstream>
#include <vector>

#include "harness/base/error.h"

namespace moe {
namespace {

constexpr std::string_view kGrammar =
    "a fault reads \"drop R\", \"repeat R\", \"mean R\", \"wrong-group AXIS R\" or \"skip-rank "
    "RANK R\" "
    "with R a reduction such as d_gate_ED@tp";

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

std::vector<std::string> ToTexts(const std::vector<Reduction>& reductions) {
  std::vector<std::string> texts;
  for (const Reduction& reduction : reductions) {
    texts.push_back(ToText(reduction));
  }
  return texts;
}

}  // namespace

std::string ToText(const Fault& fault) {
  const std::string reduction = ToText(fault.reduction);
  switch (fault.kind) {
    case Fault::Kind::kDrop:
      return "drop " + reduction;
    case Fault::Kind::kRepeat:
      return "repeat " + reduction;
    case Fault::Kind::kMean:
      return "mean " + reduction;
    case Fault::Kind::kWrongGroup:
      return fmt::format("wrong-group {} {}", ToText(fault.wrong_axis), reduction);
    case Fault::Kind::kSkipRank:
      return fmt::format("skip-rank {} {}", fault.rank, reduction);
  }
  return "";
}

Fault ParseFault(std::string_view text, const std::string& where) {
  std::istringstream stream{std::string(text)};
  std::vector<std::string> words;
  for (std::string word; stream >> word;) {
    words.push_back(word);
  }
  const auto refuse = [&]() -> void {
    throw Error(where, fmt::format("\"{}\" is no fault; {}", text, kGrammar));
  };
  if (words.empty()) {
    refuse();
  }
  const bool takes_argument = words[0] == "wrong-group" || words[0] == "skip-rank";
  if (words.size() != (takes_argument ? 3U : 2U)) {
    refuse();
  }
  if (takes_argument && words[1].find('@') != std::string::npos) {
    std::swap(words[1], words[2]);
  }
  if (words.back().find('@') == std::string::npos) {
    refuse();
  }
  Fault fault;
  fault.reduction = ParseReduction(words.back(), where);
  if (words[0] == "drop") {
    fault.kind = Fault::Kind::kDrop;
  } else if (words[0] == "repeat") {
    fault.kind = Fault::Kind::kRepeat;
  } else if (words[0] == "mean") {
    fault.kind = Fault::Kind::kMean;
  } else if (words[0] == "wrong-group") {
    fault.kind = Fault::Kind::kWrongGroup;
    const auto axis = AxisFromText(words[1]);
    if (!axis) {
      throw Error(where,
                  fmt::format("\"{}\" is no axis; use dp_replicate, dp_shard, cp, tp, edp, ep or "
                              "etp",
                              words[1]));
    }
    fault.wrong_axis = *axis;
  } else if (words[0] == "skip-rank") {
    fault.kind = Fault::Kind::kSkipRank;
    const auto [end, code] =
        std::from_chars(words[1].data(), words[1].data() + words[1].size(), fault.rank);
    if (code != std::errc{} || end != words[1].data() + words[1].size() || fault.rank < 0) {
      throw Error(where, fmt::format("\"{}\" is no rank; use a whole number from 0", words[1]));
    }
  } else {
    refuse();
  }
  return fault;
}

std::string FindMisfit(const Fault& fault, const StepContract& contract) {
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
  if (fault.kind == Fault::Kind::kWrongGroup) {
    const Axis axis = fault.wrong_axis;
    if (axis == fault.reduction.axis) {
      return fmt::format("wrong-group {}: {} is the right axis of {}", ToText(axis), ToText(axis),
                         ToText(fault.reduction));
    }
    if (contract.meshes.dense.SizeOf(axis) * contract.meshes.expert.SizeOf(axis) == 1) {
      return fmt::format("wrong-group {}: the axis has size 1 here", ToText(axis));
    }
  }
  const std::int64_t world = contract.meshes.dense.WorldSize();
  if (fault.kind == Fault::Kind::kSkipRank && fault.rank >= world) {
    return fmt::format("skip-rank {}: the ranks are 0 to {}", fault.rank, world - 1);
  }
  return "";
}

}  // namespace moe
