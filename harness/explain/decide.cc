#include "harness/explain/decide.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <iterator>
#include <memory>
#include <utility>

#include "harness/base/tensor_table.h"
#include "harness/base/tensors.h"
#include "harness/explain/call_log.h"
#include "harness/explain/costs.h"
#include "harness/explain/factor_causes.h"
#include "harness/explain/formula_causes.h"
#include "harness/explain/joint.h"
#include "harness/explain/order_causes.h"
#include "harness/explain/precision_causes.h"
#include "harness/explain/replica_sums.h"
#include "harness/explain/share_fit.h"
#include "harness/explain/sum_causes.h"
#include "harness/explain/value_causes.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

// Not to know why: every wrong unit holds something else.
Fit Unexplained(const Suspect& suspect) {
  const std::vector<Fit> fits =
      Test(suspect, {{.explanation = {.cause = Cause::kUnexplained},
                      .cost = kUnexplainedCost,
                      .predict =
                          [](const Piece& piece, Prediction& prediction) {
                            prediction.values = piece.want;
                            for (const bool wrong : piece.unit_is_wrong) {
                              prediction.free.insert(prediction.free.end(), piece.unit_size, wrong);
                            }
                            return true;
                          },
                      .reach = Hypothesis::Reach::kWrongHolders}});
  return fits.empty() ? Fit{.explanation = {.cause = Cause::kUnexplained}, .cost = kUnexplainedCost}
                      : fits.front();
}

// A failing tensor and all that may be wrong with it.
class Case {
 public:
  Case(Finding& finding, const MeasuredTensor& tensor, const Manifest& manifest, Ledger& ledger,
       const Witnesses& witnesses)
      : finding_(finding),
        suspect_(tensor, manifest, ledger),
        log_(witnesses.graph, witnesses.calls),
        contract_(witnesses.graph == nullptr ? nullptr : &witnesses.graph->contract()),
        sums_(suspect_, contract_) {}

  void Emit();
  void EmitAll();  // what Emit found not worth asking too
  void Add(std::vector<Fit> fits);
  void DropWhatDoesNotShow(const std::vector<std::unique_ptr<Case>>& cases, bool d_x_is_judged);
  void Name(const Fit& fit, const std::vector<double>& odds);

  Finding& finding() { return finding_; }
  const Suspect& suspect() const { return suspect_; }
  const std::vector<Fit>& fits() const { return fits_; }

 private:
  bool IsSettled(double least_cost) const;
  double WitnessCost(const Explanation& explanation) const;
  const SumCauses::Plan* PlanOf(const Fit& fit) const;
  std::optional<TooSmall> WhyTooSmall(const Fit& fit) const;
  void Describe(const Fit& fit);
  bool IsOfSumsOrFactors(const Fit& fit) const;

  Finding& finding_;
  Suspect suspect_;
  CallLog log_;
  const StepContract* contract_;
  SumCauses sums_;
  std::vector<Fit> fits_;
  bool asked_all_ = false;
};

// A sum, or a division, that the log shows or does not show.
double Case::WitnessCost(const Explanation& explanation) const {
  if (!log_.IsKnown()) {
    return 0.0;
  }
  const std::string& name = suspect_.name();
  const auto all = [&](const auto& shows) {
    return std::all_of(explanation.axes.begin(), explanation.axes.end(), shows);
  };
  const auto odds = [](bool shows) { return shows ? -kWitnessOdds : kWitnessOdds; };
  if (explanation.cause == Cause::kDoubleSum) {
    return odds(all([&](Axis axis) { return log_.ShowsRepeat(name, axis); }));
  }
  if (explanation.cause == Cause::kMeanForSum) {
    return odds(all([&](Axis axis) { return log_.ShowsMean(name, axis); }));
  }
  if (explanation.cause == Cause::kWrongGroup) {
    return odds(log_.ShowsStray(name, explanation.axes.front(), explanation.used.front()));
  }
  return 0.0;
}

// Factors that are fitted in several ways are one.
bool IsTheSame(const Explanation& a, const Explanation& b) {
  Explanation other = b;
  if (a.factor && b.factor && std::abs(*a.factor - *b.factor) <= 1e-2 * std::abs(*b.factor)) {
    other.factor = a.factor;
  }
  return a == other;
}

