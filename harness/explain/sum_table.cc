#include "harness/explain/sum_table.h"

#include <algorithm>
#include <numeric>

namespace moe {
namespace {

// Ranks whose share alone may be lost are tried one by one; of more, share_fit tells.
constexpr std::int64_t kMostRanks = 64;
// Of more ranks the rows of these many are compared.
constexpr std::int64_t kMostCompared = 64;

bool Contains(const std::vector<Axis>& axes, Axis axis) {
  return std::find(axes.begin(), axes.end(), axis) != axes.end();
}

std::vector<Axis> AxesOver1(const Mesh& mesh) {
  std::vector<Axis> axes;
  std::copy_if(mesh.axes.begin(), mesh.axes.end(), std::back_inserter(axes),
               [&](Axis axis) { return mesh.SizeOf(axis) > 1; });
  return axes;
}

class HypothesisList {
 public:
  explicit HypothesisList(const SumQuestion& question)
      : question_(question), meshes_(*question.meshes), right_(AfterSums(meshes_, question.sums)) {
    const bool dense = question.own == MeshKind::kDense;
    own_axes_ = AxesOver1(meshes_.Of(question.own));
    all_axes_ = own_axes_;
    const auto others = AxesOver1(dense ? meshes_.expert : meshes_.dense);
    all_axes_.insert(all_axes_.end(), others.begin(), others.end());
    for (const Axis axis : all_axes_) {
      usable_.push_back({{axis}, AfterSums(meshes_, {axis})});
    }
    std::vector<Axis> batch = AxesOver1(meshes_.dense);
    std::erase(batch, Axis::kTp);
    if (!dense && batch.size() > 1) {
      usable_.push_back({batch, AfterSums(meshes_, batch)});
    }
  }

  std::vector<SumHypothesis> Make() {
    AddMissing(own_axes_);
    AddMissing({all_axes_.begin() + std::ssize(own_axes_), all_axes_.end()});
    for (std::size_t place = 0; place < question_.sums.size(); ++place) {
      AddWrongGroups(place);
      AddRanks(place);
    }
    AddStraySums();
    return std::move(list_);
  }

 private:
  // Of the same cause, one with the same table over the same groups is the same thing by another
  // name. Sums over two axes of one size give the same table, and are two things.
  void Add(const Explanation& explanation, SumTable table) {
    const bool is_known = std::any_of(list_.begin(), list_.end(), [&](const SumHypothesis& h) {
      const Explanation& known = h.explanation;
      return known.cause == explanation.cause && h.table == table &&
             (known.cause != Cause::kWrongGroup ||
              (known.axes == explanation.axes && TableOf(known.used) == TableOf(explanation.used)));
    });
    if (!is_known && !(table == right_)) {
      list_.push_back({explanation, std::move(table)});
    }
  }

  bool IsJudged(Axis axis) const { return Contains(question_.judged, axis); }

  void AddMissing(const std::vector<Axis>& axes) {
    for (const auto& product : ProductsOf(axes)) {
      if (std::any_of(product.begin(), product.end(), [&](Axis axis) { return IsJudged(axis); })) {
        continue;
      }
      Add({.cause = Cause::kMissingSum, .axes = product}, right_.Without(product));
    }
  }

  const SumTable& TableOf(const std::vector<Axis>& used) const {
    return std::find_if(usable_.begin(), usable_.end(),
                        [&](const Usable& usable) { return usable.axes == used; })
        ->table;
  }

  // The sums with `instead` in the place of one of them; where it is not known when that one
  // happens, in every place.
  std::vector<SumTable> With(std::size_t place, const SumTable::Sum& instead) const {
    std::vector<std::size_t> places = {place};
    if (!question_.order_is_known) {
      places.resize(question_.sums.size());
      std::iota(places.begin(), places.end(), 0);
    }
    std::vector<SumTable> tables;
    for (const std::size_t at : places) {
      std::vector<Axis> others = question_.sums;
      others.erase(others.begin() + static_cast<std::ptrdiff_t>(place));
      const auto before = others.begin() + static_cast<std::ptrdiff_t>(at);
      SumTable table = AfterSums(meshes_, {others.begin(), before}).Then(instead);
      for (auto axis = before; axis != others.end(); ++axis) {
        table = table.Then({{*axis}});
      }
      tables.push_back(std::move(table));
    }
    return tables;
  }

  void AddWrongGroups(std::size_t place) {
    const Axis owed = question_.sums[place];
    for (const Usable& used : usable_) {
      if (IsJudged(owed) || used.table == TableOf({owed})) {
        continue;
      }
      for (SumTable& table : With(place, {used.axes})) {
        Add({.cause = Cause::kWrongGroup, .axes = {owed}, .used = used.axes}, std::move(table));
      }
    }
  }

  // What the one rank of an axis has needs no sum; one over other ranks adds their slices to it. A
  // program takes such ranks from the other mesh, so of two names that one's counts.
  void AddStraySums() {
    std::vector<Usable> others_first = usable_;
    std::stable_partition(others_first.begin(), others_first.end(), [&](const Usable& used) {
      return used.axes.size() == 1 && !Contains(own_axes_, used.axes.front());
    });
    for (const Axis owed : question_.alone) {
      for (const Usable& used : others_first) {
        Add({.cause = Cause::kWrongGroup, .axes = {owed}, .used = used.axes},
            right_.Then({used.axes}));
      }
    }
  }

