// What sums over ranks do, as a table: how often each rank ends up holding each rank's share. A
// right sum, a dropped one, one over other axes: each gives its own table, whatever the values are.
#pragma once

#include <Eigen/Core>
#include <vector>

#include "harness/explain/finding.h"
#include "harness/layout/layout.h"

namespace moe {

// [rank that holds, rank whose share it is]
using SumTable = Eigen::MatrixXd;

// After sums over these axes, one after the other, of one share per rank.
SumTable AfterSums(const Meshes& meshes, const std::vector<Axis>& axes);

// The part of `table` in which holder and share agree on every one of these axes: what is left when
// the sums over them do not happen.
SumTable WithoutSums(const Meshes& meshes, const SumTable& table, const std::vector<Axis>& axes);

// Every product of some of these axes, small ones first.
std::vector<std::vector<Axis>> ProductsOf(const std::vector<Axis>& axes);

struct SumHypothesis {
  Explanation explanation;
  SumTable table;
};

struct SumQuestion {
  const Meshes* meshes = nullptr;
  MeshKind own = MeshKind::kDense;  // the mesh that the tensor lies on
  std::vector<Axis> sums;           // that a right step makes, in order
  bool order_is_known = false;
  std::vector<Axis> judged;  // of these sums, those that the judge made: they happened, and rightly
  std::vector<Axis> alone;   // axes of size 1 that sums are owed over: these may go to other ranks
};

// Everything that can go wrong with one of these sums and changes more than a factor: missing over
// any product of axes of either mesh; over another axis; with one rank's share left out or counted
// twice. Of axes with the same ranks in their groups only one
// is named, the tensor's own first. Tables that change nothing are left out.
std::vector<SumHypothesis> SumHypothesesOf(const SumQuestion& question);

// One rank's share left out of `right`, or counted twice, in a sum over `axis`.
std::vector<SumHypothesis> RankHypothesesOf(const SumTable& right, Axis axis);

}  // namespace moe