// One of each explanation, the best.
void Case::Add(std::vector<Fit> fits) {
  for (Fit& fit : fits) {
    fit.cost += WitnessCost(fit.explanation);
    const auto known = std::find_if(fits_.begin(), fits_.end(), [&](const Fit& other) {
      return IsTheSame(other.explanation, fit.explanation);
    });
    if (known == fits_.end()) {
      fits_.push_back(std::move(fit));
    } else if (fit.Score() < known->Score()) {
      *known = std::move(fit);
    }
  }
  // Where nothing rounds, what gives every bit leaves no room for what does not.
  const auto is_exact = [](const Fit& fit) { return fit.misfit.is_exact; };
  if (suspect_.measured().is_exact && std::any_of(fits_.begin(), fits_.end(), is_exact)) {
    std::erase_if(fits_, [&](const Fit& fit) { return !is_exact(fit); });
  }
}

// Sums and factors first. A rarer family, whose cheapest member could not come near what is known
// already and leaves no more than a right step does, is not asked, unless it might be the one story
// behind several tensors (EmitAll).
void Case::Emit() {
  Add(sums_.Find());
  Add(FindFactorCauses(suspect_, contract_));
  if (!IsSettled(kRareCost)) {
    EmitAll();
  }
}

void Case::EmitAll() {
  if (std::exchange(asked_all_, true)) {
    return;
  }
  Add(FindMisplacedShards(suspect_));
  Add(FindPermutations(suspect_));
  Add(FindLocalNormalisers(suspect_, sums_));
  Add(FindSourceShares(suspect_));
  Add(FindLeakedSlots(suspect_));
  Add(FindRanksOfShares(sums_, suspect_));
  Add(FindCoarseStorage(suspect_));
  Add(FindLeftovers(suspect_));
  Add(FindCorruption(suspect_));
  Add(FindReplicaSums(suspect_));
  Add(FindStaleReplicas(suspect_));
  if (!IsSettled(kUnexplainedCost)) {
    Add(FindCoarseArithmetic(suspect_));
    Add({Unexplained(suspect_)});
  }
}

bool Case::IsSettled(double least_cost) const {
  return std::any_of(fits_.begin(), fits_.end(), [&](const Fit& fit) {
    return fit.misfit.is_quiet && fit.cost + kAmbiguousOdds < least_cost;
  });
}

// What happens to the scores happens to what they give d_x_TD.
void Case::DropWhatDoesNotShow(const std::vector<std::unique_ptr<Case>>& cases,
                               bool d_x_is_judged) {
  if (!d_x_is_judged) {
    return;
  }
  const auto d_x = std::find_if(cases.begin(), cases.end(), [](const auto& one) {
    return one->suspect().name() == tensor::d_x_TD;
  });
  std::erase_if(fits_, [&](const Fit& fit) {
    return fit.must_reach_d_x &&
           (d_x == cases.end() ||
            std::none_of((*d_x)->fits().begin(), (*d_x)->fits().end(), [&](const Fit& other) {
              return ShareAFault(suspect_.name(), fit.explanation, tensor::d_x_TD,
                                 other.explanation);
            }));
  });
  if (fits_.empty()) {
    Add({Unexplained(suspect_)});
  }
}

const SumCauses::Plan* Case::PlanOf(const Fit& fit) const {
  const auto plan =
      std::find_if(sums_.plans().begin(), sums_.plans().end(),
                   [&](const SumCauses::Plan& p) { return fit.spread && p.spread == *fit.spread; });
  return plan == sums_.plans().end() ? nullptr : &*plan;
}

bool Case::IsOfSumsOrFactors(const Fit& fit) const {
  switch (fit.explanation.cause) {
    case Cause::kMissingSum:
    case Cause::kDoubleSum:
    case Cause::kMeanForSum:
    case Cause::kWrongGroup:
    case Cause::kWrongScale:
    case Cause::kDroppedContribution:
    case Cause::kDoubledContribution:
    case Cause::kLostPath:
    case Cause::kDoubledPath:
      return true;
    case Cause::kNone:
    case Cause::kLocalNormaliser:
    case Cause::kPermuted:
    case Cause::kMisplacedShard:
    case Cause::kStaleReplica:
    case Cause::kLeakedSlots:
    case Cause::kPrecision:
    case Cause::kWrongFormula:
    case Cause::kCorruption:
    case Cause::kUnexplained:
    case Cause::kAmbiguous:
      return false;
  }
  return false;
}

