#include "harness/campaign/fault_catalogue.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "harness/campaign/contributions.h"

namespace moe {
namespace {

using Kind = Fault::Kind;

bool IsNear(double a, double b) {
  return std::abs(a - b) < 1e-9 * std::abs(b);
}

// A parameter with one number for each expert.
bool IsBias(const std::string& name) {
  return TensorOf(name).IsOfParameter() && TensorOf(name).dims == "E";
}

bool IsBatchAxis(Axis axis) {
  return axis == Axis::kDpReplicate || axis == Axis::kDpShard || axis == Axis::kCp;
}

class Cataloguer {
 public:
  Cataloguer(const StepGraph& graph, RanksToPlant ranks)
      : graph_(graph), model_(graph.model()), layout_(graph.layout()), contract_(graph.contract()) {
    const std::int64_t world = layout_.WorldSize();
    for (std::int64_t rank = 0; rank < world; ++rank) {
      if (ranks == RanksToPlant::kAll || rank == 0 || rank == world - 1) {
        ranks_.push_back(rank);
      }
    }
  }

  std::vector<PlantedFault> Run();

 private:
  void Plant(const Fault& fault, std::string bug_class, std::vector<Answer> answers,
             std::string equivalent = "");
  void AtReduction(const ContractTensor& tensor, Axis axis);
  void AtSettled(const ContractTensor& tensor, Axis axis);
  void Mean(const ContractTensor& tensor, const Reduction& reduction);
  void WrongGroups(const ContractTensor& tensor, const Reduction& reduction);
  bool HasSumsInside(const std::string& result, Axis axis) const;
  void AtRanks(const ContractTensor& tensor, const Reduction& reduction);
  void DropAll();
  void AtResult(const ContractTensor& tensor);
  void Scales(const ContractTensor& tensor);
  void Shards(const ContractTensor& tensor);
  void ExpertShares(const ContractTensor& tensor);
  void Paths();
  void BetweenCollectives();
  void OtherModels();
  void Counts();

  std::int64_t SizeOf(Axis axis) const {
    return contract_.meshes.dense.SizeOf(axis) * contract_.meshes.expert.SizeOf(axis);
  }
  double DataParallelRanks() const {
    return static_cast<double>(layout_.dp_replicate * layout_.dp_shard * layout_.cp);
  }
  Shape LocalShape(const ContractTensor& tensor) const;
  std::vector<Answer> Seen(const std::string& at, const Explanation& explanation) const;
  std::vector<Answer> Everywhere(const Explanation& explanation) const;
  std::vector<Answer> ScaleAnswers(const ContractTensor& tensor, double factor) const;
  void AddSameNumbers(std::vector<Answer>& answers, const ContractTensor& tensor,
                      double factor) const;
  bool HasOwnTokensOnly(const std::string& at) const;
  bool AddOtherNames(const ContractTensor& tensor, Axis wrong, Axis used,
                     std::vector<Answer>& answers) const;

