// What is said of one judged tensor: verdict, cause and the evidence for it, as data. The words are
// report/'s.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness/explain/explanation.h"
#include "harness/layout/step_contract.h"
#include "harness/measure/measured.h"
#include "harness/measure/routing.h"

namespace moe {

enum class Verdict { kPass, kFail, kVacuous, kSkipped, kError };
std::string_view ToText(Verdict verdict);  // "pass", "fail", "vacuous", "skipped", "error"

// Why a verdict is what it is, where no cause says it.
enum class Reason {
  kNone,
  // vacuous
  kMissing,        // the dump says why: `reason_given`
  kNotNamed,       // owed by the model, neither dumped nor named in not_dumped
  kNoGradients,    // no gradient was dumped at all
  kZero,           // zero in the reference
  kBelowRounding,  // no larger than its rounding error in this dtype
  kIdleExpert,     // an expert got no tokens: `expert`
  // fail, unexplained
  kOtherChoice,       // tokens are routed otherwise: evidence.flip
  kTooLarge,          // its contributions do not fit in memory
  kTooSmall,          // evidence.too_small
  kCoarserAsAWhole,   // only as a whole, by errors like those of coarser arithmetic
  kNoFactorAsAWhole,  // only as a whole, and its slices share no factor
  kAloneInPrecision,  // errors like those of arithmetic in evidence.coarse, in this tensor alone
};
std::string_view ToText(Reason reason);  // "missing", "not_named", ...

struct Coordinate {
  Axis axis = Axis::kTp;
  std::int64_t at = 0;
};

// What a share is: what a rank's tokens give, a slice of the hidden units, an ep rank's experts.
enum class ShareKind { kTokens, kHiddenUnits, kExperts };
std::string_view ToText(ShareKind kind);  // "tokens", "hidden_units", "experts"

// How often a rank's slice holds each share, by least squares.
struct HeldShares {
  struct Share {
    std::vector<Coordinate> of;
    double times = 0.0;
  };
  std::vector<std::int64_t> ranks;  // that hold the slice
  std::vector<Coordinate> at;       // where they are along the axes
  std::vector<Share> shares;
  ShareKind kind = ShareKind::kTokens;
  double residual = 0.0;  // relative
  double condition = 0.0;
};

// What the call log says of one sum.
struct CallFact {
  enum class Kind {
    kAbsent,   // in the contract and not in the log
    kStray,    // in the log and not in the contract
    kCounted,  // in both, so many times
  };
  Kind kind = Kind::kAbsent;
  Reduction sum;
  bool owed = true;
  std::int64_t times = 0;   // in the log
  std::int64_t logged = 0;  // sums in the log
};
std::string_view ToText(CallFact::Kind kind);  // "absent", "stray", "counted"

// A claim of the dump that would be wrong if the gradient were right.
enum class DoubtedClaim {
  kNone,
  kReplicated,  // it may be P there
  kPartial,     // it may be R there
  kUnscaled,    // it may lack a scale
};
std::string_view ToText(DoubtedClaim claim);  // "replicated", ...

// Why a fit proves nothing.
struct TooSmall {
  enum class Kind {
    kOneNumber,  // fewer than two numbers of the slice are other than zero
    kFewNumbers,
    kAlikeShares,
  };
  Kind kind = Kind::kOneNumber;
  std::int64_t numbers = 0;  // that are other than zero; kFewNumbers: of the slice
  std::int64_t of = 0;       // numbers of the slice; else shares
  std::vector<Axis> axes;
  double condition = 0.0;
};

// Evidence for people and programs; what does not apply stays empty.
struct Evidence {
  std::vector<std::pair<std::int64_t, double>> errors;  // relative, by rank that holds a wrong one
  UnitPlace worst;
  std::optional<MeasuredTensor::Floors> floors;
  std::optional<MeasuredTensor::Scale> scale;          // where it is wrong as a whole only
  std::optional<MeasuredTensor::ReplicaGap> replicas;  // where that is all there is to say
  std::optional<ElementPlace> element;                 // the first that is corrupted
  std::optional<UnitPlace> not_zero;                   // the first that should be zero
  std::optional<RoutingComparison::Flip> flip;
  std::optional<CountComparison::Miscount> miscount;
  std::vector<HeldShares> held;
  bool fits_every_rank = false;  // the cause gives what every wrong rank holds, to `residual`
  bool on_some_ranks = false;    // others, which it might have reached, are right
  std::vector<CallFact> calls;
  DoubtedClaim doubt = DoubtedClaim::kNone;
  std::vector<std::string> factor_is;  // "the size of ep", "1 over top_k"
  std::vector<Axis> same_ranks;        // axes of the other view whose groups are the same ranks
  std::optional<TooSmall> too_small;
  std::string coarse;        // the dtype whose arithmetic the errors look like
  std::string option_value;  // of kWrongFormula
};

struct Finding {
  std::string tensor;
  Verdict verdict = Verdict::kPass;
  Explanation explanation;
  // kAmbiguous: the causes that give the same numbers. Beside a cause: others that would, and are
  // the longer story.
  std::vector<Explanation> candidates;
  Reason reason = Reason::kNone;
  std::string reason_given;         // of the dump itself, for what it lacks
  std::int64_t expert = -1;         // of kIdleExpert
  double error = 0.0;               // largest relative L2 error of a slice
  double tolerance = 0.0;           // allowed there
  double residual = 0.0;            // what the cause leaves unexplained, relative
  std::vector<std::int64_t> ranks;  // that hold a wrong slice
  Evidence evidence;
};

}  // namespace moe