// Fewer numbers than shares, or shares that are nearly the same: then a fit proves nothing.
std::optional<TooSmall> Case::WhyTooSmall(const Fit& fit) const {
  if (!IsOfSumsOrFactors(fit)) {
    return std::nullopt;
  }
  const Piece& piece = suspect_.Load(0);
  std::optional<TooSmall> reason = TooFewElements(piece);
  const SumCauses::Plan* plan = PlanOf(fit);
  if (!reason && plan != nullptr && !fit.explanation.axes.empty()) {
    reason = FitShares(sums_, suspect_, piece, *plan, fit.explanation.axes).obstacle;
  }
  return reason;
}

// Axes of the other view that are the same ranks as `axes`.
std::vector<Axis> SameRanks(const Meshes& meshes, const std::vector<Axis>& axes) {
  const Mesh& own = meshes.With(axes.front());
  const bool is_one_view =
      std::all_of(axes.begin(), axes.end(), [&](Axis axis) { return own.Has(axis); });
  if (!is_one_view) {
    return {};
  }
  const Mesh& other = &own == &meshes.dense ? meshes.expert : meshes.dense;
  for (const auto& product : ProductsOf(other.axes)) {
    const bool is_trivial = std::any_of(product.begin(), product.end(),
                                        [&](Axis axis) { return other.SizeOf(axis) == 1; });
    bool same = !is_trivial;
    for (std::int64_t rank = 0; same && rank < own.WorldSize(); ++rank) {
      auto here = own.GroupOf(rank, axes);
      auto there = other.GroupOf(rank, product);
      std::sort(here.begin(), here.end());
      std::sort(there.begin(), there.end());
      same = here == there;
    }
    if (same && product != axes) {
      return product;
    }
  }
  return {};
}

void Case::Describe(const Fit& fit) {
  Evidence& evidence = finding_.evidence;
  finding_.explanation = fit.explanation;
  finding_.residual = fit.misfit.residual;
  evidence.on_some_ranks = !fit.everywhere && IsOfSumsOrFactors(fit);
  evidence.element = fit.element;
  evidence.not_zero = fit.not_zero;
  evidence.option_value = fit.option_value;
  if (fit.explanation.factor) {
    evidence.factor_is = MeaningsOf(*fit.explanation.factor, suspect_.manifest());
  }
  const SumCauses::Plan* plan = PlanOf(fit);
  if (plan != nullptr && !fit.explanation.axes.empty()) {
    evidence.held = SharesHeld(sums_, suspect_, *plan, fit.explanation);
  } else {
    evidence.fits_every_rank = !fit.element && !fit.not_zero;
  }
  evidence.calls = log_.FactsOn(suspect_.name(), fit.explanation);
  if (contract_ == nullptr && !fit.explanation.axes.empty() &&
      fit.explanation.cause != Cause::kMisplacedShard) {
    evidence.same_ranks = SameRanks(suspect_.manifest().meshes, fit.explanation.axes);
  }
}

void Case::Name(const Fit& fit, const std::vector<double>& odds) {
  std::vector<const Fit*> rivals;
  for (std::size_t other = 0; other < fits_.size(); ++other) {
    if (&fits_[other] != &fit && odds[other] < kAmbiguousOdds) {
      rivals.push_back(&fits_[other]);
    }
  }
  const bool is_ambiguous = !rivals.empty() && fit.explanation.cause != Cause::kUnexplained;
  if (const auto too_small = WhyTooSmall(fit)) {
    finding_.explanation = {.cause = is_ambiguous ? Cause::kAmbiguous : Cause::kUnexplained};
    finding_.reason = Reason::kTooSmall;
    finding_.evidence.too_small = too_small;
    finding_.candidates.push_back(fit.explanation);
    for (const Fit* rival : rivals) {
      finding_.candidates.push_back(rival->explanation);
    }
    return;
  }
  if (fit.explanation.cause == Cause::kUnexplained) {
    finding_.explanation = fit.explanation;
    finding_.evidence.replicas = suspect_.measured().replicas;
    const auto coarse = std::find_if(fits_.begin(), fits_.end(), [](const Fit& other) {
      return other.explanation.cause == Cause::kPrecision &&
             DtypeFromText(other.explanation.option);
    });
    if (coarse != fits_.end()) {
      finding_.reason = Reason::kAloneInPrecision;
      finding_.evidence.coarse = coarse->explanation.option;
    }
    const auto plan = std::find_if(sums_.plans().begin(), sums_.plans().end(),
                                   [](const auto& one) { return !one.sums.empty(); });
    if (plan != sums_.plans().end() && suspect_.Pieces() > 0) {
      if (auto held = SharesHeldAt(sums_, suspect_, suspect_.Load(0), *plan, plan->sums, "")) {
        finding_.evidence.held = {std::move(*held)};
      }
    }
    return;
  }
  if (is_ambiguous) {
    finding_.explanation = {.cause = Cause::kAmbiguous};
    finding_.residual = fit.misfit.residual;
    finding_.candidates = {fit.explanation};
    for (const Fit* rival : rivals) {
      finding_.candidates.push_back(rival->explanation);
    }
    return;
  }
  Describe(fit);
  // A factor that is the size of something else too gives the same numbers.
  if (!log_.IsKnown() &&
      (fit.explanation.cause == Cause::kDoubleSum || fit.explanation.cause == Cause::kMeanForSum)) {
    for (const Fit& other : fits_) {
      if (other.names_a_factor && other.explanation.path == fit.explanation.path &&
          std::abs(other.misfit.nats - fit.misfit.nats) < kAmbiguousOdds) {
        finding_.candidates.push_back(other.explanation);
        finding_.evidence.factor_is = MeaningsOf(*other.explanation.factor, suspect_.manifest());
      }
    }
  }
}

