// What a correct step owes under a layout: how each tensor lies on its mesh when the step is over,
// and which sums over which axes must have happened on the way. The names of those sums, such as
// d_gate_ED@tp, are the vocabulary of faults, call logs, diagnoses and verdicts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "harness/base/model.h"
#include "harness/layout/layout.h"
#include "harness/layout/placement.h"

namespace moe {

// One sum over one axis; printed "d_gate_ED@tp".
struct Reduction {
  std::string tensor;
  Axis axis = Axis::kTp;

  auto operator<=>(const Reduction&) const = default;
};

std::string ToText(const Reduction& reduction);

// Where the backward pass carries out the sums over tp. The gradients are the same; the sums that
// are owed, and so the bugs one can have, are not.
enum class TpBackward {
  // Everything stays partial up to the layer's boundary, which sums d_x_TD once; the gate's
  // gradient
  // is summed at the end. torchtitan since #2416.
  kSumAtBoundary,
  // The routed input's gradient is summed as soon as the experts are done (torchtitan #1878), the
  // logits' where the score gradient is a share, the shared experts' input separately; behind that
  // the gradients are whole on every rank. torchtitan 0.2.x with what #2387 found missing.
  kSumInside,
};
std::string_view ToText(TpBackward backward);  // "sum_at_boundary", "sum_inside"

// How data-parallel gradients are normalised on their way; the result is the same.
enum class DpReduction {
  kSum,   // ranks scale nothing, gradients are summed
  kMean,  // ranks scale their loss by the number of data-parallel ranks, sums are divided by it
};
std::string_view ToText(DpReduction reduction);  // "sum", "mean"

// Options of the program that computes the step, as opposed to what it computes.
struct Program {
  TpBackward tp_backward = TpBackward::kSumAtBoundary;
  DpReduction dp_reduction = DpReduction::kSum;
};

struct ContractTensor {
  std::string name;
  Shape shape;  // global; empty for tensors that live inside the step only
  MeshKind mesh = MeshKind::kDense;
  Placements placements;      // when the step is over
  bool result = true;         // false: an intermediate, which no dump holds
  std::vector<Axis> owed;     // sums that must happen, in the order in which they do
  std::vector<Axis> settled;  // axes of size > 1 on which the value is whole already: no sum is
                              // owed, and one that happens all the same doubles it
  std::vector<Axis> alone;    // of an expert weight: edp where it has size 1. Nothing is owed, but
                              // the other ranks hold other slices, and a sum that goes over some
                              // of them (Megatron-core 0.18.2) mixes these
};

// Made by StepGraph (step_graph.h). Axes of size 1 owe nothing and do not appear in owed or
// settled; placements list every axis of the tensor's mesh that is larger than 1.
struct StepContract {
  Meshes meshes;
  DpReduction dp_reduction = DpReduction::kSum;
  std::vector<ContractTensor> tensors;

  const ContractTensor* Find(std::string_view tensor) const;  // nullptr when there is none
  std::vector<Reduction> Owed() const;                        // all of them
  std::vector<Reduction> Settled() const;
  bool Owes(const Reduction& reduction) const;
  bool IsAlone(const Reduction& reduction) const;
};

}  // namespace moe
