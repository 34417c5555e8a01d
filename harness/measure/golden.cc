#include "harness/measure/golden.h"

#include <fmt/format.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "harness/base/error.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

double NonNegative(const JsonNode& node) {
  const double number = node.Number();
  if (number < 0.0) {
    node.Fail("is negative");
  }
  return number;
}

// A number as text has it, with this many significant digits.
double Rounded(double number, int digits) {
  return std::stod(fmt::format("{:.{}e}", number, digits - 1));
}

// Part of a whole, to two digits; absent where both are 0.
Json Ratio(double part, double whole) {
  return whole > 0.0 ? Json(Rounded(part / whole, 2)) : Json(nullptr);
}

// What is written for a reader's sake must follow from what is read.
void CheckRatio(const JsonNode& node, const Json& want) {
  if (node.value() != want) {
    node.Fail(
        fmt::format("is {}; the numbers beside it give {}", node.value().dump(), want.dump()));
  }
}

GoldenTolerance ParseTolerance(const JsonNode& node) {
  node.OnlyKeys({"tolerance", "bound", "worst_case", "detectable_scale", "noise_floor",
                 "noise_to_bound", "fault_floor", "fault_to_tolerance", "why"});
  GoldenTolerance entry{.tolerance = NonNegative(node.At("tolerance")),
                        .bound = NonNegative(node.At("bound")),
                        .worst_case = NonNegative(node.At("worst_case")),
                        .detectable_scale = NonNegative(node.At("detectable_scale")),
                        .noise_floor = NonNegative(node.At("noise_floor")),
                        .why = node.At("why").String()};
  const JsonNode fault_floor = node.At("fault_floor");
  if (!fault_floor.value().is_null()) {
    entry.fault_floor = NonNegative(fault_floor);
  }
  // Decimal text of numbers that differ by exactly this factor may be off by a unit of round-off.
  constexpr double kClear = kClearance * (1.0 - 1e-12);
  if (entry.tolerance < kClear * entry.noise_floor) {
    node.Fail(fmt::format("tolerance {:.2e} is not {} times above the noise floor {:.2e}",
                          entry.tolerance, kClearance, entry.noise_floor));
  }
  if (entry.fault_floor && entry.tolerance > *entry.fault_floor / kClear) {
    node.Fail(fmt::format("tolerance {:.2e} is not {} times below the fault floor {:.2e}",
                          entry.tolerance, kClearance, *entry.fault_floor));
  }
  if (entry.fault_floor && *entry.fault_floor == 0.0) {
    node.Fail("fault floor is 0: a planted fault changes nothing, so no tolerance tells it");
  }
  CheckRatio(node.At("noise_to_bound"), Ratio(entry.noise_floor, entry.bound));
  CheckRatio(node.At("fault_to_tolerance"),
             entry.fault_floor ? Ratio(*entry.fault_floor, entry.tolerance) : Json(nullptr));
  return entry;
}

}  // namespace

double RoundedUp(double number) {
  if (number == 0.0 || !std::isfinite(number)) {
    return number;
  }
  const double step = std::pow(10.0, std::floor(std::log10(number)) - 1.0);
  return Rounded(std::ceil(number / step - 1e-6) * step, 2);
}

double NoiseStep(double measured, double bound, const std::optional<GoldenTolerance>& before) {
  constexpr double kMargin = 1.5;
  constexpr double kOverflow = 1.25;
  constexpr int kLeast = 40;  // further below the bound nothing is worth telling apart
  if (before && before->bound > 0.0) {
    const double step = before->noise_floor / before->bound * bound;
    if (measured <= kOverflow * step && measured > step / 4.0) {
      return Rounded(step, 3);
    }
  }
  double step = bound;
  for (int k = 1; k <= kLeast && kMargin * measured <= bound * std::exp2(-k / 2.0); ++k) {
    step = bound * std::exp2(-k / 2.0);
  }
  return Rounded(step, 3);
}

double FaultStep(double measured) {
  return Rounded(Rounded(measured, 6) * (1.0 + 1e-9), 2);
}

std::string GoldenPath(const std::string& golden, const CaseSpec& spec) {
  return (std::filesystem::path(golden) / (spec.name + ".json")).string();
}

std::string Sha256OfFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file && !file.eof()) {
    throw Error(path, "cannot be read");
  }
  unsigned char digest[SHA256_DIGEST_LENGTH];
  ::SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  std::string hex;
  for (const unsigned char byte : digest) {
    hex += fmt::format("{:02x}", byte);
  }
  return hex;
}

Golden ParseGolden(const Json& json, const std::string& path) {
  const JsonNode root(json, path);
  root.OnlyKeys(
      {"schema", "case_sha256", "made_by", "smallest_logit_margin", "reference", "tolerances"});
  if (const JsonNode schema = root.At("schema"); schema.Integer() != 1) {
    schema.Fail(fmt::format("is {}; this moegate reads schema 1", schema.Integer()));
  }
  root.At("made_by").String();
  const JsonNode margin = root.At("smallest_logit_margin");
  Golden golden{.case_sha256 = root.At("case_sha256").String(),
                .smallest_logit_margin = margin.value().is_null() ? INFINITY : NonNegative(margin)};
  for (const auto& [tensor, node] : root.At("reference").Members()) {
    node.OnlyKeys({"norm", "digest"});
    golden.reference[tensor] = {NonNegative(node.At("norm")), node.At("digest").Number()};
  }
  for (const auto& [name, node] : root.At("tolerances").Members()) {
    const auto dtype = DtypeFromText(name);
    if (dtype != Dtype::kFloat64 && dtype != Dtype::kFloat32 && dtype != Dtype::kBfloat16) {
      node.Fail(
          fmt::format("\"{}\" is no dtype of a case; use float64, float32 or bfloat16", name));
    }
    for (const auto& [tensor, entry] : node.Members()) {
      golden.tolerances[*dtype][tensor] = ParseTolerance(entry);
    }
  }
  return golden;
}