// Token counts as a tensor like others: whole numbers, of which none may be off.
MeasuredTensor CountsAsTensor(const Measured& measured) {
  MeasuredTensor counts(*measured.observed_counts);
  counts.is_exact = true;
  counts.is_wrong = true;
  for (const ObservedTensor::Holder& holder : counts.observed.holders()) {
    const std::vector<double> got = counts.observed.ReadUnit(holder, 0);
    MeasuredTensor::Unit unit;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto expert = static_cast<std::size_t>(holder.slice.index[0][i]);
      const auto want = static_cast<double>(measured.tokens_per_expert_E[expert]);
      unit.error = std::hypot(unit.error, got[i] - want);
      unit.want = std::hypot(unit.want, want);
    }
    constexpr double kOfWholeNumbers = 0.25;
    unit.deviation = kOfWholeNumbers / (2.0 * kSafety);
    unit.allowed = kOfWholeNumbers;
    unit.is_wrong = unit.error != 0.0;
    counts.units.push_back({unit});
  }
  return counts;
}

class StepDecision {
 public:
  StepDecision(const Measured& measured, const Witnesses& witnesses)
      : measured_(measured),
        manifest_(*measured.manifest),
        witnesses_(witnesses),
        ledger_(manifest_, measured.problem, measured.routing) {}

  Judgement Run();

 private:
  void JudgeRouting();
  void JudgeCounts();
  void JudgeTensor(const MeasuredTensor& tensor);
  void Explain();
  bool IsOpen(const std::vector<Accused>& accused, const JointChoice& choice) const;
  std::vector<Accused> AllAccused() const;
  void Accuse(Finding& finding, const MeasuredTensor& tensor, const Witnesses& witnesses);
  void JudgeWhatIsNotThere();
  void DoubtClaims();

  const Measured& measured_;
  const Manifest& manifest_;
  const Witnesses& witnesses_;
  const Witnesses no_witnesses_;
  Ledger ledger_;
  std::optional<MeasuredTensor> counts_;
  std::deque<Finding> findings_;  // stay where they are
  std::vector<std::unique_ptr<Case>> cases_;
};

void StepDecision::Accuse(Finding& finding, const MeasuredTensor& tensor,
                          const Witnesses& witnesses) {
  if (!ledger_.IsAffordable()) {
    finding.explanation.cause = Cause::kUnexplained;
    finding.reason = Reason::kTooLarge;
    return;
  }
  cases_.push_back(std::make_unique<Case>(finding, tensor, manifest_, ledger_, witnesses));
}

void StepDecision::JudgeRouting() {
  const RoutingComparison& routing = measured_.routing_comparison;
  if (!routing.compared) {
    return;
  }
  Finding finding{.tensor = tensor::topk_expert_TK};
  finding.error =
      static_cast<double>(routing.flipped) / static_cast<double>(manifest_.model.tokens);
  if (routing.first_flip) {
    finding.verdict = Verdict::kFail;
    finding.explanation.cause = Cause::kUnexplained;
    finding.reason = Reason::kOtherChoice;
    finding.ranks = routing.ranks;
    finding.evidence.flip = routing.first_flip;
  }
  findings_.push_back(std::move(finding));
}

