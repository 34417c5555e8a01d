#include "harness/explain/judge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <utility>

#include "harness/base/error.h"
#include "harness/explain/claims.h"
#include "harness/explain/diagnose.h"
#include "harness/explain/model_variants.h"
#include "harness/explain/routing.h"
#include "harness/explain/tensor_judge.h"
#include "harness/measure/observed.h"
#include "harness/measure/problem.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

using reference::Estimate;
using reference::Matrix;

// Runs the steps of Judge in order; holds what they share.
class DumpJudge {
 public:
  DumpJudge(const Dump& dump, const TensorSource& problem, const JudgeOptions& options)
      : dump_(dump),
        manifest_(dump.manifest),
        options_(options),
        problem_(MakeProblem(dump.manifest.model, problem)) {}

  Judgement Run();

 private:
  void CompareRouting();
  void RequireFinite(const std::string& name, const Estimate& want) const;
  using OnEstimate =
      std::function<void(const std::string& name, std::int64_t expert, const Estimate& want)>;
  reference::StepResult RunReference(const Manifest& manifest, bool worst_case,
                                     const OnEstimate& on_estimate) const;
  static Estimate AsStored(const Estimate& computed, double unit);
  static void JudgeEstimate(TensorJudge* judge, std::int64_t expert, const Estimate& want);
  std::vector<CastEffect> EffectsOfCasts() const;
  void CheckAgainstGolden() const;
  void CheckThatSomethingWasTested(const reference::StepResult& want);
  TensorJudge* JudgeOf(const std::string& name);
  void Vacuous(const std::string& tensor, const std::string& text);
  void ExplainCounts(Finding& finding, const std::vector<std::int64_t>& tokens_per_expert_E,
                     Ledger& ledger) const;
  void TryModelVariants(const reference::Routing& routing);
  void NameClaims();
  void CheckStoredDtype(const std::string& name) const;

  const Dump& dump_;
  const Manifest& manifest_;
  const JudgeOptions& options_;
  reference::Problem problem_;
  std::optional<reference::Routing> observed_routing_;
  std::map<std::string, std::unique_ptr<TensorJudge>> judges_;
  std::map<std::string, double> reference_squares_;
  Judgement judgement_;
};

TensorJudge* DumpJudge::JudgeOf(const std::string& name) {
  const auto found = judges_.find(name);
  return found == judges_.end() ? nullptr : found->second.get();
}

void DumpJudge::Vacuous(const std::string& tensor, const std::string& text) {
  judgement_.findings.push_back({.tensor = tensor, .verdict = Verdict::kVacuous, .text = text});
}

void DumpJudge::CompareRouting() {
  RoutingComparison comparison =
      moe::CompareRouting(dump_, problem_,
                          {.must_be_decided = options_.contract != nullptr,
                           .is_exact = AllowsNothing(manifest_, options_)});
  judgement_.slots = manifest_.model.tokens * manifest_.model.top_k;
  judgement_.smallest_margin = comparison.smallest_margin;
  judgement_.routing_compared = comparison.finding.has_value();
  if (comparison.finding) {
    judgement_.findings.push_back(std::move(*comparison.finding));
  }
  std::move(comparison.notes.begin(), comparison.notes.end(), std::back_inserter(judgement_.notes));
  observed_routing_ = std::move(comparison.observed_routing);
}

// A golden file speaks of one problem: the reference must still give what it gave when the file was
// made.
void DumpJudge::CheckAgainstGolden() const {
  if (options_.golden == nullptr || observed_routing_) {
    return;
  }
  for (const auto& [name, reference] : options_.golden->reference) {
    const auto squares = reference_squares_.find(name);
    const double norm = squares == reference_squares_.end() ? 0.0 : std::sqrt(squares->second);
    if (std::abs(norm - reference.norm) > 1e-5 * reference.norm) {
      throw Error(dump_.name,
                  fmt::format("is not the problem of its golden file: the reference's {} has norm "
                              "{:.6e} here and {:.6e} there; other inputs, or a golden file to "
                              "regenerate",
                              name, norm, reference.norm));
    }
  }
}

void DumpJudge::RequireFinite(const std::string& name, const Estimate& want) const {
  // Squares are taken of everything.
  constexpr double kLargest = 1e150;
  if (!(want.value.size() == 0 || want.value.cwiseAbs().maxCoeff() < kLargest)) {
    throw Error(dump_.name, fmt::format("has a problem whose {} overflows in float64, so that "
                                        "nothing can be compared; use inputs of ordinary size",
                                        name));
  }
}

