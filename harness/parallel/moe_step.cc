#include "harness/parallel/moe_step.h"

#include <numeric>

#include "harness/base/error.h"
#include "harness/parallel/collective_function.h"
#include "harness/parallel/dispatch.h"
#include "harness/parallel/route.h"
#include "harness/parallel/tensors.h"

namespace moe::parallel {
namespace {

at::Tensor SwiGlu(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w3,
                  const at::Tensor& w2) {
  return at::mm(at::silu(at::mm(x, w1.t())) * at::mm(x, w3.t()), w2.t());
}

// One rank's forward pass. Shapes: lower-case letters are this rank's share; x_TD holds the tokens
// of the rank's data-parallel share, whole over tp.
class RankStep {
 public:
  RankStep(const StepRequest& request, Communicator& comm)
      : request_(request),
        model_(request.graph->model()),
        layout_(request.graph->layout()),
        comm_(comm),
        inside_(request.graph->program().tp_backward == TpBackward::kSumInside) {}

  // Parameters and the layer input as leaves of the graph.
  void ReadInputs();
  at::Tensor Forward();
  LocalTensors Backward(const at::Tensor& y);

 private:
  const at::Tensor& Leaf(const std::string& name) const { return leaves_.at(name); }
  bool HasTp() const { return layout_.tp > 1; }
  bool SplitsTokensOverTp() const { return layout_.SplitsTokensOverTp(); }
  bool HiddenIsOverTp() const { return HasTp() && !SplitsTokensOverTp(); }

  at::Tensor Enter(const at::Tensor& x);
  at::Tensor Leave(const at::Tensor& y_TD);
  at::Tensor EnterBranch(const at::Tensor& x_TD, const std::string& gradient);
  at::Tensor RoutedExperts(const at::Tensor& x_TD);
  at::Tensor SharedExperts(const at::Tensor& x_TD);
  at::Tensor Experts(const at::Tensor& rows_nD, const std::vector<std::int64_t>& rows_per_expert);
  at::Tensor FoldedExperts(const Dispatched& sent);
  at::Tensor SequenceMajor(const at::Tensor& rank_major) const;
  at::Tensor RankMajor(const at::Tensor& sequence_major) const;
  at::Tensor FinishParameter(const ContractTensor& tensor, at::Tensor gradient);
  double DataParallelRanks() const {
    return static_cast<double>(layout_.dp_replicate * layout_.dp_shard * layout_.cp);
  }
  bool AveragesOverDp() const {
    return request_.graph->program().dp_reduction == DpReduction::kMean;
  }

