// What sums over ranks do, as a table: how often each rank ends up holding each rank's share. A
// right sum, a dropped one, one over other axes: each gives its own table, whatever the values are.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "harness/explain/explanation.h"
#include "harness/layout/layout.h"

namespace moe {

// The sums themselves are kept, not the table, whose rows are made when they are asked for: of
// thousands of ranks the whole would not fit.
class SumTable {
 public:
  // Whose share a rank holds how often; 0 of most ranks.
  struct Held {
    std::int64_t source = 0;
    double times = 0.0;

    bool operator==(const Held&) const = default;
  };
  using Row = std::vector<Held>;  // by source

  // Before any sum: each rank holds its own share. `meshes` must outlive this.
  explicit SumTable(const Meshes& meshes) : meshes_(&meshes) {}

  // A sum over the product of some axes of one mesh, to which rank `odd`, if one is given, brings
  // what it has `times` times.
  struct Sum {
    std::vector<Axis> axes;
    std::optional<std::int64_t> odd;
    double times = 1.0;
  };

  // After one more sum of what every rank holds.
  SumTable Then(Sum sum) const;
  // The part in which holder and source agree on every one of these axes: what is left when the
  // sums over them do not happen.
  SumTable Without(const std::vector<Axis>& axes) const;
  // With every share of `source` that anybody holds counted `times` times.
  SumTable WithSource(std::int64_t source, double times) const;
  // Each share at most once.
  SumTable Once() const;

  // What `holder` holds, by source.
  Row RowOf(std::int64_t holder) const;

  std::int64_t ranks() const { return meshes_->dense.WorldSize(); }

  // Equal rows; of more than 64 ranks those of 64, evenly spread.
  bool operator==(const SumTable& other) const;

 private:
  const Meshes* meshes_;
  std::vector<Sum> sums_;  // in the order in which they happen
  std::vector<Axis> agree_;
  std::optional<Held> source_;
  bool once_ = false;
};

// After sums over these axes, one after the other, of one share per rank.
SumTable AfterSums(const Meshes& meshes, const std::vector<Axis>& axes);

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