// The tensor as it is written, where that is coarser than it is computed: one more rounding.
Estimate DumpJudge::AsStored(const Estimate& computed, double unit) {
  Estimate stored = computed;
  const Matrix rounding = unit * computed.value.cwiseAbs();
  stored.deviation = (computed.deviation.cwiseAbs2() + rounding.cwiseAbs2()).cwiseSqrt();
  if (computed.worst_case.size() > 0) {
    stored.worst_case += rounding;
  }
  if (computed.projection_variance > 0.0) {
    stored.projection_variance += rounding.cwiseProduct(computed.value).squaredNorm();
  }
  return stored;
}

// Without a judge nothing is to be judged.
void DumpJudge::JudgeEstimate(TensorJudge* judge, std::int64_t expert, const Estimate& want) {
  if (judge == nullptr) {
    return;
  }
  if (expert >= 0) {
    judge->JudgeUnit(expert, want.value, want.deviation, want.worst_case);
    judge->BoundScale(want);
    return;
  }
  const bool has_units = judge->observed().HasUnits();
  if (!has_units || want.projection_variance > 0.0) {
    judge->BoundScale(want);
  }
  if (!has_units) {
    judge->JudgeUnit(0, want.value, want.deviation, want.worst_case);
    return;
  }
  for (Eigen::Index unit = 0; unit < want.value.rows(); ++unit) {
    const Estimate row{want.value.row(unit), want.deviation.row(unit),
                       want.worst_case.size() > 0 ? Matrix(want.worst_case.row(unit)) : Matrix()};
    judge->JudgeUnit(unit, row.value, row.deviation, row.worst_case);
    if (want.projection_variance == 0.0) {
      judge->BoundScale(row);
    }
  }
}

// The reference's results with the bounds of a step as `manifest` describes it: each expert's
// gradients as they come, then the whole tensors, whose expert is -1.
reference::StepResult DumpJudge::RunReference(const Manifest& manifest, bool worst_case,
                                              const OnEstimate& on_estimate) const {
  const auto hand_over = [&](const std::string& name, std::int64_t expert,
                             const Estimate& computed) {
    const double unit = StoredUnit(manifest, name);
    on_estimate(name, expert, unit > 0.0 ? AsStored(computed, unit) : computed);
  };
  const reference::StepOptions step{
      .rounding = RoundingOf(manifest),
      .worst_case = worst_case,
      .forced_routing = observed_routing_ ? &*observed_routing_ : nullptr};
  const auto hand_over_all = [&](const reference::Results& results, std::int64_t expert) {
    for (const auto& [name, estimate] : results) {
      hand_over(name, expert, estimate);
    }
  };
  reference::StepResult result = reference::RunStep(
      manifest.model, problem_, step,
      [&](const reference::ExpertGradients& of) { hand_over_all(of.results, of.expert); });
  hand_over_all(result.results, /*expert=*/-1);
  return result;
}

// Against what everything might be off by had the producer declared no coarser cast; takes a second
// run of the reference.
std::vector<CastEffect> DumpJudge::EffectsOfCasts() const {
  Dump plain = dump_;
  for (const auto& [cast, dtype] : CoarserCasts(manifest_)) {
    plain.manifest.casts.erase(cast);
  }
  std::map<std::string, TensorJudge> judges;
  for (const auto& [name, judge] : judges_) {
    judges.try_emplace(name, plain, name, options_);
  }
  RunReference(plain.manifest, /*worst_case=*/false,
               [&](const std::string& name, std::int64_t expert, const Estimate& estimate) {
                 const auto judge = judges.find(name);
                 JudgeEstimate(judge == judges.end() ? nullptr : &judge->second, expert, estimate);
               });
  std::vector<CastEffect> effects;
  for (const TensorInfo& result : ResultsOf(manifest_.model)) {
    const auto judge = judges_.find(result.name);
    if (judge != judges_.end() && judge->second->measured().bound > 0.0) {
      effects.push_back({.tensor = result.name,
                         .with = kSafety * judge->second->measured().bound,
                         .without = kSafety * judges.at(result.name).measured().bound});
    }
  }
  return effects;
}