  void AddRanks(std::size_t place) {
    if (right_.ranks() > kMostRanks) {
      return;
    }
    const Axis owed = question_.sums[place];
    for (std::int64_t rank = 0; rank < right_.ranks(); ++rank) {
      for (const double times : {0.0, 2.0}) {
        for (SumTable& table : With(place, {{owed}, rank, times})) {
          Add({.cause = times == 0.0 ? Cause::kDroppedContribution : Cause::kDoubledContribution,
               .axes = {owed},
               .sources = {rank}},
              std::move(table));
        }
      }
    }
  }

  const SumQuestion& question_;
  const Meshes& meshes_;
  SumTable right_;
  std::vector<Axis> own_axes_;
  std::vector<Axis> all_axes_;
  // What a sum may go over instead of its own axis: another one, or for an expert weight all axes
  // that split the batch of the dense mesh, as if it were a dense one.
  struct Usable {
    std::vector<Axis> axes;
    SumTable table;
  };
  std::vector<Usable> usable_;
  std::vector<SumHypothesis> list_;
};

}  // namespace

SumTable SumTable::Then(Sum sum) const {
  SumTable table = *this;
  table.sums_.push_back(std::move(sum));
  return table;
}

SumTable SumTable::Without(const std::vector<Axis>& axes) const {
  SumTable table = *this;
  table.agree_.insert(table.agree_.end(), axes.begin(), axes.end());
  return table;
}

SumTable SumTable::WithSource(std::int64_t source, double times) const {
  SumTable table = *this;
  table.source_ = Held{source, times};
  return table;
}

SumTable SumTable::Once() const {
  SumTable table = *this;
  table.once_ = true;
  return table;
}

// From the last sum to the first: what a rank holds after one is what its group held before.
SumTable::Row SumTable::RowOf(std::int64_t holder) const {
  std::vector<double> times(static_cast<std::size_t>(ranks()), 0.0);
  times[static_cast<std::size_t>(holder)] = 1.0;
  std::vector<std::int64_t> held = {holder};
  for (auto sum = sums_.rbegin(); sum != sums_.rend(); ++sum) {
    if (sum->axes.empty()) {
      continue;
    }
    const Mesh& mesh = meshes_->With(sum->axes.front());
    std::vector<double> before(times.size(), 0.0);
    std::vector<std::int64_t> held_before;
    for (const std::int64_t rank : held) {
      const double of_rank = times[static_cast<std::size_t>(rank)];
      for (const std::int64_t member : mesh.GroupOf(rank, sum->axes)) {
        double& of_member = before[static_cast<std::size_t>(member)];
        if (of_member == 0.0) {
          held_before.push_back(member);
        }
        of_member += of_rank * (sum->odd == member ? sum->times : 1.0);
      }
    }
    times = std::move(before);
    held = std::move(held_before);
  }
  std::sort(held.begin(), held.end());
  held.erase(std::unique(held.begin(), held.end()), held.end());
  Row row;
  for (const std::int64_t source : held) {
    double count = times[static_cast<std::size_t>(source)];
    count = once_ ? std::min(count, 1.0) : count;
    count *= source_ && source_->source == source ? source_->times : 1.0;
    const bool agrees = std::all_of(agree_.begin(), agree_.end(), [&](Axis axis) {
      const Mesh& mesh = meshes_->With(axis);
      return mesh.Coordinate(holder, axis) == mesh.Coordinate(source, axis);
    });
    if (agrees && count != 0.0) {
      row.push_back({source, count});
    }
  }
  return row;
}

bool SumTable::operator==(const SumTable& other) const {
  const std::int64_t stride = std::max<std::int64_t>(1, ranks() / kMostCompared);
  for (std::int64_t holder = 0; holder < ranks(); holder += stride) {
    if (RowOf(holder) != other.RowOf(holder)) {
      return false;
    }
  }
  return true;
}

std::vector<std::vector<Axis>> ProductsOf(const std::vector<Axis>& axes) {
  std::vector<std::vector<Axis>> products;
  for (std::uint32_t chosen = 1; chosen < (1U << axes.size()); ++chosen) {
    std::vector<Axis>& product = products.emplace_back();
    for (std::size_t i = 0; i < axes.size(); ++i) {
      if ((chosen >> i & 1U) != 0) {
        product.push_back(axes[i]);
      }
    }
  }
  std::stable_sort(products.begin(), products.end(),
                   [](const auto& a, const auto& b) { return a.size() < b.size(); });
  return products;
}

SumTable AfterSums(const Meshes& meshes, const std::vector<Axis>& axes) {
  SumTable table(meshes);
  for (const Axis axis : axes) {
    table = table.Then({{axis}});
  }
  return table;
}

std::vector<SumHypothesis> SumHypothesesOf(const SumQuestion& question) {
  return HypothesisList(question).Make();
}

std::vector<SumHypothesis> RankHypothesesOf(const SumTable& right, Axis axis) {
  std::vector<SumHypothesis> hypotheses;
  for (std::int64_t rank = 0; rank < right.ranks() && right.ranks() <= kMostRanks; ++rank) {
    for (const double times : {0.0, 2.0}) {
      hypotheses.push_back(
          {{.cause = times == 0.0 ? Cause::kDroppedContribution : Cause::kDoubledContribution,
            .axes = {axis},
            .sources = {rank}},
           right.WithSource(rank, times)});
    }
  }
  return hypotheses;
}

}  // namespace moe
