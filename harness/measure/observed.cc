#include "harness/measure/observed.h"

#include <algorithm>

namespace moe {

ObservedTensor::ObservedTensor(const Dump& dump, const std::string& name)
    : dump_(&dump),
      name_(name),
      claim_(&dump.manifest.tensors.at(name)),
      mesh_(&dump.manifest.meshes.Of(claim_->mesh)) {
  has_units_ = TensorOf(name).unit != Unit::kWhole;
  holder_of_rank_.resize(static_cast<std::size_t>(mesh_->WorldSize()));
  const std::vector<Axis> partial = PartialAxes();
  for (std::int64_t rank = 0; rank < mesh_->WorldSize(); ++rank) {
    const auto group = mesh_->GroupOf(rank, partial);
    if (group.front() == rank) {
      Holder holder{group, SliceOf(dump.manifest, name, rank), {}};
      if (has_units_) {
        holder.unit_of_global.assign(static_cast<std::size_t>(claim_->shape[0]), -1);
        for (std::size_t i = 0; i < holder.slice.index[0].size(); ++i) {
          holder.unit_of_global[static_cast<std::size_t>(holder.slice.index[0][i])] =
              static_cast<std::int64_t>(i);
        }
      }
      for (const std::int64_t of_holder : group) {
        holder_of_rank_[static_cast<std::size_t>(of_holder)] = holders_.size();
      }
      holders_.push_back(std::move(holder));
    }
  }
}

bool ObservedTensor::UnitsAreTokens() const {
  return TensorOf(name_).unit == Unit::kToken;
}

std::vector<Axis> ObservedTensor::PartialAxes() const {
  std::vector<Axis> partial;
  for (const Axis axis : mesh_->axes) {
    if (PlacementOn(claim_->placements, axis).kind == Placement::Kind::kPartial) {
      partial.push_back(axis);
    }
  }
  return partial;
}

std::int64_t ObservedTensor::UnitsOf(const Holder& holder) const {
  return has_units_ ? static_cast<std::int64_t>(holder.slice.index[0].size()) : 1;
}

std::int64_t ObservedTensor::LocalUnit(const Holder& holder, std::int64_t global_unit) const {
  return has_units_ ? holder.unit_of_global[static_cast<std::size_t>(global_unit)] : 0;
}

std::int64_t ObservedTensor::GlobalUnit(const Holder& holder, std::int64_t unit) const {
  return has_units_ ? holder.slice.index[0][static_cast<std::size_t>(unit)] : 0;
}

std::vector<double> ObservedTensor::ReadUnit(const Holder& holder, std::int64_t unit) const {
  const std::int64_t units = UnitsOf(holder);
  const std::int64_t count = units == 0 ? 0 : NumElements(holder.slice.LocalShape()) / units;
  std::vector<double> sum(static_cast<std::size_t>(count), 0.0);
  std::vector<double> share(sum.size());
  for (const std::int64_t rank : holder.ranks) {
    dump_->Local(rank, name_).Read(unit * count, share);
    std::transform(sum.begin(), sum.end(), share.begin(), sum.begin(), std::plus<>());
  }
  if (claim_->scale != 1.0) {
    for (double& value : sum) {
      value *= claim_->scale;
    }
  }
  return sum;
}

std::vector<std::size_t> ObservedTensor::Replicas(std::size_t index, const Mesh& mesh,
                                                  const std::vector<Axis>& axes) const {
  std::vector<std::size_t> replicas;
  std::vector<bool> is_known(holders_.size(), false);
  for (const std::int64_t rank : mesh.GroupOf(holders_[index].ranks.front(), axes)) {
    const std::size_t holder = holder_of_rank_[static_cast<std::size_t>(rank)];
    if (holders_[holder].slice != holders_[index].slice) {
      return {};
    }
    if (!is_known[holder]) {
      is_known[holder] = true;
      replicas.push_back(holder);
    }
  }
  return replicas;
}

}  // namespace moe
