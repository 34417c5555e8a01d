// One tensor of a dump as the judge sees it: who holds which slice of it, with every sum that the
// producer declared as still owed (P) carried out and the declared scale applied.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/dump/dump.h"

namespace moe {

class ObservedTensor {
 public:
  // A slice and the ranks whose values add up to it: one rank, or all of a product of P axes.
  struct Holder {
    std::vector<std::int64_t> ranks;
    Slice slice;
    std::vector<std::int64_t> unit_of_global;  // by expert or token; -1 where it is not held
  };

  ObservedTensor(const Dump& dump, const std::string& name);

  const std::string& name() const { return name_; }
  const DumpedTensor& claim() const { return *claim_; }
  const Mesh& mesh() const { return *mesh_; }
  const std::vector<Holder>& holders() const { return holders_; }

  // Axes over which the producer owes a sum, which the judge has carried out.
  std::vector<Axis> PartialAxes() const;

  // Units are what is judged on its own: each expert of a tensor that begins with E, each token of
  // one that begins with T, else the whole slice.
  bool HasUnits() const { return has_units_; }
  bool UnitsAreTokens() const;
  std::int64_t UnitsOf(const Holder& holder) const;
  // The holder's unit that is this expert or token; 0 for a whole slice; -1 where it is not held.
  std::int64_t LocalUnit(const Holder& holder, std::int64_t global_unit) const;
  // Global index of the expert or token; 0 for a whole slice.
  std::int64_t GlobalUnit(const Holder& holder, std::int64_t unit) const;
  // The values of a unit, row-major in the holder's slice.
  std::vector<double> ReadUnit(const Holder& holder, std::int64_t unit) const;

  // The holders, by index, that differ from holder `index` along `axes` of `mesh` alone; every one
  // of them holds the same slice, or the answer is empty.
  std::vector<std::size_t> Replicas(std::size_t index, const Mesh& mesh,
                                    const std::vector<Axis>& axes) const;

 private:
  const Dump* dump_;
  std::string name_;
  const DumpedTensor* claim_;
  const Mesh* mesh_;
  bool has_units_;
  std::vector<Holder> holders_;
  std::vector<std::size_t> holder_of_rank_;
};

}  // namespace moe