void StepDecision::JudgeCounts() {
  if (!measured_.counts) {
    return;
  }
  Finding& finding = findings_.emplace_back(Finding{.tensor = tensor::tokens_per_expert_E});
  if (!measured_.counts->first) {
    return;
  }
  finding.verdict = Verdict::kFail;
  finding.explanation.cause = Cause::kUnexplained;
  finding.error = measured_.counts->error;
  finding.ranks = measured_.counts->ranks;
  finding.evidence.miscount = measured_.counts->first;
  counts_.emplace(CountsAsTensor(measured_));
  const bool is_finite = std::all_of(counts_->units.begin(), counts_->units.end(),
                                     [](const auto& unit) { return std::isfinite(unit[0].error); });
  if (is_finite && ledger_.IsAffordable()) {
    Accuse(finding, *counts_, no_witnesses_);  // the log is of sums of gradients
  }
}

void StepDecision::JudgeTensor(const MeasuredTensor& tensor) {
  Finding& finding = findings_.emplace_back(Finding{.tensor = tensor.name()});
  finding.error = tensor.error;
  finding.tolerance = tensor.tolerance;
  finding.ranks = tensor.ranks;
  if (!tensor.is_wrong) {
    if (!tensor.proves_something()) {
      finding.verdict = Verdict::kVacuous;
      finding.reason = tensor.want_norm == 0.0 ? Reason::kZero : Reason::kBelowRounding;
    }
    return;
  }
  finding.verdict = Verdict::kFail;
  Evidence& evidence = finding.evidence;
  if (tensor.absurd) {
    finding.explanation.cause = Cause::kCorruption;
    finding.error = NAN;
    evidence.element = tensor.absurd;
    return;
  }
  if (tensor.scale.is_wrong) {
    evidence.scale = tensor.scale;
    constexpr double kLargestSpread = 2.0;  // about 1 where all slices are off by one factor
    if (!tensor.scale.leaves_rounding || tensor.scale.spread > kLargestSpread) {
      finding.explanation.cause = Cause::kUnexplained;
      finding.reason =
          tensor.scale.leaves_rounding ? Reason::kNoFactorAsAWhole : Reason::kCoarserAsAWhole;
      return;
    }
    finding.explanation = {.cause = Cause::kWrongScale, .factor = 1.0 + tensor.scale.error};
    return;
  }
  for (const std::int64_t rank : tensor.ranks) {
    evidence.errors.emplace_back(rank, tensor.error_of_rank.at(rank));
  }
  evidence.worst = tensor.worst;
  evidence.floors = tensor.floors;
  Accuse(finding, tensor, witnesses_);
}

std::vector<Accused> StepDecision::AllAccused() const {
  std::vector<Accused> accused;
  for (const auto& one : cases_) {
    accused.push_back({one->suspect().name(), one->fits()});
  }
  return accused;
}

// Whether another formula might be the one story behind all: there are several now, or none, or a
// factor of unknown origin. One tensor alone, while others are right, has no other formula.
bool StepDecision::IsOpen(const std::vector<Accused>& accused, const JointChoice& choice) const {
  if (accused.size() < std::min<std::size_t>(2, measured_.tensors.size())) {
    return false;
  }
  bool is_open = choice.faults > 1;
  for (std::size_t t = 0; t < accused.size(); ++t) {
    const Cause cause = accused[t].fits[choice.chosen[t]].explanation.cause;
    is_open = is_open || cause == Cause::kUnexplained || cause == Cause::kPrecision ||
              cause == Cause::kWrongScale;
  }
  return is_open;
}

void StepDecision::Explain() {
  if (cases_.empty()) {
    return;
  }
  for (const auto& one : cases_) {
    one->Emit();
  }
  const bool d_x_is_judged = measured_.Find(tensor::d_x_TD) != nullptr;
  std::vector<Accused> accused;
  JointChoice choice;
  const auto choose = [&] {
    for (const auto& one : cases_) {
      one->DropWhatDoesNotShow(cases_, d_x_is_judged);
    }
    accused = AllAccused();
    choice = ChooseJointly(accused);
  };
  choose();
  if (choice.faults > 1) {
    for (const auto& one : cases_) {
      one->EmitAll();
    }
    choose();
  }
  if (IsOpen(accused, choice)) {
    FormulaCauses formulas(manifest_, measured_.problem, measured_.routing);
    for (const MeasuredTensor& tensor : measured_.tensors) {
      if (!tensor.is_wrong) {
        formulas.Require(Suspect(tensor, manifest_, ledger_));
      }
    }
    for (const auto& one : cases_) {
      one->Add(formulas.Find(one->suspect()));
    }
    choose();
  }
  for (std::size_t t = 0; t < cases_.size(); ++t) {
    cases_[t]->Name(cases_[t]->fits()[choice.chosen[t]], choice.odds[t]);
  }
}