  const StepRequest& request_;
  const Model& model_;
  const Layout& layout_;
  Communicator& comm_;
  bool inside_;
  std::map<std::string, at::Tensor> leaves_;
  at::Tensor d_y_;
  LocalTensors integers_;
};

void RankStep::ReadInputs() {
  const auto tokens = TokensOf(model_, layout_, comm_.rank(), layout_.sp);
  for (const TensorInfo& input : InputsOf(model_)) {
    const bool is_rows = input.name == "x_TD" || input.name == "d_y_TD";
    Slice slice = WholeOf(input.shape);
    if (is_rows) {
      slice.index[0] = tokens;
    } else if (const ContractTensor* result = comm_.contract().Find("d_" + input.name)) {
      // A parameter lies as its gradient does.
      slice = SliceOf(input.shape, comm_.contract().meshes.Of(result->mesh), result->placements,
                      comm_.rank());
    }
    at::Tensor value = ReadTensor(*request_.inputs, input.name, slice, request_.dtype);
    if (input.name == "d_y_TD") {
      d_y_ = AveragesOverDp() ? value * DataParallelRanks() : value;
    } else {
      leaves_[input.name] = input.name == "expert_bias_E" ? value : value.requires_grad_();
    }
  }
}

// Rows as gathered over tp, [tp][local batch][chunk], to the order of the sequences, [local
// batch][tp][chunk].
at::Tensor RankStep::SequenceMajor(const at::Tensor& rank_major) const {
  const std::int64_t chunk = rank_major.size(0) / (layout_.tp * layout_.local_batch);
  return rank_major.view({layout_.tp, layout_.local_batch, chunk, -1})
      .transpose(0, 1)
      .reshape({rank_major.size(0), -1});
}

at::Tensor RankStep::RankMajor(const at::Tensor& sequence_major) const {
  const std::int64_t chunk = sequence_major.size(0) / (layout_.tp * layout_.local_batch);
  return sequence_major.view({layout_.local_batch, layout_.tp, chunk, -1})
      .transpose(0, 1)
      .reshape({sequence_major.size(0), -1});
}

// From how the layer's input lies (sharded over tp under sequence parallelism, else replicated) to
// all tokens on every tp rank.
at::Tensor RankStep::Enter(const at::Tensor& x) {
  if (!HasTp()) {
    return x;
  }
  const Reduction d_x{"d_x_TD", Axis::kTp};
  if (layout_.sp) {
    return WithBackward(
        x,
        [&](const at::Tensor& own) {
          return SequenceMajor(comm_.AllGather("x_TD", Axis::kTp, own));
        },
        [this, d_x](const at::Tensor& d_all) {
          return inside_ ? comm_.OwnRows(Axis::kTp, comm_.Settled(d_x, RankMajor(d_all)))
                         : comm_.ReduceScatterSum(d_x, RankMajor(d_all));
        });
  }
  return WithBackward(x, Identity,
                      [this, d_x](const at::Tensor& d) { return comm_.SumWhereOwed(d_x, d); });
}

// From a partial sum over tp to how the layer's output lies.
at::Tensor RankStep::Leave(const at::Tensor& y_TD) {
  if (!HasTp()) {
    return y_TD;
  }
  const Reduction y{"y_TD", Axis::kTp};
  if (layout_.sp) {
    return WithBackward(
        y_TD, [&](const at::Tensor& part) { return comm_.ReduceScatterSum(y, RankMajor(part)); },
        [this](const at::Tensor& d_own) {
          return SequenceMajor(comm_.AllGather("d_y_TD", Axis::kTp, d_own));
        });
  }
  return WithBackward(
      y_TD, [&](const at::Tensor& part) { return comm_.AllReduceSum(y, part); }, Identity);
}

// Where a branch of the layer starts from the shared input. Programs that sum inside sum the
// branch's input gradient here; the others leave it partial up to Enter.
at::Tensor RankStep::EnterBranch(const at::Tensor& x_TD, const std::string& gradient) {
  if (!HasTp() || !inside_) {
    return x_TD;
  }
  return WithBackward(x_TD, Identity, [this, gradient](const at::Tensor& d) {
    return comm_.SumWhereOwed({gradient, Axis::kTp}, d);
  });
}

at::Tensor RankStep::Experts(const at::Tensor& rows_nD,
                             const std::vector<std::int64_t>& rows_per_expert) {
  const at::Tensor arrived_nD = comm_.Arrived(rows_nD);
  const std::vector<std::int64_t> split = comm_.Split(rows_per_expert);
  std::vector<at::Tensor> outputs;
  std::int64_t first = 0;
  for (std::size_t e = 0; e < split.size(); ++e) {
    const auto expert = static_cast<std::int64_t>(e);
    const at::Tensor rows = arrived_nD.narrow(0, first, split[e]);
    outputs.push_back(SwiGlu(rows, Leaf("w1_EFD").select(0, expert),
                             Leaf("w3_EFD").select(0, expert), Leaf("w2_EDF").select(0, expert)));
    first += split[e];
  }
  return at::cat(outputs, 0);
}

// The ranks of an etp group have tokens of their own and slices of the same experts: each computes
// its slice for the rows of all.
at::Tensor RankStep::FoldedExperts(const Dispatched& sent) {
  const Gathered all = GatherOverEtp(comm_, sent.rows_nD, sent.rows_per_expert);
  return SumOverEtp(comm_, Experts(all.rows_nD, all.rows_per_expert), all);
}

// Route all tokens; send this rank's slots to the experts' owners and bring the outputs back.
at::Tensor RankStep::RoutedExperts(const at::Tensor& x_TD) {
  const at::Tensor gate_bias_E = model_.gate_bias ? Leaf("gate_bias_E") : at::Tensor();
  const at::Tensor expert_bias_E = model_.expert_bias ? Leaf("expert_bias_E") : at::Tensor();
  at::Tensor logits_TE = Logits(comm_.OnPath("gate", x_TD), Leaf("gate_ED"), gate_bias_E);
  logits_TE = EnterBranch(logits_TE, "d_logits_TE");
  Choice choice = Route(model_, logits_TE, expert_bias_E);
  choice.topk_score_TK =
      comm_.OnPath("scores", comm_.Weights(choice.topk_score_TK, choice.topk_selection_TK));
  at::Tensor routed_x_TD = EnterBranch(comm_.OnPath("routed", x_TD), "d_routed_TD");

  // The dump keeps the rows that this rank owns.
  at::Tensor own_choice_TK = choice.topk_expert_TK;
  if (HasTp() && layout_.sp) {
    own_choice_TK = comm_.OwnRows(Axis::kTp, RankMajor(own_choice_TK));
  }
  integers_["topk_expert_TK"] = own_choice_TK.contiguous();
  integers_["tokens_per_expert_E"] = at::bincount(own_choice_TK.reshape(-1), {}, model_.experts);

  const std::int64_t all = routed_x_TD.size(0);
  const std::int64_t mine = SplitsTokensOverTp() ? all / layout_.tp : all;
  const std::int64_t first = SplitsTokensOverTp() ? comm_.Coordinate(Axis::kTp) * mine : 0;
  if (SplitsTokensOverTp()) {
    // torchtitan's manual slice of the flattened tokens: backward pads with zeros, no
    // communication.
    routed_x_TD = routed_x_TD.narrow(0, first, mine);
    choice.topk_expert_TK = choice.topk_expert_TK.narrow(0, first, mine);
    choice.topk_score_TK = comm_.OwnSlots(choice.topk_score_TK, first, mine);
  }

  const SlotOrder order = OrderByExpert(choice.topk_expert_TK, model_.experts);
  at::Tensor rows_nD = routed_x_TD.index_select(0, order.token_of_slot);
  if (model_.score_placement == ScorePlacement::kBeforeExperts) {
    rows_nD = ScaleRows(rows_nD, choice.topk_score_TK.reshape(-1).index_select(0, order.slot));
  }
  if (HiddenIsOverTp()) {
    // Each rank's hidden units give a share of the gradient of the routed rows.
    rows_nD = EnterBranch(rows_nD, "d_routed_ND");
  }
  const Dispatched sent = Dispatch(comm_, rows_nD, order.slots_per_expert);
  const at::Tensor outputs_nD = Combine(
      comm_, layout_.IsFolded() ? FoldedExperts(sent) : Experts(sent.rows_nD, sent.rows_per_expert),
      sent);

  const at::Tensor in_slot_order_nD = outputs_nD.index_select(0, order.inverse);
  at::Tensor y_mine_TD = SumSlots(in_slot_order_nD.view({mine, model_.top_k, model_.d_model}),
                                  choice.topk_score_TK, model_.score_placement);
  if (SplitsTokensOverTp()) {
    y_mine_TD = at::constant_pad_nd(y_mine_TD, {0, 0, first, all - first - mine});
  }
  return y_mine_TD;
}

at::Tensor RankStep::SharedExperts(const at::Tensor& x_TD) {
  const at::Tensor shared_x_TD = EnterBranch(comm_.OnPath("shared", x_TD), "d_shared_TD");
  const at::Tensor y_TD =
      SwiGlu(shared_x_TD, Leaf("shared_w1_FD"), Leaf("shared_w3_FD"), Leaf("shared_w2_DF"));
  if (!model_.shared_gate) {
    return y_TD;
  }
  const auto dtype = ScoreType(y_TD.scalar_type());
  const at::Tensor gate_T =
      at::mv(shared_x_TD.to(dtype), Leaf("shared_gate_D").to(dtype)).sigmoid();
  return ScaleRows(y_TD, gate_T);
}

at::Tensor RankStep::Forward() {
  const at::Tensor x_TD = Enter(Leaf("x_TD"));
  at::Tensor y_TD = RoutedExperts(x_TD);
  if (model_.d_shared > 0) {
    y_TD = y_TD + SharedExperts(x_TD);
  }
  return Leave(y_TD);
}

// The sums that a parameter's gradient is owed when the backward pass is over.
at::Tensor RankStep::FinishParameter(const ContractTensor& tensor, at::Tensor gradient) {
  gradient = comm_.Share(tensor.name, gradient);
  for (const auto* axes : {&tensor.settled, &tensor.alone}) {
    for (const Axis axis : *axes) {
      gradient = comm_.Settled({tensor.name, axis}, gradient);
    }
  }
  double divisor = AveragesOverDp() ? DataParallelRanks() : 1.0;
  for (const Axis axis : tensor.owed) {
    // Averaging: an expert's gradient has its batch sums behind it except edp, but is divided by
    // all data-parallel ranks (torchtitan #1551); a dense one is divided axis by axis.
    const bool batch_axis = axis != Axis::kTp;
    const double share = !AveragesOverDp() || !batch_axis ? 1.0
                         : axis == Axis::kEdp             ? divisor
                                                          : static_cast<double>(comm_.Size(axis));
    gradient = comm_.AllReduceSum({tensor.name, axis}, gradient, share);
    divisor /= share;
  }
  // What no sum stood for, where an axis that the average counts has no sum of its own.
  return divisor == 1.0 ? gradient : gradient.div(divisor);
}

LocalTensors RankStep::Backward(const at::Tensor& y) {
  y.backward(d_y_);
  LocalTensors local = integers_;
  local["y_TD"] = y.detach();
  for (const ContractTensor& tensor : comm_.contract().tensors) {
    if (!tensor.result || tensor.name == "y_TD") {
      continue;
    }
    const at::Tensor& leaf = Leaf(tensor.name.substr(2));
    const at::Tensor gradient = leaf.grad().defined() ? leaf.grad() : at::zeros_like(leaf);
    local[tensor.name] =
        tensor.name == "d_x_TD"
            ? (AveragesOverDp() ? gradient.div(DataParallelRanks()) : gradient).detach()
            : FinishParameter(tensor, gradient.detach());
  }
  for (auto& [name, tensor] : local) {
    tensor = comm_.Finished(name, tensor);
  }
  return local;
}

}  // namespace

LocalTensors RunStep(const StepRequest& request, Communicator& comm) {
  RankStep step(request, comm);
  step.ReadInputs();
  return step.Backward(step.Forward());
}

}  // namespace moe::parallel