  const StepGraph& graph_;
  const Model& model_;
  const Layout& layout_;
  const StepContract& contract_;
  std::vector<std::int64_t> ranks_;
  std::vector<PlantedFault> planted_;
};

void Cataloguer::Plant(const Fault& fault, std::string bug_class, std::vector<Answer> answers,
                       std::string equivalent) {
  planted_.push_back({fault, std::move(bug_class), std::move(answers), std::move(equivalent)});
}

// Where a sum over the wrong ranks leaves the same numbers as something else does, adds that.
// Returns whether it leaves the right ones: another way to reach every rank once.
bool Cataloguer::AddOtherNames(const ContractTensor& tensor, Axis wrong, Axis used,
                               std::vector<Answer>& answers) const {
  const Contributions right = ContributionsTo(tensor, contract_.meshes, wrong, wrong);
  const Contributions held = ContributionsTo(tensor, contract_.meshes, wrong, used);
  const std::int64_t times = *std::max_element(held[0].begin(), held[0].end());
  Contributions multiple = right;
  for (std::vector<std::int64_t>& of_rank : multiple) {
    std::for_each(of_rank.begin(), of_rank.end(), [&](std::int64_t& count) { count *= times; });
  }
  if (held == multiple) {
    const auto factor = static_cast<double>(times);
    answers.push_back({tensor.name,
                       {.cause = Cause::kWrongScale, .factor = factor},
                       /*same_numbers=*/true});
    AddSameNumbers(answers, tensor, factor);
    return times == 1;
  }
  for (const Mesh* mesh : {&contract_.meshes.dense, &contract_.meshes.expert}) {
    for (std::uint32_t chosen = 1; chosen < (1U << mesh->axes.size()); ++chosen) {
      std::vector<Axis> product;
      bool trivial = false;
      for (std::size_t i = 0; i < mesh->axes.size(); ++i) {
        if ((chosen >> i & 1U) != 0) {
          product.push_back(mesh->axes[i]);
          trivial = trivial || mesh->sizes[i] == 1;
        }
      }
      if (!trivial && Summed(held, GroupsOf(*mesh, product)) == right) {
        answers.push_back({tensor.name,
                           {.cause = Cause::kMissingSum, .axes = product},
                           /*same_numbers=*/true});
      }
    }
  }
  return false;
}

Shape Cataloguer::LocalShape(const ContractTensor& tensor) const {
  return SliceOf(tensor.shape, contract_.meshes.Of(tensor.mesh), tensor.placements, /*rank=*/0)
      .LocalShape();
}

// Where a cause at `at` is seen: there, or for a tensor inside the step on the results that are
// made from it; along a path where it is the only one that brings it.
std::vector<Answer> Cataloguer::Seen(const std::string& at, const Explanation& explanation) const {
  std::vector<Answer> answers;
  for (const Reach& reach : graph_.ReachOf(at)) {
    const bool has_others = graph_.ReachOf(reach.result).front().paths.size() > 1;
    Explanation limited = explanation;
    if (reach.paths.size() == 1 && has_others) {
      limited.path = ToText(reach.paths.front());
    }
    answers.push_back({std::string(reach.result), limited});
  }
  return answers;
}

// The same cause on every result.
std::vector<Answer> Cataloguer::Everywhere(const Explanation& explanation) const {
  std::vector<Answer> answers;
  for (const ContractTensor& tensor : contract_.tensors) {
    if (tensor.result) {
      answers.push_back({tensor.name, explanation});
    }
  }
  return answers;
}

// Whether a sum over `axis` inside the step has a part in the tensor, besides its own.
bool Cataloguer::HasSumsInside(const std::string& result, Axis axis) const {
  const std::vector<Reduction> sums = graph_.SumsBehind(result);
  return std::any_of(sums.begin(), sums.end(), [&](const Reduction& sum) {
    return sum.tensor != result && sum.axis == axis;
  });
}

// Sums that a tensor is owed or has had: counted twice, or averaged, they look like a factor.
void Cataloguer::AddSameNumbers(std::vector<Answer>& answers, const ContractTensor& tensor,
                                double factor) const {
  std::vector<Axis> axes = tensor.owed;
  axes.insert(axes.end(), tensor.settled.begin(), tensor.settled.end());
  if (HasSumsInside(tensor.name, Axis::kEtp)) {
    axes.push_back(Axis::kEtp);
  }
  for (std::uint32_t chosen = 1; chosen < (1U << axes.size()); ++chosen) {
    std::vector<Axis> product;
    double size = 1.0;
    for (std::size_t i = 0; i < axes.size(); ++i) {
      if ((chosen >> i & 1U) != 0) {
        product.push_back(axes[i]);
        size *= static_cast<double>(SizeOf(axes[i]));
      }
    }
    for (const Cause cause : {Cause::kDoubleSum, Cause::kMeanForSum}) {
      if (IsNear(factor, cause == Cause::kDoubleSum ? size : 1.0 / size)) {
        answers.push_back({tensor.name, {.cause = cause, .axes = product}, /*same_numbers=*/true});
      }
    }
  }
}

std::vector<Answer> Cataloguer::ScaleAnswers(const ContractTensor& tensor, double factor) const {
  std::vector<Answer> answers = {{tensor.name, {.cause = Cause::kWrongScale, .factor = factor}}};
  AddSameNumbers(answers, tensor, factor);
  return answers;
}

// Under sequence parallelism a rank keeps the rows of its own chunk of every sequence. With split
// tokens and one sequence those are the tokens that it sent to the experts itself; only shared
// experts, whose hidden units are spread over tp, have something to add from others.
bool Cataloguer::HasOwnTokensOnly(const std::string& at) const {
  const std::vector<Reach> reach = graph_.ReachOf(at);
  const bool is_of_rows = std::all_of(reach.begin(), reach.end(),
                                      [](const Reach& r) { return TensorOf(r.result).HasRows(); });
  const Lies& lies = graph_.LiesOf(at);
  const auto tp = lies.find(Axis::kTp);
  const bool adds_up_tokens = tp != lies.end() && tp->second == Lie{Lie::Kind::kShare, Dim::kT};
  return is_of_rows && adds_up_tokens && layout_.sp && layout_.local_batch == 1;
}

void Cataloguer::Mean(const ContractTensor& tensor, const Reduction& reduction) {
  const auto size = static_cast<double>(SizeOf(reduction.axis));
  const bool averages = graph_.program().dp_reduction == DpReduction::kMean;
  const Fault fault{.kind = Kind::kMean, .reduction = reduction};
  if (averages && IsBatchAxis(reduction.axis)) {
    Plant(fault, "FC8", {}, "the program averages over this axis, and scales its loss for it");
    return;
  }
  if (averages && reduction.axis == Axis::kEdp) {
    // The divisor is the ranks of edp instead of all data-parallel ones.
    const double factor = DataParallelRanks() / size;
    const bool same = IsNear(factor, 1.0);
    Plant(fault, "FC8", same ? std::vector<Answer>{} : ScaleAnswers(tensor, factor),
          same ? "edp has all the data-parallel ranks, by which the program divides" : "");
    return;
  }
  // Equal sizes give equal numbers: planted at the first of them, and each is a right answer.
  std::vector<Answer> answers;
  for (const Axis axis : tensor.owed) {
    const bool same_size = SizeOf(axis) == SizeOf(reduction.axis);
    if (same_size && axis != reduction.axis && answers.empty()) {
      return;
    }
    if (same_size) {
      const auto seen = Seen(tensor.name, {.cause = Cause::kMeanForSum, .axes = {axis}});
      answers.insert(answers.end(), seen.begin(), seen.end());
    }
  }
  if (tensor.result) {
    AddSameNumbers(answers, tensor, 1.0 / size);
  }
  Plant(fault, "FC8", std::move(answers));
}

void Cataloguer::WrongGroups(const ContractTensor& tensor, const Reduction& reduction) {
  std::vector<Groups> taken = {GroupsOf(contract_.meshes, reduction.axis)};
  for (const Mesh* mesh : {&contract_.meshes.dense, &contract_.meshes.expert}) {
    for (const Axis axis : mesh->axes) {
      const Groups groups = GroupsOf(contract_.meshes, axis);
      if (SizeOf(axis) == 1 || std::find(taken.begin(), taken.end(), groups) != taken.end()) {
        continue;
      }
      taken.push_back(groups);
      const Fault fault{.kind = Kind::kWrongGroup, .reduction = reduction, .axis = axis};
      if (!FindMisfit(fault, graph_).empty()) {
        continue;  // gathered rows, of which other ranks have other numbers
      }
      std::vector<Answer> answers;
      for (const Mesh* view : {&contract_.meshes.dense, &contract_.meshes.expert}) {
        for (const Axis same : view->axes) {
          if (GroupsOf(contract_.meshes, same) == groups) {
            const auto seen =
                Seen(reduction.tensor,
                     {.cause = Cause::kWrongGroup, .axes = {reduction.axis}, .used = {same}});
            answers.insert(answers.end(), seen.begin(), seen.end());
          }
        }
      }
      const bool right = contract_.Owes(reduction) && IsOfParameter(reduction) &&
                         AddOtherNames(tensor, reduction.axis, axis, answers);
      Plant(fault, "FC6", std::move(answers),
            right ? "with the other sums it reaches every rank once all the same" : "");
    }
  }
}

void Cataloguer::AtRanks(const ContractTensor& tensor, const Reduction& reduction) {
  // What a rank brings to a later sum is what earlier ones have left on it, or a value that is
  // whole on the settled axes: the contribution of several ranks.
  std::vector<Axis> before = tensor.settled;
  before.insert(before.end(), tensor.owed.begin(),
                std::find(tensor.owed.begin(), tensor.owed.end(), reduction.axis));
  for (const std::int64_t rank : ranks_) {
    for (const Kind kind : {Kind::kSkipRank, Kind::kDoubleRank}) {
      Explanation explanation{.cause = kind == Kind::kSkipRank ? Cause::kDroppedContribution
                                                               : Cause::kDoubledContribution,
                              .sources = {rank}};
      std::vector<Answer> answers = Seen(reduction.tensor, explanation);
      if (!before.empty()) {
        explanation.sources = contract_.meshes.Of(tensor.mesh).GroupOf(rank, before);
        const auto more = Seen(reduction.tensor, explanation);
        answers.insert(answers.end(), more.begin(), more.end());
      }
      if (HasOwnTokensOnly(tensor.name)) {
        // All that the rank's rows are made of is its own: what every path brought is lost there.
        const Cause cause = kind == Kind::kSkipRank ? Cause::kLostPath : Cause::kDoubledPath;
        answers.push_back({std::string(graph_.ReachOf(tensor.name).front().result),
                           {.cause = cause},
                           /*same_numbers=*/true});
      }
      Plant({.kind = kind, .reduction = reduction, .rank = rank},
            kind == Kind::kSkipRank ? "FC24" : "FC13", std::move(answers));
    }
  }
}

void Cataloguer::AtReduction(const ContractTensor& tensor, Axis axis) {
  const Reduction reduction{tensor.name, axis};
  const bool of_parameter = IsOfParameter(reduction);
  Plant({.kind = Kind::kDrop, .reduction = reduction}, of_parameter ? "FC1" : "FC2",
        Seen(tensor.name, {.cause = Cause::kMissingSum, .axes = {axis}}),
        HasOwnTokensOnly(tensor.name)
            ? "every rank keeps the rows of the tokens that it routed itself"
            : "");
  Plant({.kind = Kind::kRepeat, .reduction = reduction}, IsBias(tensor.name) ? "FC21" : "FC5",
        Seen(tensor.name, {.cause = Cause::kDoubleSum, .axes = {axis}}));
  Mean(tensor, reduction);
  WrongGroups(tensor, reduction);
  AtRanks(tensor, reduction);
  const bool has_rows_and_columns = tensor.shape.size() != 1;
  if (has_rows_and_columns) {
    // Inside the step the elements meet others afterwards, and no order is left to be seen.
    Plant({.kind = Kind::kMisread, .reduction = reduction}, "FC33",
          tensor.result ? std::vector<Answer>{{tensor.name,
                                               {.cause = Cause::kPermuted, .permuted = "elements"}}}
                        : std::vector<Answer>{});
  }
}

void Cataloguer::AtSettled(const ContractTensor& tensor, Axis axis) {
  const Reduction reduction{tensor.name, axis};
  Plant({.kind = Kind::kDrop, .reduction = reduction}, IsOfParameter(reduction) ? "FC1" : "FC2", {},
        fmt::format("the value is whole on {} already", ToText(axis)));
  Plant({.kind = Kind::kRepeat, .reduction = reduction}, "FC5",
        Seen(tensor.name, {.cause = Cause::kDoubleSum, .axes = {axis}}));
}

void Cataloguer::DropAll() {
  std::vector<Answer> answers;
  std::size_t sums = 0;
  for (const ContractTensor& tensor : contract_.tensors) {
    if (!tensor.owed.empty() && IsOfParameter({tensor.name, tensor.owed.front()})) {
      answers.push_back({tensor.name, {.cause = Cause::kMissingSum, .axes = tensor.owed}});
      sums += tensor.owed.size();
    }
  }
  if (sums > 1) {  // One sum is planted by its name.
    Plant({.kind = Kind::kDropAll}, "FC4", std::move(answers));
  }
}

void Cataloguer::Scales(const ContractTensor& tensor) {
  struct Factor {
    double value;
    const char* bug_class;
  };
  std::vector<Factor> factors;
  const auto add = [&](double value, const char* bug_class) {
    std::vector<Answer> same;
    AddSameNumbers(same, tensor, value);
    const bool known = std::any_of(factors.begin(), factors.end(), [&](const Factor& factor) {
      return IsNear(factor.value, value);
    });
    if (!IsNear(value, 1.0) && same.empty() && !known) {
      factors.push_back({value, bug_class});
    }
  };
  for (const double size :
       {static_cast<double>(layout_.ep), static_cast<double>(layout_.tp),
        static_cast<double>(layout_.Edp()), DataParallelRanks(),
        static_cast<double>(layout_.WorldSize()), static_cast<double>(layout_.etp)}) {
    add(size, "FC7");
    add(1.0 / size, "FC7");
  }
  for (const std::int64_t count : {model_.top_k, layout_.local_batch}) {
    add(static_cast<double>(count), "FC9");
    add(1.0 / static_cast<double>(count), "FC9");
  }
  add(1.0625, "FC9");
  add(1.001, "FC9");
  for (const Factor& factor : factors) {
    Plant({.kind = Kind::kScale, .tensor = tensor.name, .factor = factor.value}, factor.bug_class,
          ScaleAnswers(tensor, factor.value));
  }
}

void Cataloguer::Shards(const ContractTensor& tensor) {
  bool has_replicas = false;
  for (const auto& [axis, placement] : tensor.placements) {
    has_replicas = has_replicas || placement.kind == Placement::Kind::kReplicate;
    if (placement.kind == Placement::Kind::kShard) {
      Plant({.kind = Kind::kMisplace, .tensor = tensor.name, .axis = axis}, "FC18",
            {{tensor.name, {.cause = Cause::kMisplacedShard, .axes = {axis}}}});
    }
  }
  for (const std::int64_t rank : ranks_) {
    if (has_replicas) {
      Plant({.kind = Kind::kStaleRank, .tensor = tensor.name, .rank = rank}, "FC26",
            {{tensor.name, {.cause = Cause::kStaleReplica}}});
    }
  }
}

void Cataloguer::ExpertShares(const ContractTensor& tensor) {
  if (SizeOf(Axis::kEdp) > 1) {
    Plant({.kind = Kind::kLocalNorm, .tensor = tensor.name}, "FC9",
          {{tensor.name, {.cause = Cause::kLocalNormaliser}}});
  }
  // In a sum with the other ranks' shares the garbage is not seen for what it is.
  Plant({.kind = Kind::kIdleGarbage, .tensor = tensor.name}, "FC20",
        SizeOf(Axis::kEdp) > 1 ? std::vector<Answer>{}
                               : std::vector<Answer>{{tensor.name, {.cause = Cause::kCorruption}}});
}

void Cataloguer::AtResult(const ContractTensor& tensor) {
  Scales(tensor);
  const Shape local = LocalShape(tensor);
  for (const auto& [units, said] : {std::pair{"experts", "experts"}, std::pair{"tokens", "tokens"},
                                    std::pair{"hidden", "hidden units"}}) {
    const auto dim = DimOf(tensor.name, units);
    if (dim && local[*dim] > 1) {
      Plant({.kind = Kind::kPermute, .tensor = tensor.name, .name = units}, "FC17",
            {{tensor.name, {.cause = Cause::kPermuted, .permuted = said}}});
    }
  }
  Shards(tensor);
  if (IsExpertWeight(tensor.name)) {
    ExpertShares(tensor);
  }
  // Of numbers with few bits rounding changes only a few.
  Plant({.kind = Kind::kRound, .tensor = tensor.name}, "FC28",
        {{tensor.name, {.cause = Cause::kPrecision}},
         {tensor.name, {.cause = Cause::kCorruption}, /*same_numbers=*/true}});
  for (const Kind kind : {Kind::kCorrupt, Kind::kNan}) {
    Plant({.kind = kind, .tensor = tensor.name}, "FC20",
          {{tensor.name, {.cause = Cause::kCorruption}}});
  }
}

void Cataloguer::Paths() {
  const TensorRow& input_gradient = TensorOf(tensor::d_x_TD);
  for (const Kind kind : {Kind::kLosePath, Kind::kDoublePath}) {
    const Cause cause = kind == Kind::kLosePath ? Cause::kLostPath : Cause::kDoubledPath;
    const char* bug_class = kind == Kind::kLosePath ? "FC15" : "FC13";
    for (const Path path : input_gradient.paths) {
      if (graph_.HasPath(path)) {
        const std::string name(ToText(path));
        Plant({.kind = kind, .name = name}, bug_class,
              {{tensor::d_x_TD, {.cause = cause, .path = name}}});
      }
    }
    // The scores' gradient is all that the gate's gradient is made of, and the gate's part of d_x.
    std::vector<Answer> answers;
    const auto either_path = [&](const std::string& result) {
      for (const Path path : {Path::kScores, Path::kGate}) {
        answers.push_back({result, {.cause = cause, .path = std::string(ToText(path))}});
      }
    };
    either_path(tensor::d_x_TD);
    for (const ContractTensor& of_router : contract_.tensors) {
      const auto paths = TensorOf(of_router.name).paths;
      if (paths.size() != 1 || paths.front() != Path::kScores) {
        continue;
      }
      either_path(of_router.name);
      if (kind == Kind::kDoublePath) {
        const auto scaled = ScaleAnswers(of_router, 2.0);
        answers.insert(answers.end(), scaled.begin(), scaled.end());
      }
    }
    Plant({.kind = kind, .name = std::string(ToText(Path::kScores))}, bug_class,
          std::move(answers));
  }
}

void Cataloguer::BetweenCollectives() {
  for (const Reduction& gather : graph_.gathers()) {
    // Without the cotangents of the others' rows every gradient has the own rows' part alone.
    // Without the rows themselves the forward pass is another one, which no sum explains.
    const bool is_backward = gather.tensor == tensor::d_y_TD;
    Plant({.kind = Kind::kDropGather, .reduction = gather}, "FC3",
          is_backward ? Everywhere({.cause = Cause::kMissingSum, .axes = {gather.axis}})
                      : std::vector<Answer>{});
  }
  Plant({.kind = Kind::kShuffleRows}, "FC17", {});
  if (model_.experts / layout_.ep > 1) {
    Plant({.kind = Kind::kSplitRows}, "FC18", {});
  }
  if (layout_.SplitsTokensOverTp()) {
    // It is the scores' gradient that leaks.
    std::vector<Answer> answers;
    for (const ContractTensor& result : contract_.tensors) {
      const auto paths = TensorOf(result.name).paths;
      if (std::any_of(paths.begin(), paths.end(),
                      [](Path path) { return path == Path::kGate || path == Path::kScores; })) {
        answers.push_back({result.name, {.cause = Cause::kLeakedSlots, .axes = {Axis::kTp}}});
      }
    }
    Plant({.kind = Kind::kLeakSlots}, "FC16", std::move(answers));
  }
}

void Cataloguer::OtherModels() {
  for (const char* key : {"score_function", "score_placement", "route_norm", "route_scale"}) {
    std::vector<Answer> answers = Everywhere({.cause = Cause::kWrongFormula, .option = key});
    // Often it is no more than a factor of each tensor: all that route_scale is after the experts.
    for (const Cause cause : {Cause::kWrongScale, Cause::kMeanForSum, Cause::kDoubledPath}) {
      for (Answer& factor : Everywhere({.cause = cause})) {
        factor.same_numbers = key != std::string("route_scale");
        answers.push_back(std::move(factor));
      }
    }
    Plant({.kind = Kind::kModel, .name = key}, "FC22", std::move(answers));
  }
  if (model_.expert_bias) {
    Plant({.kind = Kind::kModel, .name = "expert_bias"}, "FC22", {});
  }
}

void Cataloguer::Counts() {
  const std::string counts = tensor::tokens_per_expert_E;
  std::vector<Answer> doubled = {{counts, {.cause = Cause::kWrongScale, .factor = 2.0}}};
  for (const Axis axis : contract_.meshes.dense.axes) {
    if (SizeOf(axis) == 2) {
      doubled.push_back({counts, {.cause = Cause::kDoubleSum, .axes = {axis}}});
    }
  }
  constexpr double kFactor = 7.0;  // the size of no axis
  Plant({.kind = Kind::kScale, .tensor = counts, .factor = kFactor}, "FC12",
        {{counts, {.cause = Cause::kWrongScale, .factor = kFactor}}});
  // A rank whose counts no other rank adds to says nothing, or twice as much, on its own.
  const bool has_replicas = layout_.tp > 1 && !layout_.sp;
  for (const std::int64_t rank : ranks_) {
    std::vector<Answer> skipped = {
        {counts, {.cause = Cause::kDroppedContribution, .sources = {rank}}}};
    std::vector<Answer> twice = {
        {counts, {.cause = Cause::kDoubledContribution, .sources = {rank}}}};
    if (has_replicas || layout_.WorldSize() == 1) {
      skipped.push_back({counts, {.cause = Cause::kStaleReplica}});
      skipped.push_back({counts, {.cause = Cause::kLostPath}});
      twice.insert(twice.end(), doubled.begin(), doubled.end());
    }
    // Of two ranks one is left, as if they were never summed; where ranks count the same, as they
    // can in the dyadic fill, any share too few or too many is a factor.
    const auto counting = static_cast<double>(layout_.WorldSize() / (layout_.sp ? 1 : layout_.tp));
    for (const Axis axis : contract_.meshes.dense.axes) {
      const bool is_one_of_two =
          SizeOf(axis) == 2 && (layout_.WorldSize() == 2 || (has_replicas && axis == Axis::kTp));
      for (const Cause cause : {Cause::kMissingSum, Cause::kMeanForSum}) {
        if (is_one_of_two) {
          skipped.push_back({counts, {.cause = cause, .axes = {axis}}, /*same_numbers=*/true});
        }
      }
    }
    for (const auto& [answers, factor] : {std::pair{&skipped, (counting - 1.0) / counting},
                                          std::pair{&twice, (counting + 1.0) / counting}}) {
      answers->push_back({counts,
                          {.cause = Cause::kWrongScale, .factor = factor},
                          /*same_numbers=*/true});
    }
    Plant({.kind = Kind::kSkipRank, .tensor = counts, .rank = rank}, "FC12", skipped);
    Plant({.kind = Kind::kDoubleRank, .tensor = counts, .rank = rank}, "FC12", twice);
  }
}

std::vector<PlantedFault> Cataloguer::Run() {
  for (const ContractTensor& tensor : contract_.tensors) {
    for (const Axis axis : tensor.owed) {
      AtReduction(tensor, axis);
    }
    for (const Axis axis : tensor.settled) {
      AtSettled(tensor, axis);
    }
    for (const Axis axis : tensor.alone) {
      WrongGroups(tensor, {tensor.name, axis});
    }
  }
  DropAll();
  for (const ContractTensor& tensor : contract_.tensors) {
    if (tensor.result) {
      AtResult(tensor);
    }
  }
  Paths();
  BetweenCollectives();
  OtherModels();
  Counts();
  return std::move(planted_);
}

}  // namespace

std::vector<PlantedFault> CatalogueOf(const StepGraph& graph, RanksToPlant ranks) {
  return Cataloguer(graph, ranks).Run();
}

}  // namespace moe
