#include "tools/commands/problem_folder.h"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>
#include <span>

#include "harness/base/error.h"
#include "harness/dump/safetensors.h"
#include "harness/json/model_json.h"

namespace moe {
namespace {

template <typename Integer>
std::vector<Integer> TopBits(const std::vector<double>& values) {
  std::vector<Integer> bits;
  for (const double value : values) {
    const auto narrow = static_cast<float>(value);  // exact: inputs lie on the bfloat16 grid
    std::uint32_t word = 0;
    std::memcpy(&word, &narrow, sizeof(word));
    bits.push_back(static_cast<Integer>(sizeof(Integer) == 2 ? word >> 16U : word));
  }
  return bits;
}

template <typename Value>
std::vector<std::byte> BytesOf(const std::vector<Value>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> Encode(const std::vector<double>& values, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return BytesOf(values);
    case Dtype::kFloat32:
      return BytesOf(TopBits<std::uint32_t>(values));
    case Dtype::kBfloat16:
      return BytesOf(TopBits<std::uint16_t>(values));
    case Dtype::kFloat16:
    case Dtype::kInt64:
    case Dtype::kInt32:
      break;
  }
  throw Error("", fmt::format("inputs are not written in {}", ToText(dtype)));
}

}  // namespace

std::size_t WriteProblem(const CaseSpec& spec, const InputGenerator& inputs,
                         const std::string& folder, Dtype dtype) {
  std::map<std::string, std::vector<std::byte>> bytes;
  std::map<std::string, TensorView> views;
  for (const TensorInfo& input : InputsOf(spec.model)) {
    std::vector<double> values(static_cast<std::size_t>(NumElements(input.shape)));
    inputs.Read(input.name, WholeOf(input.shape), values);
    bytes[input.name] = Encode(values, dtype);
    views[input.name] = {dtype, input.shape, bytes[input.name]};
  }
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  if (code) {
    throw Error(folder, fmt::format("cannot be made: {}", code.message()));
  }
  const std::filesystem::path path(folder);
  WriteSafetensors((path / "inputs.safetensors").string(), views, {{"case", spec.name}});
  Json problem;
  problem["schema"] = 1;
  problem["case"] = spec.name;
  problem["model"] = ToJson(spec.model);
  problem["dtype"] = std::string(ToText(dtype));
  problem["loss"]["kind"] = "dot_with_cotangent";
  problem["loss"]["reduction"] = "sum";
  problem["inputs"] = "inputs.safetensors";
  problem["layouts"] = Json::array();
  for (const Layout& layout : spec.layouts) {
    problem["layouts"].push_back(ToText(layout));
  }
  problem["owed"] = Json::array();
  for (const TensorInfo& result : ResultsOf(spec.model)) {
    problem["owed"].push_back(result.name);
  }
  WriteJsonFile((path / "problem.json").string(), problem);
  return views.size();
}

}  // namespace moe
