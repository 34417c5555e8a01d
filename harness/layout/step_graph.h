// How the step hangs together: stage by stage what is read and what is written, along which
// dimensions the ranks of a layout cut the work, and so which sums over ranks are owed and what
// each of them reaches. Made once per model, layout and program, and carried.
//
// It describes and computes nothing: the step (harness/parallel/moe_step.cc) and the reference
// (reference/moe_reference.cc) are texts of their own, and tests hold each of them to the graph.
// What a correct step owes, what a planted fault shows in, what the log of a clean run is, which
// shares a gradient is made of and what a cast can reach are all read from here.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/tensor_table.h"
#include "harness/layout/step_contract.h"

namespace moe {

// How a tensor lies along one axis while the step runs.
struct Lie {
  enum class Kind {
    kWhole,  // the same on every rank
    kCut,    // each rank has its own part of dimension `dim`
    kShare,  // each rank has a share: the terms of a sum over `dim` are cut, and the sum is pending
  };
  Kind kind = Kind::kWhole;
  Dim dim = Dim::kT;

  bool operator==(const Lie&) const = default;
};

// On axes of more than one rank; an axis that is not listed has the tensor whole.
using Lies = std::map<Axis, Lie>;

// What moves between the reads and the write of a product.
enum class Move {
  kNone,
  kGather,    // rows of the other ranks of tp join
  kDispatch,  // rows go from their tokens' ranks to the owners of their experts, over ep and etp
  kCombine,   // and back
  kPad,       // rows of other ranks of tp, which computed them, are zero
};

struct Read {
  std::string_view tensor;
  // Where the parts that are added up stay apart in reports: the one that this brings.
  std::optional<Path> path;
};

// One tensor made of others, linear in each of them as far as shares are concerned.
struct Product {
  std::string_view stage;  // "router", "experts", "experts backward" ...
  std::string_view writes;
  std::vector<Read> reads;
  std::vector<Dim> sums;  // the dimensions that are summed over
  Move move = Move::kNone;
};

// The products of a model's step, forward and then backward, in an order in which they can be made.
// `sizes` of the model decide which there are, its score placement what the weights multiply.
std::vector<Product> ProductsOf(const Model& model);

// A result that a sum shows in; of those that keep their paths apart, along which (all of them in
// the order of the table).
struct Reach {
  std::string_view result;
  std::vector<Path> paths;

  bool operator==(const Reach&) const = default;
};

class StepGraph {
 public:
  StepGraph(const Model& model, const Layout& layout, const Program& program);

  const Model& model() const { return model_; }
  const Layout& layout() const { return layout_; }
  const Program& program() const { return program_; }

  // What the step owes: placements when it is over, and sums by tensor.
  const StepContract& contract() const { return contract_; }

  // The results that a sum at `tensor` shows in, in the order of the table: the tensor itself where
  // it is a result, else what is made of it. Empty for a tensor that the step does not sum.
  std::vector<Reach> ReachOf(std::string_view tensor) const;

  // The sums that show in a result: its own, and those inside the step that its values come
  // through, in the order of the contract; owed ones, settled ones and ones that a rank makes
  // alone.
  std::vector<Reduction> SumsBehind(std::string_view result) const;

  // The gathers of rows over an axis of more than one rank: x_TD@tp, and backward d_y_TD@tp.
  const std::vector<Reduction>& gathers() const { return gathers_; }

  // Whether results of this model are reached along the path.
  bool HasPath(Path path) const;

  // How a tensor lies before any sum of its own.
  const Lies& LiesOf(std::string_view tensor) const;

 private:
  Model model_;
  Layout layout_;
  Program program_;
  std::vector<Product> products_;
  std::map<std::string_view, Lies> lies_;
  StepContract contract_;
  std::vector<Reduction> gathers_;
};

// The results that are computed from a stage of the step or its gradient, and so are off by what a
// cast of it leaves: "logits_TE" and all other tensors of Role::kStage.
bool IsReachedBy(std::string_view stage, std::string_view result, const Model& model);

// The dimensions that the terms of a result along one of its paths are cut along when ranks share
// out the work: tokens, experts by owner, hidden units of the routed or of the shared experts. Not
// those along which the result itself is cut.
std::vector<Dim> TermsOf(std::string_view result, Path path, const Model& model);

}  // namespace moe