void StepDecision::JudgeWhatIsNotThere() {
  const auto vacuous = [&](const std::string& tensor, Reason reason) -> Finding& {
    return findings_.emplace_back(
        Finding{.tensor = tensor, .verdict = Verdict::kVacuous, .reason = reason});
  };
  for (const std::string& name : measured_.not_dumped) {
    const auto missing = manifest_.missing.find(name);
    const auto& left_out = manifest_.not_dumped;
    if (missing != manifest_.missing.end()) {
      vacuous(name, Reason::kMissing).reason_given = missing->second;
    } else if (std::find(left_out.begin(), left_out.end(), name) == left_out.end()) {
      vacuous(name, Reason::kNotNamed);
    }
  }
  if (std::none_of(measured_.tensors.begin(), measured_.tensors.end(),
                   [](const MeasuredTensor& tensor) {
                     return TensorOf(tensor.name()).role == Role::kGradient;
                   })) {
    vacuous("gradients", Reason::kNoGradients);
  }
  if (witnesses_.graph != nullptr) {
    for (const std::int64_t expert : measured_.idle_experts) {
      vacuous(tensor::tokens_per_expert_E, Reason::kIdleExpert).expert = expert;
    }
  }
}

// Which claim would be wrong if a gradient were right.
void StepDecision::DoubtClaims() {
  for (Finding& finding : findings_) {
    const Explanation& e = finding.explanation;
    const auto claim = manifest_.tensors.find(finding.tensor);
    if (claim == manifest_.tensors.end() || !e.path.empty()) {
      continue;
    }
    const Mesh& mesh = manifest_.meshes.Of(claim->second.mesh);
    const auto all_are = [&](Placement::Kind kind) {
      return !e.axes.empty() && std::all_of(e.axes.begin(), e.axes.end(), [&](Axis axis) {
        return mesh.Has(axis) && PlacementOn(claim->second.placements, axis).kind == kind;
      });
    };
    if (e.cause == Cause::kMissingSum && all_are(Placement::Kind::kReplicate)) {
      finding.evidence.doubt = DoubtedClaim::kReplicated;
    } else if (e.cause == Cause::kDoubleSum && all_are(Placement::Kind::kPartial)) {
      finding.evidence.doubt = DoubtedClaim::kPartial;
    } else if (e.cause == Cause::kMeanForSum) {
      finding.evidence.doubt = DoubtedClaim::kUnscaled;
    }
  }
}

Judgement StepDecision::Run() {
  JudgeRouting();
  JudgeCounts();
  for (const MeasuredTensor& tensor : measured_.tensors) {
    JudgeTensor(tensor);
  }
  Explain();
  JudgeWhatIsNotThere();
  Judgement judgement{.routing = measured_.routing_comparison,
                      .slots = manifest_.model.tokens * manifest_.model.top_k};
  judgement.routing.observed_routing.reset();
  for (const MeasuredTensor& tensor : measured_.tensors) {
    judgement.measured[tensor.name()] = tensor.figures;
  }
  if (witnesses_.graph == nullptr) {
    DoubtClaims();
    judgement.idle_experts = measured_.idle_experts;
    judgement.foreign = {manifest_, measured_.cast_effects,
                         !CoarserCasts(manifest_).empty() &&
                             !(measured_.tensors.empty() || measured_.tensors.front().is_exact)};
  }
  std::move(findings_.begin(), findings_.end(), std::back_inserter(judgement.findings));
  const auto has = [&](Verdict verdict) {
    return std::any_of(judgement.findings.begin(), judgement.findings.end(),
                       [&](const Finding& finding) { return finding.verdict == verdict; });
  };
  judgement.verdict = has(Verdict::kFail)      ? Verdict::kFail
                      : has(Verdict::kVacuous) ? Verdict::kVacuous
                                               : Verdict::kPass;
  return judgement;
}

}  // namespace

Judgement Decide(const Measured& measured, const Witnesses& witnesses) {
  return StepDecision(measured, witnesses).Run();
}

}  // namespace moe
