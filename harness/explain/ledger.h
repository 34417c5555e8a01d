// Which rank had which share of a tensor before any sum over ranks: the reference's contributions,
// handed to the ranks the way a parallel step spreads the work. A sum over an axis adds up shares,
// so what a rank holds in the end says which shares it got.
//
// How the work lies is not in a dump. The ways that steps are known to use are tried (Spread), and
// one counts only if its shares add up to the reference.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "harness/dump/manifest.h"
#include "harness/explain/sum_table.h"
#include "reference/contributions.h"

namespace moe {

enum class Spread {
  kTokens,       // each rank has its own tokens, whole experts
  kFlatTokens,   // tp splits the flattened tokens of a data-parallel share (torchtitan, etp 1)
  kHiddenUnits,  // tp has all tokens of the share, each rank a slice of the hidden units
  kOwners,       // each rank has the tokens of its ep group, its own experts
  kEtpSlices,    // folding: each rank has the tokens of its ep * etp group, a slice of the hidden
                 // units of its own experts
  // Shares that do not add up to the whole, since no rank saw the others' part: tokens of one tp
  // rank with the hidden units or the flat slice of the same; own tokens with own experts; own
  // tokens with the own slice of the hidden units.
  kUngatheredTokens,
  kUngatheredOwners,
  kUngatheredSlices,
  // Of an expert weight: what each rank's own rows give that it sends to the experts.
  kSources,
};

class Ledger {
 public:
  // Everything must outlive this. Nothing is computed before it is asked for.
  Ledger(const Manifest& manifest, const reference::Problem& problem,
         const reference::Routing& routing);

  // Whether its terms fit in memory; nothing else may be asked of one whose do not.
  bool IsAffordable() const;

  // Those that make sense under the manifest's layout.
  const std::vector<Spread>& spreads() const { return spreads_; }

  // Paths that the shares of a tensor are kept apart by: "routed", "shared" and, of d_x_TD, "gate"
  // for tensors with rows of tokens, as far as the model has them; one of "" for all others.
  std::vector<std::string> PathsOf(const std::string& tensor) const;

  // Whether the ledger knows this tensor: a result of the model, or tokens_per_expert_E.
  bool Knows(const std::string& tensor) const;

  // The share of rank `source` along `path`, at the places `slice` (global indices), row-major.
  std::vector<double> Share(Spread spread, const std::string& tensor, const std::string& path,
                            std::int64_t source, const Slice& slice);

  // The shares of several ranks, each as often as is said, added up: as the share of one whose
  // tokens and parts are all of theirs, so that it costs as much for thousands of ranks as for a
  // few.
  std::vector<double> Shares(Spread spread, const std::string& tensor, const std::string& path,
                             const SumTable::Row& sources, const Slice& slice);

  // Whether rank `source` sends rows to the experts of rank `holder`: under tensor-parallel experts
  // that all have the same rows, only to those of its own slice.
  bool SendsTo(std::int64_t source, std::int64_t holder) const;

  // Whether tp ranks route their own parts of tokens that all of them have, so that the scores of
  // the others' slots could get a gradient too; and what the tensor is if each of them gives its
  // own slots' gradients to the slots at the same places of the others' parts.
  bool MayLeakSlots(const std::string& tensor) const;
  std::vector<double> WithLeakedSlots(const std::string& tensor, const Slice& slice);

  // The share of all ranks together: what a correct step gives.
  std::vector<double> Whole(const std::string& tensor, const std::string& path, const Slice& slice);

  // The tokens that the ranks `sources` bring to their shares of `tensor` under `spread`, and how
  // many slots of some tokens go to these experts.
  std::vector<bool> TokensOf(Spread spread, const std::string& tensor,
                             const std::vector<std::int64_t>& sources) const;
  double SlotsOf(const std::vector<bool>& in_T, const std::vector<std::int64_t>& experts) const;

 private:
  using Tokens = std::vector<std::int64_t>;  // ascending

  // A part of the work on some tokens.
  struct Work {
    std::int64_t owner = -1;  // -1: all
    std::int64_t slice = -1;
    std::int64_t shared_slice = -1;
    auto operator<=>(const Work&) const = default;
  };
  // What a share is made of: tokens, each so many times, and a part of the work on them.
  struct Parts {
    std::vector<double> times_T;
    Work work;
    auto operator<=>(const Parts&) const = default;
  };

  Tokens TokensOfShare(Spread spread, const TensorRow& tensor, Path path,
                       std::int64_t source) const;
  const Tokens& RoutedTokens(Spread spread, std::int64_t rank) const;
  bool SplitsByOwner(Spread spread) const;
  bool SplitsBySlice(Spread spread) const;
  const std::vector<Dim>& TermsOf(const TensorRow& tensor, Path path) const;
  Work WorkOf(Spread spread, const TensorRow& tensor, Path path, std::int64_t source) const;

  std::vector<double> Read(const TensorRow& tensor, Path path, const Parts& parts,
                           const Slice& slice);
  const reference::Matrix& Gradient(const TensorRow& tensor, std::int64_t expert,
                                    const Parts& parts);
  reference::Matrix MakeGradient(const TensorRow& tensor, std::int64_t expert, const Parts& parts);
  const reference::Contributions& Terms(bool by_owner, bool by_slice);
  const reference::Contributions& TermsFor(const Work& work);
  const reference::TokenSum& ExpertTerms(const TensorRow& tensor, std::int64_t expert);
  std::int64_t Coordinate(std::int64_t rank, Axis axis) const;

  const Manifest& manifest_;
  const reference::Problem& problem_;
  const reference::Routing& routing_;
  std::vector<Spread> spreads_;
  std::int64_t owners_;  // parts that the axes cut evenly; 1 where they do not
  std::int64_t slices_;
  std::int64_t shared_slices_;
  bool slices_hidden_;        // etp = tp > 1: tp has all tokens, slices of hidden units
  bool is_folded_;            // etp has slices of hidden units, and other tokens each
  std::vector<Tokens> own_;   // tokens by rank: its rows,
  std::vector<Tokens> tp_;    // those of its tp group,
  std::vector<Tokens> flat_;  // its part of these in order,
  std::vector<Tokens> ep_;    // those of its ep group,
  std::vector<Tokens> sent_;  // those that its ep * etp group sends to the experts
  mutable std::map<std::pair<std::string_view, Path>, std::vector<Dim>> terms_of_;
  // Split by owner, by slice, or both.
  std::map<std::pair<bool, bool>, std::unique_ptr<reference::Contributions>> terms_;
  std::optional<reference::Contributions::GatePart> leaked_;
  std::map<std::int64_t, std::map<std::string, reference::TokenSum>> expert_terms_;
  std::map<std::tuple<std::string_view, std::int64_t, Parts>, reference::Matrix> gradients_;
  std::int64_t kept_ = 0;  // numbers in the two maps above
};

}  // namespace moe
