#include "harness/measure/problem.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "harness/base/error.h"
#include "harness/measure/observed.h"
#include "reference/problem.h"

namespace moe {
namespace {

reference::Matrix ReadMatrix(const TensorSource& source, const std::string& name,
                             const Slice& slice) {
  const Shape shape = slice.LocalShape();
  const std::size_t dims = shape.size();
  reference::Matrix matrix(dims < 2 ? 1 : shape[dims - 2], shape[dims - 1]);
  source.Read(name, slice, {matrix.data(), static_cast<std::size_t>(matrix.size())});
  return matrix;
}

// Of a tensor that is whole in the inputs file.
void ReadFromFile(const TensorView& view, const Shape& shape, const Slice& slice,
                  std::span<double> out) {
  const auto& columns = slice.index.back();
  const auto row_length = static_cast<std::int64_t>(columns.size());
  if (row_length == 0) {
    return;
  }
  std::vector<double> row(static_cast<std::size_t>(shape.back()));
  std::vector<std::size_t> at(shape.size() - 1, 0);
  for (std::size_t done = 0; done < out.size(); done += columns.size()) {
    std::int64_t global_row = 0;
    for (std::size_t dim = 0; dim < at.size(); ++dim) {
      global_row = global_row * shape[dim] + slice.index[dim][at[dim]];
    }
    view.Read(global_row * shape.back(), row);
    for (std::size_t i = 0; i < columns.size(); ++i) {
      out[done + i] = row[static_cast<std::size_t>(columns[i])];
    }
    Advance(slice, at);
  }
}

// From the ranks: every holder gives the elements it has; those that have the same must agree.
void ReadFromRanks(const Dump& dump, const std::string& name, const Shape& shape,
                   const Slice& slice, std::span<double> out) {
  const ObservedTensor observed(dump, name);
  std::vector<const ObservedTensor::Holder*> giver(out.size(), nullptr);
  double largest_difference = 0.0;
  std::string disagreement;
  for (const ObservedTensor::Holder& holder : observed.holders()) {
    // Place of each wanted index in the holder's slice, per dimension; -1 where it is not held.
    std::vector<std::vector<std::int64_t>> place(shape.size());
    for (std::size_t dim = 0; dim < shape.size(); ++dim) {
      std::vector<std::int64_t> inverse(static_cast<std::size_t>(shape[dim]), -1);
      for (std::size_t i = 0; i < holder.slice.index[dim].size(); ++i) {
        inverse[static_cast<std::size_t>(holder.slice.index[dim][i])] =
            static_cast<std::int64_t>(i);
      }
      for (const std::int64_t index : slice.index[dim]) {
        place[dim].push_back(inverse[static_cast<std::size_t>(index)]);
      }
    }
    if (std::any_of(place.begin(), place.end(), [](const auto& p) {
          return std::all_of(p.begin(), p.end(), [](std::int64_t i) { return i < 0; });
        })) {
      continue;
    }
    const Shape local = holder.slice.LocalShape();
    std::vector<std::size_t> at(shape.size(), 0);
    std::vector<double> unit;
    std::int64_t unit_read = -1;
    const std::int64_t per_unit =
        observed.HasUnits() ? NumElements(local) / local[0] : NumElements(local);
    for (std::size_t element = 0; element < out.size(); ++element) {
      std::int64_t offset = 0;
      bool held = true;
      for (std::size_t dim = 0; dim < shape.size() && held; ++dim) {
        const std::int64_t p = place[dim][at[dim]];
        held = p >= 0;
        offset = offset * local[dim] + p;
      }
      if (held) {
        if (offset / per_unit != unit_read) {
          unit_read = offset / per_unit;
          unit = observed.ReadUnit(holder, unit_read);
        }
        const double value = unit[static_cast<std::size_t>(offset % per_unit)];
        if (giver[element] == nullptr || !std::isfinite(value)) {
          giver[element] = &holder;
          out[element] = value;
        } else if (std::abs(value - out[element]) > largest_difference) {
          largest_difference = std::abs(value - out[element]);
          disagreement = fmt::format("{:.6e} on rank {} and {:.6e} on rank {}", out[element],
                                     fmt::join(giver[element]->ranks, " + "), value,
                                     fmt::join(holder.ranks, " + "));
        }
      }
      Advance(slice, at);
    }
  }
  if (std::find(giver.begin(), giver.end(), nullptr) != giver.end()) {
    throw Error(dump.name,
                fmt::format("no rank holds some part of {}, which the problem needs", name));
  }
  // A replicated activation may have been computed by each rank anew, in another order.
  double largest = 0.0;
  for (const double value : out) {
    largest = std::max(largest, std::abs(value));
  }
  if (largest_difference > 8.0 * UnitRoundoff(dump.manifest.dtype) * largest) {
    throw Error(dump.name,
                fmt::format("holds different values of one element of {}, {}; the ranks of one "
                            "step share one problem",
                            name, disagreement));
  }
}

}  // namespace

reference::Problem MakeProblem(const Model& model, const TensorSource& source) {
  return reference::ReadProblem(model,
                                [&source, model](const std::string& name, std::int64_t expert) {
                                  Slice slice = WholeOf(ShapeOf(name, model));
                                  if (expert >= 0) {
                                    slice.index[0] = {expert};
                                  }
                                  return ReadMatrix(source, name, slice);
                                });
}

DumpedProblem::DumpedProblem(const Dump& dump) : dump_(dump) {
  for (const TensorInfo& input : InputsOf(dump.manifest.model)) {
    const bool whole = dump.inputs && dump.inputs->tensors().contains(input.name);
    if (!whole && !dump.manifest.tensors.contains(input.name)) {
      throw Error(dump.name,
                  fmt::format("holds no {}: neither an inputs file nor the rank files have it, "
                              "and without the problem nothing can be judged",
                              input.name));
    }
    if (whole && dump.manifest.tensors.contains(input.name)) {
      throw Error(dump.name,
                  fmt::format("holds {} twice, in the inputs file and in the rank files; "
                              "there is one problem, so leave out one of them",
                              input.name));
    }
  }
}

void DumpedProblem::Read(const std::string& name, const Slice& slice, std::span<double> out) const {
  const Shape shape = ShapeOf(name, dump_.manifest.model);
  if (dump_.inputs && dump_.inputs->tensors().contains(name)) {
    ReadFromFile(dump_.inputs->tensors().at(name), shape, slice, out);
  } else {
    ReadFromRanks(dump_, name, shape, slice, out);
  }
  if (!std::all_of(out.begin(), out.end(), [](double value) { return std::isfinite(value); })) {
    throw Error(dump_.name,
                fmt::format("holds NaN or Inf in {}, which is part of the problem, so that "
                            "nothing follows for the results",
                            name));
  }
}

}  // namespace moe
