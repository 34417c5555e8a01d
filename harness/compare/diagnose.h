// Reads the cause of a wrong tensor off the ranks' values: which sum over which axes is missing,
// doubled or an average. Every explanation that could be is tried on every slice as it passes; what
// fits all of them is the cause.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "harness/compare/finding.h"
#include "harness/compare/observed.h"
#include "harness/layout/step_contract.h"

namespace moe {

class Diagnosis {
 public:
  // `contract` and `calls` as in JudgeOptions; `contract` may be null.
  Diagnosis(const ObservedTensor& tensor, const Meshes& meshes, const StepContract* contract,
            const std::vector<std::vector<std::string>>& calls);

  // One unit (an expert, a token, a whole slice) of every holder that has it: holder indices, the
  // values they hold, and per holder what they should be and by how much (L2) they may be off.
  struct Unit {
    std::vector<std::size_t> holders;
    std::vector<std::vector<double>> got;
    std::vector<std::vector<double>> want;
    std::vector<double> allowed;
  };
  void Add(const Unit& unit);

  // Fills cause, axes, factor, candidates, residual, text and evidence of a finding that fails.
  void Explain(Finding& finding) const;

 private:
  struct Hypothesis {
    Cause cause = Cause::kNone;
    std::vector<Axis> axes;
    double size = 1.0;  // product of the axes' sizes
    const Mesh* mesh = nullptr;
    bool holds = true;
    bool tried = false;
    bool replicas_differ = false;
    double residual = 0.0;  // largest, relative to the norm of what is wanted
  };

  void AddHypotheses(const Mesh& mesh, const std::vector<Axis>& axes, bool replicated);
  void Try(Hypothesis& hypothesis, const Unit& unit) const;
  std::vector<const Hypothesis*> Fitting() const;
  std::vector<const Hypothesis*> Narrow(std::vector<const Hypothesis*> fitting) const;
  bool CalledMoreThanOwed(Axis axis) const;
  std::string WhereSentence(const Hypothesis& hypothesis) const;

  const ObservedTensor& tensor_;
  const Meshes& meshes_;
  const StepContract* contract_;
  const std::vector<std::vector<std::string>>& calls_;
  std::vector<Hypothesis> hypotheses_;
  // For one factor common to all slices: sums of got*want and want*want, and the slices' own
  // factors.
  double got_want_ = 0.0;
  double want_want_ = 0.0;
  double smallest_factor_ = 0.0;
  double largest_factor_ = 0.0;
  double largest_scale_residual_ = 0.0;
  bool one_factor_ = true;
  bool all_zero_ = true;
};

}  // namespace moe
