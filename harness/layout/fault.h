// Planted faults: what goes wrong at one named place of the step. cases/README.md lists them with
// what the judge should say of each.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/layout/step_graph.h"

namespace moe {

struct Fault {
  enum class Kind {
    // At a reduction R, such as d_gate_ED@tp.
    kDrop,        // the sum does not happen
    kRepeat,      // it happens once more than owed
    kMean,        // its result is divided by the number of ranks that took part
    kWrongGroup,  // it goes over another axis
    kSkipRank,    // one rank sends zeros instead of its share
    kDoubleRank,  // one rank sends twice its share
    kMisread,     // it reads the memory of a transposed view as if it lay in order
    // At all reductions of all parameters at once.
    kDropAll,
    // At a result X, when the step is over.
    kScale,      // times a factor
    kPermute,    // local experts, tokens or hidden units in another order
    kMisplace,   // each rank holds the shard of its neighbour on an axis
    kStaleRank,  // one rank holds something else
    kRound,      // rounded clearly more coarsely than the dtype
    kCorrupt,    // three elements of one rank are something else
    kNan,        // one element of one rank is NaN
    // At a parameter's gradient X, before its sums.
    kLocalNorm,    // divided by the rank's own share of the rows instead of the mean share
    kIdleGarbage,  // where a rank's experts got no rows, their gradient is not zero
    // On a path of the backward pass: "gate", "routed", "shared", "scores".
    kLosePath,
    kDoublePath,
    // Between the collectives.
    kDropGather,   // rows of other ranks are zeros: d_y_TD@tp, x_TD@tp
    kShuffleRows,  // rows reach the experts in another order than they go back in
    kSplitRows,    // the border between two experts' rows is off by one
    kLeakSlots,    // the scores of slots that other ranks compute get a gradient here
    // The step computes another model than it says.
    kModel,
  };

  Kind kind = Kind::kDrop;
  Reduction reduction;    // the kinds at a reduction, and kDropGather
  std::string tensor;     // the kinds at a tensor, and the rank kinds at tokens_per_expert_E
  Axis axis = Axis::kTp;  // kWrongGroup: summed over; kMisplace
  std::int64_t rank = 0;  // kSkipRank, kDoubleRank, kStaleRank: a rank of the world
  double factor = 1.0;    // kScale
  std::string name;       // kPermute: "experts", "tokens", "hidden"; a path; a key of the model

  bool operator==(const Fault&) const = default;
};

// "drop d_gate_ED@tp", "wrong-group ep d_gate_ED@tp", "skip-rank 1 d_gate_ED@tp", "drop-all",
// "scale 0.5 d_w1_EFD", "permute experts d_w1_EFD", "misplace ep d_w1_EFD", "lose-path gate",
// "shuffle-rows", "model route_norm": the word, what it takes, the place.
std::string ToText(const Fault& fault);

// Reads such a text; the argument may stand before or after the place, and a factor may be written
// "1/3". Throws Error(where, ...) for anything else.
Fault ParseFault(std::string_view text, const std::string& where);

// Every form of such a text, one a line: "drop R", "scale F X", ...
std::vector<std::string> FaultForms();

// Why the fault cannot be planted in this step: a tensor, sum, axis, rank or path that does not
// exist there (the sentence lists those that do); empty when it can. A sum that the contract lists
// as settled can be planted at: dropping it changes nothing.
std::string FindMisfit(const Fault& fault, const StepGraph& graph);

// The model that a step with `model KEY` planted computes: `model` with that option changed;
// unchanged for "expert_bias", where the step weighs by other scores than the model has a name for.
Model OtherModel(Model model, const std::string& key);

// Whether the reduction is one of a parameter's gradient: those that drop-all drops.
bool IsOfParameter(const Reduction& reduction);

// The dimension of a tensor that holds "experts", "tokens" or "hidden" units, going by the suffix
// of its name; nothing when it has none.
std::optional<std::size_t> DimOf(std::string_view tensor, std::string_view units);

}  // namespace moe