Golden ReadGolden(const std::string& folder, const CaseSpec& spec) {
  const std::string path = GoldenPath(folder, spec);
  const std::string remedy = fmt::format("run tools/regen_golden.sh {}", spec.name);
  if (!std::filesystem::exists(path)) {
    throw Error(path, fmt::format("is missing, so nothing says what {} may be off by; {}",
                                  spec.name, remedy));
  }
  const Json json = ReadJsonFile(path, {.max_bytes = 10'000'000, .max_depth = 8});
  Golden golden = ParseGolden(json, path);
  if (golden.case_sha256 != Sha256OfFile(spec.path)) {
    throw Error(path,
                fmt::format("is stale: {} has changed since it was made; {}", spec.path, remedy));
  }
  for (const Dtype dtype : spec.numerics.dtypes) {
    for (const TensorInfo& result : ResultsOf(spec.model)) {
      const auto of_dtype = golden.tolerances.find(dtype);
      if (of_dtype == golden.tolerances.end() || !of_dtype->second.contains(result.name) ||
          !golden.reference.contains(result.name)) {
        throw Error(path, fmt::format("lacks {} in {}; {}", result.name, ToText(dtype), remedy));
      }
    }
  }
  return golden;
}

void ReferenceSums::Add(const std::string& tensor, std::span<const double> elements,
                        std::int64_t first) {
  Sums& sums = sums_[tensor];
  auto index = static_cast<std::uint64_t>(first);
  for (const double element : elements) {
    // One bit of the index times an odd number near 2^64 over the golden ratio: no period.
    const bool is_minus = (index++ * 0x9e3779b97f4a7c15ULL >> 40U & 1U) != 0;
    sums.squares += element * element;
    sums.with_signs += is_minus ? -element : element;
  }
}

std::map<std::string, GoldenReference> ReferenceSums::ByTensor() const {
  std::map<std::string, GoldenReference> references;
  for (const auto& [tensor, sums] : sums_) {
    references[tensor] = {.norm = std::sqrt(sums.squares), .digest = sums.with_signs};
  }
  return references;
}

void CheckProblem(const Golden& golden, const ReferenceSums& reference,
                  double smallest_logit_margin, const std::string& where) {
  constexpr double kSame = 1e-5;         // norms and digests have seven digits in the file,
  constexpr double kSameMargin = 0.006;  // the margin three
  const auto require = [&](bool same, const std::string& what, double here, double there) {
    if (!same) {
      throw Error(where, fmt::format("is not the problem of its golden file: {} {:.6e} here and "
                                     "{:.6e} there; other inputs, or a golden file to regenerate",
                                     what, here, there));
    }
  };
  const std::map<std::string, GoldenReference> now = reference.ByTensor();
  for (const auto& [tensor, then] : golden.reference) {
    const auto found = now.find(tensor);
    const GoldenReference here = found == now.end() ? GoldenReference{} : found->second;
    require(std::abs(here.norm - then.norm) <= kSame * then.norm,
            fmt::format("the reference's {} has norm", tensor), here.norm, then.norm);
    require(
        std::abs(here.digest - then.digest) <= kSame * std::max(then.norm, std::abs(then.digest)),
        fmt::format("the reference's {} has the same norm and, with signs, the sum", tensor),
        here.digest, then.digest);
  }
  require(smallest_logit_margin == golden.smallest_logit_margin ||
              std::abs(smallest_logit_margin - golden.smallest_logit_margin) <=
                  kSameMargin * golden.smallest_logit_margin,
          "the least decided choice of experts has the margin", smallest_logit_margin,
          golden.smallest_logit_margin);
}

Json ToJson(const Golden& golden) {
  Json json;
  json["schema"] = 1;
  json["case_sha256"] = golden.case_sha256;
  json["made_by"] = "tools/regen_golden.sh";
  // Infinite where every expert is chosen, which JSON cannot say.
  json["smallest_logit_margin"] = std::isfinite(golden.smallest_logit_margin)
                                      ? Json(Rounded(golden.smallest_logit_margin, 3))
                                      : Json(nullptr);
  for (const auto& [tensor, reference] : golden.reference) {
    json["reference"][tensor]["norm"] = Rounded(reference.norm, 7);
    json["reference"][tensor]["digest"] = Rounded(reference.digest, 7);
  }
  for (const auto& [dtype, tensors] : golden.tolerances) {
    for (const auto& [tensor, entry] : tensors) {
      Json& node = json["tolerances"][std::string(ToText(dtype))][tensor];
      node["tolerance"] = Rounded(entry.tolerance, 3);
      node["bound"] = entry.bound;
      node["worst_case"] = entry.worst_case;
      node["detectable_scale"] = entry.detectable_scale;
      node["noise_floor"] = entry.noise_floor;
      node["noise_to_bound"] = Ratio(entry.noise_floor, entry.bound);
      node["fault_floor"] = entry.fault_floor ? Json(*entry.fault_floor) : Json(nullptr);
      node["fault_to_tolerance"] = entry.fault_floor
                                       ? Ratio(*entry.fault_floor, Rounded(entry.tolerance, 3))
                                       : Json(nullptr);
      node["why"] = entry.why;
    }
  }
  return json;
}

}  // namespace moe
