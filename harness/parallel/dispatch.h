// Slots (a token and one of its experts) on their way to the experts' owners and back.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "harness/base/model.h"
#include "harness/parallel/communicator.h"

namespace moe::parallel {

// The n = t*K slots of a rank, sorted by expert and, within one, by token.
struct SlotOrder {
  at::Tensor slot;           // [n] which slot (token * K + k) stands here
  at::Tensor token_of_slot;  // [n] its token
  at::Tensor inverse;        // [n] where slot i stands
  std::vector<std::int64_t> slots_per_expert;
};
SlotOrder OrderByExpert(const at::Tensor& topk_expert_TK, std::int64_t experts);

// Rows on the rank that owns their experts, ordered by expert; and the way back.
struct Dispatched {
  at::Tensor rows_nD;
  std::vector<std::int64_t> rows_per_expert;  // of this rank's experts
  std::vector<std::int64_t> sent;             // rows to each ep rank
  std::vector<std::int64_t> received;         // rows from each ep rank
  at::Tensor to_expert_order;  // [n] row order, from source rank first to expert first
  at::Tensor to_rank_order;    // [n] the reverse
};

// Sends rows, ordered by expert, over ep; backward sends the gradients the same way back.
Dispatched Dispatch(Communicator& comm, const at::Tensor& rows_nD,
                    const std::vector<std::int64_t>& slots_per_expert);
at::Tensor Combine(Communicator& comm, const at::Tensor& outputs_nD, const Dispatched& sent);

// The rows of all ranks of an etp group on each of them, ordered by expert; and the way back. The
// ranks bring different numbers of rows, so they travel in chunks of one size, filled up with
// zeros.
struct Gathered {
  at::Tensor rows_nD;
  std::vector<std::int64_t> rows_per_expert;
  std::int64_t own_rows = 0;
  std::int64_t chunk = 0;  // rows of the rank that has most, at least 1
  at::Tensor place;        // [n] where row i stands among the etp chunks
};

// Gathers rows, ordered by expert, over etp; backward sums d_routed_ND over etp, of which each rank
// keeps what is due to its own rows (Megatron-LM moe/token_dispatcher.py,
// MoEAlltoAllTokenDispatcher).
Gathered GatherOverEtp(Communicator& comm, const at::Tensor& rows_nD,
                       const std::vector<std::int64_t>& rows_per_expert);
// Sums y_routed_ND, what the slices of the hidden units give of each row, over etp; each rank keeps
// its own rows [own_rows, D]. Backward gathers their cotangents.
at::Tensor SumOverEtp(Communicator& comm, const at::Tensor& outputs_nD, const Gathered& gathered);

// rows[i] * scale[i], multiplied in the scale's dtype and rounded once to that of the rows.
at::Tensor ScaleRows(const at::Tensor& rows_nD, const at::Tensor& scale_n);

// Sum over a token's K slots, weighted unless the score was applied before the experts; in the
// scores' dtype, rounded once.
at::Tensor SumSlots(const at::Tensor& slots_TKD, const at::Tensor& topk_score_TK,
                    ScorePlacement placement);

}  // namespace moe::parallel
