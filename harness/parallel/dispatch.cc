#include "harness/parallel/dispatch.h"

#include <algorithm>

#include "harness/parallel/collective_function.h"

namespace moe::parallel {
namespace {

std::vector<std::int64_t> ToVector(const at::Tensor& integers) {
  const at::Tensor flat = integers.contiguous();
  const auto* data = flat.const_data_ptr<std::int64_t>();
  return {data, data + flat.numel()};
}

std::vector<std::int64_t> SumsOfParts(const std::vector<std::int64_t>& counts, std::int64_t parts) {
  std::vector<std::int64_t> sums(static_cast<std::size_t>(parts), 0);
  const std::size_t per_part = counts.size() / sums.size();
  for (std::size_t i = 0; i < counts.size(); ++i) {
    sums[i / per_part] += counts[i];
  }
  return sums;
}

}  // namespace

SlotOrder OrderByExpert(const at::Tensor& topk_expert_TK, std::int64_t experts) {
  const at::Tensor expert_of_slot = topk_expert_TK.reshape(-1);
  SlotOrder order;
  order.slot = at::argsort(expert_of_slot, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  order.token_of_slot = order.slot.floor_divide(topk_expert_TK.size(1));
  order.inverse = at::argsort(order.slot, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  order.slots_per_expert = ToVector(at::bincount(expert_of_slot, {}, experts));
  return order;
}

Dispatched Dispatch(Communicator& comm, const at::Tensor& rows_nD,
                    const std::vector<std::int64_t>& slots_per_expert) {
  const std::int64_t ep = comm.Size(Axis::kEp);
  Dispatched sent;
  if (ep == 1) {
    sent.rows_nD = rows_nD;
    sent.rows_per_expert = slots_per_expert;
    return sent;
  }
  // How many rows for which of their experts: from every rank to every rank.
  const auto experts = static_cast<std::int64_t>(slots_per_expert.size());
  const std::vector<std::int64_t> per_rank(static_cast<std::size_t>(ep), experts / ep);
  const at::Tensor counts = at::tensor(slots_per_expert, at::kLong);
  const std::vector<std::int64_t> received_counts =
      ToVector(comm.AllToAll(Axis::kEp, counts, per_rank, per_rank));
  sent.sent = SumsOfParts(slots_per_expert, ep);
  sent.received = SumsOfParts(received_counts, ep);

  // Rows arrive source rank first; the experts want expert first. A stable sort by expert does it.
  std::vector<std::int64_t> expert_of_row;
  sent.rows_per_expert.assign(static_cast<std::size_t>(experts / ep), 0);
  for (std::size_t i = 0; i < received_counts.size(); ++i) {
    const std::size_t expert = i % sent.rows_per_expert.size();
    sent.rows_per_expert[expert] += received_counts[i];
    expert_of_row.insert(expert_of_row.end(), static_cast<std::size_t>(received_counts[i]),
                         static_cast<std::int64_t>(expert));
  }
  sent.to_expert_order =
      at::argsort(at::tensor(expert_of_row, at::kLong), /*stable=*/true, /*dim=*/0,
                  /*descending=*/false);
  sent.to_rank_order = at::argsort(sent.to_expert_order, /*stable=*/true, /*dim=*/0,
                                   /*descending=*/false);
  const at::Tensor arrived = WithBackward(
      rows_nD,
      [&](const at::Tensor& rows) {
        return comm.AllToAll(Axis::kEp, rows, sent.sent, sent.received);
      },
      [&comm, out = sent.received, in = sent.sent](const at::Tensor& d_rows) {
        return comm.AllToAll(Axis::kEp, d_rows, out, in);
      });
  sent.rows_nD = arrived.index_select(0, sent.to_expert_order);
  return sent;
}

at::Tensor Combine(Communicator& comm, const at::Tensor& outputs_nD, const Dispatched& sent) {
  if (comm.Size(Axis::kEp) == 1) {
    return outputs_nD;
  }
  return WithBackward(
      outputs_nD.index_select(0, sent.to_rank_order),
      [&](const at::Tensor& rows) {
        return comm.AllToAll(Axis::kEp, rows, sent.received, sent.sent);
      },
      [&comm, out = sent.sent, in = sent.received](const at::Tensor& d_rows) {
        return comm.AllToAll(Axis::kEp, d_rows, out, in);
      });
}

Gathered GatherOverEtp(Communicator& comm, const at::Tensor& rows_nD,
                       const std::vector<std::int64_t>& rows_per_expert) {
  const auto etp = static_cast<std::size_t>(comm.Size(Axis::kEtp));
  const std::size_t experts = rows_per_expert.size();
  const std::vector<std::int64_t> counts = ToVector(
      comm.AllGather("rows_per_expert", Axis::kEtp, at::tensor(rows_per_expert, at::kLong)));
  const std::vector<std::int64_t> rows_of_rank =
      SumsOfParts(counts, static_cast<std::int64_t>(etp));
  Gathered gathered;
  gathered.own_rows = rows_nD.size(0);
  gathered.chunk =
      std::max<std::int64_t>(1, *std::max_element(rows_of_rank.begin(), rows_of_rank.end()));

  // Rows arrive rank first, each rank's ordered by expert; the experts want expert first.
  std::vector<std::int64_t> next(etp);
  for (std::size_t rank = 0; rank < etp; ++rank) {
    next[rank] = static_cast<std::int64_t>(rank) * gathered.chunk;
  }
  std::vector<std::int64_t> place;
  for (std::size_t expert = 0; expert < experts; ++expert) {
    std::int64_t rows = 0;
    for (std::size_t rank = 0; rank < etp; ++rank) {
      const std::int64_t of_rank = counts[rank * experts + expert];
      for (std::int64_t row = 0; row < of_rank; ++row) {
        place.push_back(next[rank]++);
      }
      rows += of_rank;
    }
    gathered.rows_per_expert.push_back(rows);
  }
  gathered.place = at::tensor(place, at::kLong);

  const at::Tensor chunk_nD =
      at::constant_pad_nd(rows_nD, {0, 0, 0, gathered.chunk - gathered.own_rows});
  const at::Tensor chunks_nD = WithBackward(
      chunk_nD, [&](const at::Tensor& own) { return comm.AllGather("routed_ND", Axis::kEtp, own); },
      [&comm](const at::Tensor& d_chunks) {
        return comm.ReduceScatterSum({"d_routed_ND", Axis::kEtp}, d_chunks);
      });
  gathered.rows_nD = chunks_nD.index_select(0, gathered.place);
  return gathered;
}

at::Tensor SumOverEtp(Communicator& comm, const at::Tensor& outputs_nD, const Gathered& gathered) {
  const std::int64_t rows = comm.Size(Axis::kEtp) * gathered.chunk;
  const at::Tensor chunks_nD = at::zeros({rows, outputs_nD.size(1)}, outputs_nD.options())
                                   .index_copy(0, gathered.place, outputs_nD);
  const at::Tensor chunk_nD = WithBackward(
      chunks_nD,
      [&](const at::Tensor& part) {
        return comm.ReduceScatterSum({"y_routed_ND", Axis::kEtp}, part);
      },
      [&comm](const at::Tensor& d_own) {
        return comm.AllGather("d_y_routed_ND", Axis::kEtp, d_own);
      });
  return chunk_nD.narrow(0, 0, gathered.own_rows);
}

at::Tensor ScaleRows(const at::Tensor& rows_nD, const at::Tensor& scale_n) {
  return (rows_nD.to(scale_n.scalar_type()) * scale_n.unsqueeze(1)).to(rows_nD.scalar_type());
}

at::Tensor SumSlots(const at::Tensor& slots_TKD, const at::Tensor& topk_score_TK,
                    ScorePlacement placement) {
  at::Tensor slots = slots_TKD.to(topk_score_TK.scalar_type());
  if (placement == ScorePlacement::kAfterExperts) {
    slots = slots * topk_score_TK.unsqueeze(2);
  }
  return slots.sum(1).to(slots_TKD.scalar_type());
}

}  // namespace moe::parallel
