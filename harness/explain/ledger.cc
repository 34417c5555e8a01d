#include "harness/explain/ledger.h"

#include <algorithm>

namespace moe {
namespace {

using reference::Contributions;
using reference::Matrix;
using reference::TokenSum;

bool HasRows(const std::string& tensor) {
  return tensor == "y_TD" || tensor == "d_x_TD";
}

bool IsShared(const std::string& tensor, const std::string& path) {
  return path == "shared" || tensor.starts_with("d_shared_");
}

constexpr std::int64_t kMostKept = std::int64_t{1} << 26;  // numbers, 512 MiB

std::vector<bool> Union(const std::vector<std::vector<bool>>& sets,
                        const std::vector<std::int64_t>& ranks) {
  std::vector<bool> all(sets.front().size(), false);
  for (const std::int64_t rank : ranks) {
    const auto& set = sets[static_cast<std::size_t>(rank)];
    for (std::size_t token = 0; token < set.size(); ++token) {
      all[token] = all[token] || set[token];
    }
  }
  return all;
}

std::vector<bool> Both(const std::vector<bool>& a, const std::vector<bool>& b) {
  std::vector<bool> both(a.size());
  for (std::size_t token = 0; token < a.size(); ++token) {
    both[token] = a[token] && b[token];
  }
  return both;
}

// Chunk `which` of `count` of the marked tokens, in their order.
std::vector<bool> ChunkOf(const std::vector<bool>& tokens, std::int64_t count, std::int64_t which) {
  const auto marked = std::count(tokens.begin(), tokens.end(), true);
  const std::int64_t size = (marked + count - 1) / count;
  std::vector<bool> chunk(tokens.size(), false);
  std::int64_t seen = 0;
  for (std::size_t token = 0; token < tokens.size(); ++token) {
    if (tokens[token]) {
      chunk[token] = seen / size == which;
      ++seen;
    }
  }
  return chunk;
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
std::vector<bool> RowsOfRank(const Manifest& manifest, std::int64_t rank) {
  std::vector<bool> rows(static_cast<std::size_t>(manifest.model.tokens), false);
  for (const char* name : {"y_TD", "d_x_TD", "x_TD", "d_y_TD"}) {
    if (manifest.tensors.contains(name)) {
      const Slice slice = SliceOf(manifest, name, rank);
      for (const std::int64_t token : slice.index[0]) {
        rows[static_cast<std::size_t>(token)] = true;
      }
      return rows;
    }
  }
  for (const std::int64_t token :
       TokensOf(manifest.model, manifest.layout, rank, manifest.layout.sp)) {
    rows[static_cast<std::size_t>(token)] = true;
  }
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
  constexpr std::int64_t kMostRanks = 512;
  constexpr std::int64_t kMostNumbers = std::int64_t{1} << 29;  // 4 GiB
  // y_TD routed and shared, d_x_TD along three paths: one [T, D] for every part.
  const Model& model = manifest_.model;
  const std::int64_t routed = is_folded_ ? owners_ * slices_ : std::max(owners_, slices_);
  const std::int64_t parts = 3 * routed + 2 * shared_slices_;
  return manifest_.WorldSize() <= kMostRanks &&
         model.tokens * model.d_model <= kMostNumbers / parts;
}

bool Ledger::Knows(const std::string& tensor) const {
  const auto results = ResultsOf(manifest_.model);
  return tensor == "tokens_per_expert_E" ||
         std::any_of(results.begin(), results.end(),
                     [&](const TensorInfo& info) { return info.name == tensor; });
}

std::vector<std::string> Ledger::PathsOf(const std::string& tensor) const {
  if (!HasRows(tensor)) {
    return {""};
  }
  std::vector<std::string> paths = {"routed"};
  if (tensor == "d_x_TD") {
    paths.emplace_back("gate");
  }
  if (manifest_.model.d_shared > 0) {
    paths.emplace_back("shared");
  }
  return paths;
}

std::int64_t Ledger::Coordinate(std::int64_t rank, Axis axis) const {
  return manifest_.meshes.With(axis).Coordinate(rank, axis);
}

const std::vector<bool>& Ledger::RoutedTokens(Spread spread, std::int64_t rank) const {
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

Ledger::Parts Ledger::PartsOf(Spread spread, const std::string& tensor, const std::string& path,
                              std::int64_t source) const {
  const auto r = static_cast<std::size_t>(source);
  const bool ungathered = spread == Spread::kUngatheredTokens;
  Parts parts;
  if (tensor == "tokens_per_expert_E") {
    parts.in_T = own_[r];
    return parts;
  }
  if (spread == Spread::kSources) {
    parts.in_T = slices_hidden_ ? tp_[r] : flat_ != own_ ? flat_[r] : own_[r];
    return parts;
  }
  if (IsExpertWeight(tensor)) {
    // An expert sees what the ranks that share its edp coordinate send it.
    const Mesh& expert = manifest_.meshes.expert;
    if (ungathered) {
      const auto senders = expert.GroupOf(
          source, slices_hidden_ ? std::vector{Axis::kEp} : std::vector{Axis::kEp, Axis::kEtp});
      parts.in_T.assign(own_[r].size(), false);
      for (const std::int64_t sender : senders) {
        const auto s = static_cast<std::size_t>(sender);
        const auto sent = slices_hidden_ ? own_[s] : Both(own_[s], flat_[s]);
        std::transform(sent.begin(), sent.end(), parts.in_T.begin(), parts.in_T.begin(),
                       std::logical_or<>());
      }
      return parts;
    }
    parts.in_T = Union(spread == Spread::kFlatTokens    ? flat_
                       : spread == Spread::kHiddenUnits ? tp_
                                                        : own_,
                       expert.GroupOf(source, {Axis::kEp, Axis::kEtp}));
    return parts;
  }
  if (IsShared(tensor, path)) {
    // The shared experts have all tokens of the tp group and a slice of the hidden units.
    parts.in_T = ungathered ? own_[r] : tp_[r];
    if (shared_slices_ > 1 && !tensor.starts_with("d_shared_w")) {
      parts.shared_slice = Coordinate(source, Axis::kTp);
    }
    return parts;
  }
  parts.in_T =
      ungathered && !slices_hidden_ ? Both(own_[r], flat_[r]) : RoutedTokens(spread, source);
  const bool of_etp = spread == Spread::kEtpSlices || spread == Spread::kUngatheredSlices;
  if (spread == Spread::kHiddenUnits || of_etp || (ungathered && slices_hidden_)) {
    parts.slice = Coordinate(source, Axis::kEtp);
  }
  if (spread == Spread::kOwners || spread == Spread::kUngatheredOwners ||
      (spread == Spread::kEtpSlices && owners_ > 1)) {
    parts.owner = Coordinate(source, Axis::kEp);
  }
  return parts;
}

std::vector<bool> Ledger::TokensOf(Spread spread, const std::string& tensor,
                                   const std::vector<std::int64_t>& sources) const {
  std::vector<bool> all(own_.front().size(), false);
  for (const std::int64_t source : sources) {
    const auto in_T = PartsOf(spread, tensor, PathsOf(tensor).front(), source).in_T;
    std::transform(all.begin(), all.end(), in_T.begin(), all.begin(), std::logical_or<>());
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
  return Read(tensor, path, PartsOf(spread, tensor, path, source), slice);
}

bool Ledger::SendsTo(std::int64_t source, std::int64_t holder) const {
  return !slices_hidden_ || Coordinate(source, Axis::kEtp) == Coordinate(holder, Axis::kEtp);
}

bool Ledger::MayLeakSlots(const std::string& tensor) const {
  const bool is_of_gate = tensor.starts_with("d_gate") || tensor == "d_x_TD";
  return is_of_gate && manifest_.layout.tp > 1 && !slices_hidden_;
}

std::vector<double> Ledger::WithLeakedSlots(const std::string& tensor, const Slice& slice) {
  if (!leaked_) {
    const Mesh& dense = manifest_.meshes.dense;
    std::vector<std::vector<std::int64_t>> tokens_T(own_.front().size());
    for (std::int64_t rank = 0; rank < dense.WorldSize(); ++rank) {
      // The tokens of the rank's part in order, and those at the same places of the other parts.
      const auto group = dense.GroupOf(rank, {Axis::kTp});
      std::vector<std::vector<std::int64_t>> parts;
      for (const std::int64_t member : group) {
        auto& part = parts.emplace_back();
        const auto& has = flat_[static_cast<std::size_t>(member)];
        for (std::size_t token = 0; token < has.size(); ++token) {
          if (has[token]) {
            part.push_back(static_cast<std::int64_t>(token));
          }
        }
      }
      for (std::size_t place = 0; group.front() == rank && place < parts.front().size(); ++place) {
        std::vector<std::int64_t> alike;
        for (const auto& part : parts) {
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
  if (tensor == "d_x_TD") {
    for (const std::int64_t token : slice.index[0]) {
      for (const std::int64_t column : slice.index[1]) {
        values.push_back(leaked_->d_x_TD(token, column));
      }
    }
    for (const std::string& path : PathsOf(tensor)) {
      if (path != "gate") {
        const auto part = Whole(tensor, path, slice);
        std::transform(values.begin(), values.end(), part.begin(), values.begin(), std::plus<>());
      }
    }
    return values;
  }
  const std::vector<bool> all(own_.front().size(), true);
  Append(SumOf(tensor == "d_gate_ED" ? leaked_->d_gate_ED : leaked_->d_gate_bias_E, all), slice,
         values);
  return values;
}

std::vector<double> Ledger::Whole(const std::string& tensor, const std::string& path,
                                  const Slice& slice) {
  return Read(tensor, path, {.in_T = std::vector<bool>(own_.front().size(), true)}, slice);
}

std::vector<double> Ledger::Read(const std::string& tensor, const std::string& path,
                                 const Parts& parts, const Slice& slice) {
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(NumElements(slice.LocalShape())));
  if (!HasRows(tensor)) {
    if (!IsExpertWeight(tensor)) {
      Append(Gradient(tensor, 0, parts), slice, values);
      return values;
    }
    for (const std::int64_t expert : slice.index[0]) {
      Append(Gradient(tensor, expert, parts), slice, values);
    }
    return values;
  }
  const Contributions& terms = TermsFor(parts);
  const reference::Path along = path == "gate"     ? reference::Path::kGate
                                : path == "shared" ? reference::Path::kShared
                                                   : reference::Path::kRouted;
  std::vector<const Matrix*> included;
  for (const reference::RowTerm& term : tensor == "y_TD" ? terms.y_TD() : terms.d_x_TD()) {
    const std::int64_t wanted =
        along == reference::Path::kShared ? parts.shared_slice : parts.slice;
    if (term.path == along && (wanted < 0 || wanted == term.slice) &&
        (parts.owner < 0 || along == reference::Path::kShared || parts.owner == term.owner)) {
      included.push_back(&term.value_TD);
    }
  }
  for (const std::int64_t token : slice.index[0]) {
    const bool has = parts.in_T[static_cast<std::size_t>(token)];
    for (const std::int64_t column : slice.index[1]) {
      double sum = 0.0;
      for (const Matrix* term : included) {
        sum += has ? (*term)(token, column) : 0.0;
      }
      values.push_back(sum);
    }
  }
  return values;
}

const Matrix& Ledger::Gradient(const std::string& tensor, std::int64_t expert, const Parts& parts) {
  const auto key = std::make_tuple(tensor, expert, parts);
  if (const auto found = gradients_.find(key); found != gradients_.end()) {
    return found->second;
  }
  Matrix gradient = MakeGradient(tensor, expert, parts);
  if (kept_ > kMostKept) {  // A real layer's experts do not fit in memory together.
    gradients_.clear();
    expert_terms_.clear();
    kept_ = 0;
  }
  kept_ += gradient.size();
  return gradients_.emplace(key, std::move(gradient)).first->second;
}

Matrix Ledger::MakeGradient(const std::string& tensor, std::int64_t expert, const Parts& parts) {
  if (tensor == "tokens_per_expert_E") {
    Matrix counts = Matrix::Zero(1, manifest_.model.experts);
    for (Eigen::Index token = 0; token < routing_.topk_expert_TK.rows(); ++token) {
      for (Eigen::Index slot = 0; slot < routing_.topk_expert_TK.cols(); ++slot) {
        counts(0, routing_.topk_expert_TK(token, slot)) +=
            parts.in_T[static_cast<std::size_t>(token)] ? 1.0 : 0.0;
      }
    }
    return counts;
  }
  if (IsExpertWeight(tensor)) {
    const reference::ExpertSums& sums = ExpertTerms(expert);
    return SumOf(tensor == "d_w1_EFD"   ? sums.d_w1_FD
                 : tensor == "d_w3_EFD" ? sums.d_w3_FD
                                        : sums.d_w2_DF,
                 parts.in_T);
  }
  const Contributions& terms = TermsFor(parts);
  if (tensor.starts_with("d_shared_w")) {
    return SumOf(tensor == "d_shared_w1_FD"   ? terms.shared().d_w1_FD
                 : tensor == "d_shared_w3_FD" ? terms.shared().d_w3_FD
                                              : terms.shared().d_w2_DF,
                 parts.in_T);
  }
  const bool of_shared = tensor == "d_shared_gate_D";
  const std::int64_t owners = of_shared || parts.owner < 0 ? 1 : owners_;
  const bool is_whole = parts.owner >= 0 && parts.slice < 0;
  const std::int64_t slices = of_shared ? shared_slices_ : is_whole ? 1 : slices_;
  const std::int64_t wanted = of_shared ? parts.shared_slice : parts.slice;
  Matrix sum;
  for (std::int64_t owner = 0; owner < owners; ++owner) {
    for (std::int64_t slice = 0; slice < slices; ++slice) {
      if ((owners > 1 && owner != parts.owner) || (wanted >= 0 && slice != wanted)) {
        continue;
      }
      const TokenSum& part = of_shared               ? terms.d_shared_gate_D(slice)
                             : tensor == "d_gate_ED" ? terms.d_gate_ED(owner, slice)
                                                     : terms.d_gate_bias_E(owner, slice);
      const Matrix value = SumOf(part, parts.in_T);
      sum = sum.size() == 0 ? value : Matrix(sum + value);
    }
  }
  return sum;
}

// A tensor's terms need not be split by slice where its shares are those of owners.
const Contributions& Ledger::TermsFor(const Parts& parts) {
  return Terms(parts.owner >= 0, parts.owner < 0 || parts.slice >= 0);
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

const reference::ExpertSums& Ledger::ExpertTerms(std::int64_t expert) {
  if (const auto found = expert_terms_.find(expert); found != expert_terms_.end()) {
    return found->second;
  }
  reference::ExpertSums sums = Terms(/*by_owner=*/false, /*by_slice=*/true).OfExpert(expert);
  for (const TokenSum* sum : {&sums.d_w1_FD, &sums.d_w3_FD, &sums.d_w2_DF}) {
    kept_ += sum->left_NR.size() + sum->right_NC.size();
  }
  return expert_terms_.emplace(expert, std::move(sums)).first->second;
}

}  // namespace moe
