#include "harness/explain/sum_table.h"

#include <algorithm>
#include <numeric>

namespace moe {
namespace {

constexpr Eigen::Index kMostRanks = 64;  // of more, a table each would not fit; share_fit tells

// [rank, rank]: 1 where the two are in one group of `axis`.
SumTable GroupTable(const Meshes& meshes, Axis axis) {
  const Mesh& mesh = meshes.With(axis);
  const std::int64_t world = mesh.WorldSize();
  SumTable table = SumTable::Zero(world, world);
  for (std::int64_t rank = 0; rank < world; ++rank) {
    for (const std::int64_t other : mesh.GroupOf(rank, {axis})) {
      table(rank, other) = 1.0;
    }
  }
  return table;
}

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
      : question_(question), meshes_(*question.meshes) {
    const bool dense = question.own == MeshKind::kDense;
    own_axes_ = AxesOver1(meshes_.Of(question.own));
    all_axes_ = own_axes_;
    const auto others = AxesOver1(dense ? meshes_.expert : meshes_.dense);
    all_axes_.insert(all_axes_.end(), others.begin(), others.end());
    right_ = AfterSums(meshes_, question.sums);
    for (const Axis axis : all_axes_) {
      groups_.push_back(GroupTable(meshes_, axis));
      usable_.push_back({{axis}, groups_.back()});
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
    if (!is_known && table != right_) {
      list_.push_back({explanation, std::move(table)});
    }
  }

  bool IsJudged(Axis axis) const { return Contains(question_.judged, axis); }

  void AddMissing(const std::vector<Axis>& axes) {
    for (const auto& product : ProductsOf(axes)) {
      if (std::any_of(product.begin(), product.end(), [&](Axis axis) { return IsJudged(axis); })) {
        continue;
      }
      Add({.cause = Cause::kMissingSum, .axes = product}, WithoutSums(meshes_, right_, product));
    }
  }

  const SumTable& TableOf(const std::vector<Axis>& used) const {
    return std::find_if(usable_.begin(), usable_.end(),
                        [&](const Usable& usable) { return usable.axes == used; })
        ->table;
  }

  const SumTable& GroupOf(Axis axis) const {
    const auto found = std::find(all_axes_.begin(), all_axes_.end(), axis);
    return groups_[static_cast<std::size_t>(found - all_axes_.begin())];
  }

  // The sums with `instead` in the place of one of them; where it is not known when that one
  // happens, in every place.
  std::vector<SumTable> With(std::size_t place, const SumTable& instead) const {
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
      SumTable table = instead * AfterSums(meshes_, {others.begin(), before});
      for (auto axis = before; axis != others.end(); ++axis) {
        table = GroupOf(*axis) * table;
      }
      tables.push_back(std::move(table));
    }
    return tables;
  }

  void AddWrongGroups(std::size_t place) {
    const Axis owed = question_.sums[place];
    for (const Usable& used : usable_) {
      if (IsJudged(owed) || used.table == GroupOf(owed)) {
        continue;
      }
      for (SumTable& table : With(place, used.table)) {
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
        Add({.cause = Cause::kWrongGroup, .axes = {owed}, .used = used.axes}, used.table * right_);
      }
    }
  }

  void AddRanks(std::size_t place) {
    if (right_.rows() > kMostRanks) {
      return;
    }
    const Axis owed = question_.sums[place];
    for (std::int64_t rank = 0; rank < right_.rows(); ++rank) {
      for (const double times : {0.0, 2.0}) {
        SumTable group = GroupOf(owed);
        group.col(rank) *= times;
        for (SumTable& table : With(place, group)) {
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
  std::vector<Axis> own_axes_;
  std::vector<Axis> all_axes_;
  std::vector<SumTable> groups_;  // by place in all_axes_
  // What a sum may go over instead of its own axis: another one, or for an expert weight all axes
  // that split the batch of the dense mesh, as if it were a dense one.
  struct Usable {
    std::vector<Axis> axes;
    SumTable table;
  };
  std::vector<Usable> usable_;
  SumTable right_;
  std::vector<SumHypothesis> list_;
};

}  // namespace

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
  const std::int64_t world = meshes.dense.WorldSize();
  SumTable table = SumTable::Identity(world, world);
  for (const Axis axis : axes) {
    table = GroupTable(meshes, axis) * table;
  }
  return table;
}

SumTable WithoutSums(const Meshes& meshes, const SumTable& table, const std::vector<Axis>& axes) {
  SumTable left = table;
  for (std::int64_t holder = 0; holder < table.rows(); ++holder) {
    for (std::int64_t source = 0; source < table.cols(); ++source) {
      for (const Axis axis : axes) {
        const Mesh& mesh = meshes.With(axis);
        if (mesh.Coordinate(holder, axis) != mesh.Coordinate(source, axis)) {
          left(holder, source) = 0.0;
        }
      }
    }
  }
  return left;
}

std::vector<SumHypothesis> SumHypothesesOf(const SumQuestion& question) {
  return HypothesisList(question).Make();
}

std::vector<SumHypothesis> RankHypothesesOf(const SumTable& right, Axis axis) {
  std::vector<SumHypothesis> hypotheses;
  for (Eigen::Index rank = 0; rank < right.rows() && right.rows() <= kMostRanks; ++rank) {
    for (const double times : {0.0, 2.0}) {
      SumTable table = right;
      table.col(rank) *= times;
      hypotheses.push_back(
          {{.cause = times == 0.0 ? Cause::kDroppedContribution : Cause::kDoubledContribution,
            .axes = {axis},
            .sources = {rank}},
           std::move(table)});
    }
  }
  return hypotheses;
}

}  // namespace moe