void DumpJudge::CheckThatSomethingWasTested(const reference::StepResult& want) {
  const auto& left_out = manifest_.not_dumped;
  for (const TensorInfo& result : ResultsOf(manifest_.model)) {
    if (manifest_.tensors.contains(result.name)) {
      continue;
    }
    const auto missing = manifest_.missing.find(result.name);
    if (missing != manifest_.missing.end()) {
      Vacuous(result.name, fmt::format("{} is missing: {}", result.name, missing->second));
    } else if (std::find(left_out.begin(), left_out.end(), result.name) == left_out.end()) {
      Vacuous(result.name,
              fmt::format("{} is owed by the model and neither dumped nor named in not_dumped",
                          result.name));
    }
  }
  const bool any_gradient = std::any_of(judges_.begin(), judges_.end(), [](const auto& entry) {
    return entry.first.starts_with("d_");
  });
  if (!any_gradient) {
    Vacuous("gradients", "no gradient was dumped, so nothing was judged");
  }
  for (const auto& [name, judge] : judges_) {
    const auto finding = std::find_if(judgement_.findings.begin(), judgement_.findings.end(),
                                      [&](const Finding& f) { return f.tensor == name; });
    if (finding->verdict != Verdict::kPass || judge->proves_something()) {
      continue;
    }
    finding->verdict = Verdict::kVacuous;
    finding->text = judge->want_norm() == 0.0
                        ? fmt::format("{} is zero in the reference and proves nothing", name)
                        : fmt::format(
                              "{} is no larger than its rounding error in this dtype and proves "
                              "nothing",
                              name);
  }
  for (std::size_t e = 0; e < want.tokens_per_expert_E.size(); ++e) {
    const auto expert = static_cast<std::int64_t>(e);
    const auto& idle = options_.idle_experts;
    if (want.tokens_per_expert_E[e] > 0 ||
        std::find(idle.begin(), idle.end(), expert) != idle.end()) {
      continue;
    }
    const std::string text =
        fmt::format("expert {} got no tokens, so its gradients are zero and prove nothing", expert);
    if (options_.contract == nullptr) {
      judgement_.notes.push_back(text);
    } else {
      Vacuous("tokens_per_expert_E",
              text + "; change the seed, raise tokens, or list it in idle_experts");
    }
  }
}

// What is stored more coarsely than the step claims to compute has an error that no bound here
// knows of.
void DumpJudge::CheckStoredDtype(const std::string& name) const {
  const auto cast = manifest_.casts.find(name);
  const double declared =
      std::max(UnitRoundoff(manifest_.dtype),
               cast == manifest_.casts.end() ? 0.0 : UnitRoundoff(cast->second));
  for (std::int64_t rank = 0; rank < manifest_.WorldSize(); ++rank) {
    const Dtype stored = dump_.Local(rank, name).dtype;
    if (UnitRoundoff(stored) > declared) {
      throw Error(dump_.name,
                  fmt::format("{} of rank {} is stored in {}, which is coarser than the dtype of "
                              "the step, {}; store it in {} or declare it under casts",
                              name, rank, ToText(stored), ToText(manifest_.dtype),
                              ToText(manifest_.dtype)));
    }
  }
}

// Counts have contributions too: each rank's own tokens.
void DumpJudge::ExplainCounts(Finding& finding,
                              const std::vector<std::int64_t>& tokens_per_expert_E,
                              Ledger& ledger) const {
  const ObservedTensor observed(dump_, finding.tensor);
  Measurement measurement;
  for (const ObservedTensor::Holder& holder : observed.holders()) {
    const std::vector<double> got = observed.ReadUnit(holder, 0);
    double squares = 0.0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto expert = static_cast<std::size_t>(holder.slice.index[0][i]);
      const double error = got[i] - static_cast<double>(tokens_per_expert_E[expert]);
      squares += error * error;
    }
    measurement.error.push_back({std::sqrt(squares)});
    measurement.allowed.push_back({0.25});  // of whole numbers
    measurement.is_wrong.push_back({squares > 0.0});
  }
  const std::string symptom = finding.text;
  const Suspect suspect(observed, measurement, manifest_, ledger);
  // The log is of sums of gradients; counts are not in it.
  Diagnose(suspect, {.calls = {}}, finding);
  const bool is_named = finding.explanation.cause != Cause::kUnexplained;
  finding.text = is_named ? fmt::format("{} ({})", finding.text, symptom) : symptom;
}

