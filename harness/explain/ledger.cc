#include "harness/explain/ledger.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>

#include "harness/base/tensor_table.h"
#include "harness/layout/step_graph.h"

namespace moe {
namespace {

using reference::Contributions;
using reference::Matrix;
using reference::TokenSum;

using Tokens = std::vector<std::int64_t>;

constexpr std::int64_t kMostKept = std::int64_t{1} << 26;  // numbers, 512 MiB

Tokens Union(const std::vector<Tokens>& sets, const std::vector<std::int64_t>& ranks) {
  Tokens all;
  for (const std::int64_t rank : ranks) {
    const Tokens& set = sets[static_cast<std::size_t>(rank)];
    all.insert(all.end(), set.begin(), set.end());
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

Tokens Both(const Tokens& a, const Tokens& b) {
  Tokens both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return both;
}

// Chunk `which` of `count` of the tokens, in their order.
Tokens ChunkOf(const Tokens& tokens, std::int64_t count, std::int64_t which) {
  const std::int64_t size = (std::ssize(tokens) + count - 1) / count;
  const auto at = [&](std::int64_t chunk) {
    return tokens.begin() + std::min(std::ssize(tokens), chunk * size);
  };
  return {at(which), at(which + 1)};
}

// Equal runs of neighbours, as ranks of an axis have them: index -> part.
std::vector<std::int64_t> EvenParts(std::int64_t indices, std::int64_t parts) {
  std::vector<std::int64_t> part;
  for (std::int64_t i = 0; i < indices; ++i) {
    part.push_back(i * parts / indices);
  }
  return part;
}

// `parts` where they are equal, else 1: what is not cut evenly is not cut.
std::int64_t EvenCount(std::int64_t indices, std::int64_t parts) {
  return indices > 0 && indices % parts == 0 ? parts : 1;
}

// The rows that a rank has of the layer's input or output.
Tokens RowsOfRank(const Manifest& manifest, std::int64_t rank) {
  const std::array<const char*, 4> dumped = {tensor::y_TD, tensor::d_x_TD, tensor::x_TD,
                                             tensor::d_y_TD};
  const auto* const name = std::find_if(dumped.begin(), dumped.end(), [&](const char* one) {
    return manifest.tensors.contains(one);
  });
  Tokens rows = name != dumped.end()
                    ? SliceOf(manifest, *name, rank).index[0]
                    : TokensOf(manifest.model, manifest.layout, rank, manifest.layout.sp);
  std::sort(rows.begin(), rows.end());
  return rows;
}

// `matrix` at the places of the last two dimensions of `slice`, appended to `out`.
void Append(const Matrix& matrix, const Slice& slice, std::vector<double>& out) {
  const std::size_t dims = slice.index.size();
  static const std::vector<std::int64_t> kOneRow = {0};
  for (const std::int64_t row : dims < 2 ? kOneRow : slice.index[dims - 2]) {
    for (const std::int64_t column : slice.index[dims - 1]) {
      out.push_back(matrix(row, column));
    }
  }
}

bool Has(const std::vector<Dim>& dims, Dim dim) {
  return std::find(dims.begin(), dims.end(), dim) != dims.end();
}

// The path that a text of PathsOf stands for: one of several, or the only one.
Path PathOf(const TensorRow& tensor, const std::string& text) {
  return PathFromText(text).value_or(tensor.paths.empty() ? Path::kRouted : tensor.paths.front());
}

}  // namespace

Ledger::Ledger(const Manifest& manifest, const reference::Problem& problem,
               const reference::Routing& routing)
    : manifest_(manifest),
      problem_(problem),
      routing_(routing),
      owners_(EvenCount(manifest.model.experts, manifest.layout.ep)),
      slices_(EvenCount(manifest.model.d_expert, manifest.layout.etp)),
      shared_slices_(EvenCount(manifest.model.d_shared, manifest.layout.tp)),
      slices_hidden_(slices_ > 1 && manifest.layout.etp == manifest.layout.tp),
      is_folded_(slices_ > 1 && manifest.layout.IsFolded()) {
  const Mesh& dense = manifest.meshes.dense;
  const Mesh& expert = manifest.meshes.expert;
  for (std::int64_t rank = 0; rank < manifest.WorldSize(); ++rank) {
    own_.push_back(RowsOfRank(manifest, rank));
  }
  for (std::int64_t rank = 0; rank < manifest.WorldSize(); ++rank) {
    tp_.push_back(Union(own_, dense.GroupOf(rank, {Axis::kTp})));
    ep_.push_back(Union(own_, expert.GroupOf(rank, {Axis::kEp})));
    flat_.push_back(
        ChunkOf(tp_.back(), dense.SizeOf(Axis::kTp), dense.Coordinate(rank, Axis::kTp)));
  }
  for (std::int64_t rank = 0; rank < manifest.WorldSize(); ++rank) {
    sent_.push_back(Union(flat_, expert.GroupOf(rank, {Axis::kEp, Axis::kEtp})));
  }
  if (slices_hidden_) {
    spreads_ = {Spread::kHiddenUnits, Spread::kTokens};
  } else if (flat_ != own_) {
    spreads_ = {Spread::kFlatTokens, Spread::kTokens};
  } else {
    spreads_ = {Spread::kTokens};
  }
  if (is_folded_) {
    spreads_.push_back(Spread::kEtpSlices);
  }
  if (manifest.layout.tp > 1 && own_ != tp_) {
    spreads_.push_back(Spread::kUngatheredTokens);
  }
  if (owners_ > 1) {
    spreads_.push_back(Spread::kOwners);
    spreads_.push_back(Spread::kUngatheredOwners);
  }
  if (is_folded_) {
    spreads_.push_back(Spread::kUngatheredSlices);
  }
}

bool Ledger::IsAffordable() const {
  constexpr std::int64_t kMostNumbers = std::int64_t{1} << 29;  // 4 GiB
  // Rows of y_TD routed and shared, of d_x_TD along three paths: for every slice of hidden units
  // those of the tokens that chose an owner's experts, at most top_k owners for each.
  const Model& model = manifest_.model;
  const std::int64_t routed = std::min(owners_, model.top_k) * slices_;
  const std::int64_t parts = 3 * routed + 2 * shared_slices_;
  return model.tokens * model.d_model <= kMostNumbers / parts;
}

bool Ledger::Knows(const std::string& tensor) const {
  const TensorRow* row = FindTensor(tensor);
  return row != nullptr && row->IsIn(manifest_.model) &&
         (row->IsResult() || row->role == Role::kCount);
}

std::vector<std::string> Ledger::PathsOf(const std::string& tensor) const {
  const TensorRow& row = TensorOf(tensor);
  if (row.paths.size() < 2) {
    return {""};
  }
  std::vector<std::string> paths;
  for (const Path path : row.paths) {
    if (path != Path::kShared || manifest_.model.d_shared > 0) {
      paths.emplace_back(ToText(path));
    }
  }
  return paths;
}

std::int64_t Ledger::Coordinate(std::int64_t rank, Axis axis) const {
  return manifest_.meshes.With(axis).Coordinate(rank, axis);
}

bool Ledger::SplitsByOwner(Spread spread) const {
  return spread == Spread::kOwners || spread == Spread::kUngatheredOwners ||
         (spread == Spread::kEtpSlices && owners_ > 1);
}

bool Ledger::SplitsBySlice(Spread spread) const {
  return spread == Spread::kHiddenUnits || spread == Spread::kEtpSlices ||
         spread == Spread::kUngatheredSlices ||
         (spread == Spread::kUngatheredTokens && slices_hidden_);
}

// Where the routed experts are concerned.
const Tokens& Ledger::RoutedTokens(Spread spread, std::int64_t rank) const {
  const auto r = static_cast<std::size_t>(rank);
  switch (spread) {
    case Spread::kHiddenUnits:
      return tp_[r];
    case Spread::kFlatTokens:
    case Spread::kUngatheredSlices:
      return flat_[r];
    case Spread::kEtpSlices:
      return sent_[r];
    case Spread::kOwners:
      return ep_[r];
    case Spread::kTokens:
    case Spread::kUngatheredTokens:
    case Spread::kUngatheredOwners:
    case Spread::kSources:
      return own_[r];
  }
  return own_[r];
}

Tokens Ledger::TokensOfShare(Spread spread, const TensorRow& tensor, Path path,
                             std::int64_t source) const {
  const auto r = static_cast<std::size_t>(source);
  const bool ungathered = spread == Spread::kUngatheredTokens;
  if (tensor.role == Role::kCount) {
    return own_[r];
  }
  if (spread == Spread::kSources) {
    return slices_hidden_ ? tp_[r] : flat_[r];
  }
  if (tensor.mesh == MeshKind::kExpert) {
    // An expert sees what the ranks that share its edp coordinate send it.
    const Mesh& expert = manifest_.meshes.expert;
    if (!ungathered) {
      return Union(spread == Spread::kFlatTokens    ? flat_
                   : spread == Spread::kHiddenUnits ? tp_
                                                    : own_,
                   expert.GroupOf(source, {Axis::kEp, Axis::kEtp}));
    }
    Tokens all;
    for (const std::int64_t sender :
         expert.GroupOf(source, slices_hidden_ ? std::vector{Axis::kEp}
                                               : std::vector{Axis::kEp, Axis::kEtp})) {
      const auto s = static_cast<std::size_t>(sender);
      const Tokens sent = slices_hidden_ ? own_[s] : Both(own_[s], flat_[s]);
      all.insert(all.end(), sent.begin(), sent.end());
    }
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
  }
  if (path == Path::kShared) {
    return ungathered ? own_[r] : tp_[r];
  }
  return ungathered && !slices_hidden_ ? Both(own_[r], flat_[r]) : RoutedTokens(spread, source);
}

const std::vector<Dim>& Ledger::TermsOf(const TensorRow& tensor, Path path) const {
  const auto key = std::pair(tensor.name, path);
  const auto found = terms_of_.find(key);
  return found != terms_of_.end()
             ? found->second
             : terms_of_.emplace(key, moe::TermsOf(tensor.name, path, manifest_.model))
                   .first->second;
}

// What the terms of the tensor are cut along, as far as this spread cuts them so.
Ledger::Work Ledger::WorkOf(Spread spread, const TensorRow& tensor, Path path,
                            std::int64_t source) const {
  Work work;
  if (tensor.role == Role::kCount || spread == Spread::kSources) {
    return work;
  }
  const std::vector<Dim>& terms = TermsOf(tensor, path);
  if (Has(terms, Dim::kE) && SplitsByOwner(spread)) {
    work.owner = Coordinate(source, Axis::kEp);
  }
  if (Has(terms, Dim::kF) && SplitsBySlice(spread)) {
    work.slice = Coordinate(source, Axis::kEtp);
  }
  if (Has(terms, Dim::kS) && shared_slices_ > 1) {
    work.shared_slice = Coordinate(source, Axis::kTp);
  }
  return work;
}

std::vector<bool> Ledger::TokensOf(Spread spread, const std::string& tensor,
                                   const std::vector<std::int64_t>& sources) const {
  const TensorRow& row = TensorOf(tensor);
  const Path path = PathOf(row, PathsOf(tensor).front());
  std::vector<bool> all(static_cast<std::size_t>(manifest_.model.tokens), false);
  for (const std::int64_t source : sources) {
    for (const std::int64_t token : TokensOfShare(spread, row, path, source)) {
      all[static_cast<std::size_t>(token)] = true;
    }
  }
  return all;
}

double Ledger::SlotsOf(const std::vector<bool>& in_T,
                       const std::vector<std::int64_t>& experts) const {
  double slots = 0.0;
  for (Eigen::Index token = 0; token < routing_.topk_expert_TK.rows(); ++token) {
    for (Eigen::Index slot = 0; slot < routing_.topk_expert_TK.cols(); ++slot) {
      const bool counts = in_T[static_cast<std::size_t>(token)] &&
                          std::find(experts.begin(), experts.end(),
                                    routing_.topk_expert_TK(token, slot)) != experts.end();
      slots += counts ? 1.0 : 0.0;
    }
  }
  return slots;
}

std::vector<double> Ledger::Share(Spread spread, const std::string& tensor, const std::string& path,
                                  std::int64_t source, const Slice& slice) {
  return Shares(spread, tensor, path, {{source, 1.0}}, slice);
}

std::vector<double> Ledger::Shares(Spread spread, const std::string& tensor,
                                   const std::string& path, const SumTable::Row& sources,
                                   const Slice& slice) {
  const TensorRow& row = TensorOf(tensor);
  const Path along = PathOf(row, path);
  std::map<Work, std::vector<double>> times;  // of each token
  for (const SumTable::Held& held : sources) {
    std::vector<double>& times_T = times[WorkOf(spread, row, along, held.source)];
    times_T.resize(static_cast<std::size_t>(manifest_.model.tokens), 0.0);
    for (const std::int64_t token : TokensOfShare(spread, row, along, held.source)) {
      times_T[static_cast<std::size_t>(token)] += held.times;
    }
  }
  std::vector<double> values(static_cast<std::size_t>(NumElements(slice.LocalShape())), 0.0);
  for (auto& [work, times_T] : times) {
    const std::vector<double> part = Read(row, along, {std::move(times_T), work}, slice);
    std::transform(values.begin(), values.end(), part.begin(), values.begin(), std::plus<>());
  }
  return values;
}

bool Ledger::SendsTo(std::int64_t source, std::int64_t holder) const {
  return !slices_hidden_ || Coordinate(source, Axis::kEtp) == Coordinate(holder, Axis::kEtp);
}

bool Ledger::MayLeakSlots(const std::string& tensor) const {
  const auto paths = TensorOf(tensor).paths;
  const bool is_of_gate = std::any_of(paths.begin(), paths.end(), [](Path path) {
    return path == Path::kGate || path == Path::kScores;
  });
  return is_of_gate && manifest_.layout.tp > 1 && !slices_hidden_;
}

std::vector<double> Ledger::WithLeakedSlots(const std::string& tensor, const Slice& slice) {
  if (!leaked_) {
    const Mesh& dense = manifest_.meshes.dense;
    std::vector<std::vector<std::int64_t>> tokens_T(
        static_cast<std::size_t>(manifest_.model.tokens));
    for (std::int64_t rank = 0; rank < dense.WorldSize(); ++rank) {
      // The tokens of the rank's part in order, and those at the same places of the other parts.
      const auto group = dense.GroupOf(rank, {Axis::kTp});
      for (std::size_t place = 0;
           group.front() == rank && place < flat_[static_cast<std::size_t>(rank)].size(); ++place) {
        std::vector<std::int64_t> alike;
        for (const std::int64_t member : group) {
          const Tokens& part = flat_[static_cast<std::size_t>(member)];
          if (place < part.size()) {
            alike.push_back(part[place]);
          }
        }
        for (const std::int64_t token : alike) {
          tokens_T[static_cast<std::size_t>(token)] = alike;
        }
      }
    }
    leaked_ = Terms(/*by_owner=*/false, /*by_slice=*/true).GateWithScoresOf(tokens_T);
  }
  std::vector<double> values;
  if (!TensorOf(tensor).HasRows()) {
    const std::vector<double> once(static_cast<std::size_t>(manifest_.model.tokens), 1.0);
    Append(SumOf(leaked_->sums.at(tensor), once), slice, values);
    return values;
  }
  for (const std::int64_t token : slice.index[0]) {
    for (const std::int64_t column : slice.index[1]) {
      values.push_back(leaked_->d_x_TD(token, column));
    }
  }
  for (const std::string& path : PathsOf(tensor)) {
    if (PathFromText(path) != Path::kGate) {
      const auto part = Whole(tensor, path, slice);
      std::transform(values.begin(), values.end(), part.begin(), values.begin(), std::plus<>());
    }
  }
  return values;
}

std::vector<double> Ledger::Whole(const std::string& tensor, const std::string& path,
                                  const Slice& slice) {
  const TensorRow& row = TensorOf(tensor);
  return Read(
      row, PathOf(row, path),
      {.times_T = std::vector<double>(static_cast<std::size_t>(manifest_.model.tokens), 1.0)},
      slice);
}

std::vector<double> Ledger::Read(const TensorRow& tensor, Path path, const Parts& parts,
                                 const Slice& slice) {
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(NumElements(slice.LocalShape())));
  if (!tensor.HasRows()) {
    const Tokens whole = {0};
    for (const std::int64_t expert : tensor.mesh == MeshKind::kExpert ? slice.index[0] : whole) {
      Append(Gradient(tensor, expert, parts), slice, values);
    }
    return values;
  }
  values.assign(values.capacity(), 0.0);
  for (const reference::RowTerm& term : TermsFor(parts.work).RowsOf(tensor.name)) {
    const bool is_shared = path == Path::kShared;
    const std::int64_t wanted = is_shared ? parts.work.shared_slice : parts.work.slice;
    if (term.path != path || (wanted >= 0 && wanted != term.slice) ||
        (parts.work.owner >= 0 && !is_shared && parts.work.owner != term.owner)) {
      continue;
    }
    std::size_t at = 0;
    for (const std::int64_t token : slice.index[0]) {
      const double times = parts.times_T[static_cast<std::size_t>(token)];
      const auto row = std::lower_bound(term.token_N.begin(), term.token_N.end(), token);
      if (times == 0.0 || row == term.token_N.end() || *row != token) {
        at += slice.index[1].size();
        continue;
      }
      for (const std::int64_t column : slice.index[1]) {
        values[at++] += times * term.value_ND(row - term.token_N.begin(), column);
      }
    }
  }
  return values;
}

const Matrix& Ledger::Gradient(const TensorRow& tensor, std::int64_t expert, const Parts& parts) {
  const auto key = std::make_tuple(tensor.name, expert, parts);
  if (const auto found = gradients_.find(key); found != gradients_.end()) {
    return found->second;
  }
  Matrix gradient = MakeGradient(tensor, expert, parts);
  if (kept_ > kMostKept) {  // A real layer's experts do not fit in memory together.
    gradients_.clear();
    expert_terms_.clear();
    kept_ = 0;
  }
  kept_ += gradient.size() + std::ssize(parts.times_T);
  return gradients_.emplace(key, std::move(gradient)).first->second;
}

Matrix Ledger::MakeGradient(const TensorRow& tensor, std::int64_t expert, const Parts& parts) {
  if (tensor.role == Role::kCount) {
    Matrix counts = Matrix::Zero(1, manifest_.model.experts);
    for (Eigen::Index token = 0; token < routing_.topk_expert_TK.rows(); ++token) {
      for (const std::int64_t chosen : routing_.topk_expert_TK.row(token)) {
        counts(0, chosen) += parts.times_T[static_cast<std::size_t>(token)];
      }
    }
    return counts;
  }
  if (tensor.mesh == MeshKind::kExpert) {
    return SumOf(ExpertTerms(tensor, expert), parts.times_T);
  }
  const std::vector<Dim>& dims = TermsOf(tensor, tensor.paths.front());
  const Contributions& terms = TermsFor(parts.work);
  const bool by_owner = Has(dims, Dim::kE) && parts.work.owner >= 0;
  const bool by_slice = Has(dims, Dim::kF) && (parts.work.owner < 0 || parts.work.slice >= 0);
  const std::int64_t slices = by_slice ? slices_ : Has(dims, Dim::kS) ? shared_slices_ : 1;
  const std::int64_t wanted = Has(dims, Dim::kS) ? parts.work.shared_slice : parts.work.slice;
  Matrix sum;
  for (std::int64_t slice = 0; slice < slices; ++slice) {
    if (wanted < 0 || slice == wanted) {
      const Matrix value =
          SumOf(terms.SumFor(tensor.name, by_owner ? parts.work.owner : 0, slice), parts.times_T);
      sum = sum.size() == 0 ? value : Matrix(sum + value);
    }
  }
  return sum;
}

// A tensor's terms need not be split by slice where its shares are those of owners.
const Contributions& Ledger::TermsFor(const Work& work) {
  return Terms(work.owner >= 0, work.owner < 0 || work.slice >= 0);
}

const Contributions& Ledger::Terms(bool by_owner, bool by_slice) {
  auto& terms = terms_[{by_owner, by_slice}];
  if (!terms) {
    const Model& model = manifest_.model;
    reference::Partition partition;
    if (by_owner) {
      partition.owner_E = EvenParts(model.experts, owners_);
    }
    if (by_slice) {
      partition.slice_F = EvenParts(model.d_expert, slices_);
    }
    partition.shared_slice_F = EvenParts(model.d_shared, shared_slices_);
    terms = std::make_unique<Contributions>(model, problem_, routing_, partition);
  }
  return *terms;
}

const TokenSum& Ledger::ExpertTerms(const TensorRow& tensor, std::int64_t expert) {
  auto found = expert_terms_.find(expert);
  if (found == expert_terms_.end()) {
    found =
        expert_terms_.emplace(expert, Terms(/*by_owner=*/false, /*by_slice=*/true).OfExpert(expert))
            .first;
    for (const auto& [name, sum] : found->second) {
      kept_ += sum.left_NR.size() + sum.right_NC.size();
    }
  }
  return found->second.at(std::string(tensor.name));
}

}  // namespace moe