// Where something is left unexplained: one option that is another in the step explains all or
// nothing.
void DumpJudge::TryModelVariants(const reference::Routing& routing) {
  std::vector<Finding*> failing;
  bool is_open = false;  // something is unexplained, or y_TD is wrong with others for other reasons
  for (Finding& finding : judgement_.findings) {
    if (finding.verdict == Verdict::kFail && JudgeOf(finding.tensor) != nullptr) {
      failing.push_back(&finding);
      is_open = is_open || finding.explanation.cause == Cause::kUnexplained ||
                (failing.front()->tensor == "y_TD" && failing.size() > 1);
    }
  }
  if (!is_open) {
    return;
  }
  for (const ModelVariant& variant : VariantsOf(manifest_.model)) {
    Manifest manifest = manifest_;
    manifest.model = variant.model;
    Ledger ledger(manifest, problem_, routing);
    if (!ledger.IsAffordable()) {
      return;
    }
    const bool explains = std::all_of(failing.begin(), failing.end(), [&](const Finding* finding) {
      return ledger.Knows(finding->tensor) &&
             JudgeOf(finding->tensor)->IsExplainedBy(manifest, ledger);
    });
    if (!explains) {
      continue;
    }
    for (Finding* finding : failing) {
      finding->explanation = {.cause = Cause::kWrongFormula, .option = variant.option};
      finding->candidates.clear();
      finding->text = fmt::format("wrong formula: as if {} were {}", variant.option, variant.value);
      finding->evidence.push_back(
          fmt::format("why    a step with {} {} gives what every rank holds, in every tensor that "
                      "fails",
                      variant.option, variant.value));
    }
    return;
  }
}

// What was taken on trust of a stranger, and which claim would be wrong if a gradient were right.
void DumpJudge::NameClaims() {
  judgement_.producer = manifest_.producer;
  judgement_.versions = manifest_.versions;
  judgement_.not_judged = DescribeGaps(manifest_);
  judgement_.claims = DescribeClaims(manifest_);
  if (!CoarserCasts(manifest_).empty() && !AllowsNothing(manifest_, options_)) {
    judgement_.floor = DescribeFloor(manifest_, EffectsOfCasts());
  }
  for (Finding& finding : judgement_.findings) {
    if (const std::string doubt = DoubtClaims(manifest_, finding); !doubt.empty()) {
      finding.evidence.push_back("       " + doubt);
    }
  }
}

Judgement DumpJudge::Run() {
  CompareRouting();
  std::vector<std::string> order;
  for (const TensorInfo& result : ResultsOf(manifest_.model)) {
    if (manifest_.tensors.contains(result.name)) {
      CheckStoredDtype(result.name);
      order.push_back(result.name);
      judges_[result.name] = std::make_unique<TensorJudge>(dump_, result.name, options_);
    }
  }
  const reference::StepResult want =
      RunReference(manifest_, options_.worst_case,
                   [&](const std::string& name, std::int64_t expert, const Estimate& estimate) {
                     RequireFinite(name, estimate);
                     reference_squares_[name] += estimate.value.squaredNorm();
                     JudgeEstimate(JudgeOf(name), expert, estimate);
                   });
  CheckAgainstGolden();
  Ledger ledger(manifest_, problem_, want.routing);
  if (auto counts = CompareCounts(dump_, want.tokens_per_expert_E)) {
    if (counts->verdict == Verdict::kFail && ledger.IsAffordable()) {
      ExplainCounts(*counts, want.tokens_per_expert_E, ledger);
    }
    judgement_.findings.push_back(std::move(*counts));
  }
  for (const std::string& name : order) {
    judgement_.findings.push_back(judges_.at(name)->Finish(manifest_, ledger));
    judgement_.measured[name] = judges_.at(name)->measured();
  }
  ShareCauses(judgement_.findings);
  DoubtPrecision(judgement_.findings);
  TryModelVariants(want.routing);
  if (options_.contract == nullptr) {
    NameClaims();
  }
  CheckThatSomethingWasTested(want);
  const auto has = [&](Verdict verdict) {
    return std::any_of(judgement_.findings.begin(), judgement_.findings.end(),
                       [&](const Finding& f) { return f.verdict == verdict; });
  };
  judgement_.verdict = has(Verdict::kFail)      ? Verdict::kFail
                       : has(Verdict::kVacuous) ? Verdict::kVacuous
                                                : Verdict::kPass;
  return judgement_;
}

}  // namespace

Judgement Judge(const Dump& dump, const TensorSource& problem, const JudgeOptions& options) {
  return DumpJudge(dump, problem, options).Run();
}

}  // namespace moe
