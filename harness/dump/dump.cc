#include "harness/dump/dump.h"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <string_view>
#include <utility>

#include "harness/base/error.h"
#include "harness/json/json_reader.h"

namespace moe {
namespace {

constexpr std::string_view kRankPrefix = "rank-";
constexpr std::string_view kRankSuffix = ".safetensors";
constexpr std::string_view kPartialSuffix = ".partial";

std::string PathIn(const std::string& folder, const std::string& file) {
  return (std::filesystem::path(folder) / file).string();
}

// Names in a file are hostile too: quotes them with control characters escaped.
std::string Quoted(const std::string& name) {
  return Json(name).dump(/*indent=*/-1, /*indent_char=*/' ', /*ensure_ascii=*/true);
}

// The names in `folder` that look like rank files: rank-*.safetensors.
std::vector<std::string> RankFilesIn(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code code;
  std::filesystem::directory_iterator entry(folder, code);
  for (; !code && entry != std::filesystem::directory_iterator(); entry.increment(code)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(kRankPrefix) && name.ends_with(kRankSuffix)) {
      names.push_back(name);
    }
  }
  if (code) {
    throw Error(folder, fmt::format("cannot be read: {}", code.message()));
  }
  return names;
}

// Any file that looks like a rank's but is not: of a rank beyond the world, or misnamed. To ignore
// it would be to judge a part of what the producer wrote.
std::vector<std::string> StrayRankFilesIn(const std::string& folder, std::int64_t world) {
  std::map<std::string, std::int64_t> expected;
  for (std::int64_t rank = 0; rank < world; ++rank) {
    expected.emplace(RankFileName(rank), rank);
  }
  std::vector<std::string> strays;
  for (const std::string& name : RankFilesIn(folder)) {
    if (!expected.contains(name)) {
      strays.push_back(name);
    }
  }
  return strays;
}

// A shape that a tensor must have, and whence: "by its placements rank 1 holds".
struct Required {
  Shape shape;
  std::string why;
};

// `lister` completes a sentence: "lacks tensor y_TD, which the manifest lists".
void CheckExactlyHolds(const SafetensorsFile& file, const std::map<std::string, Required>& required,
                       std::string_view lister) {
  for (const auto& [name, wanted] : required) {
    const auto found = file.tensors().find(name);
    if (found == file.tensors().end()) {
      throw Error(file.name(), fmt::format("lacks tensor {}, which {}", name, lister));
    }
    const TensorView& tensor = found->second;
    if (tensor.shape != wanted.shape) {
      throw Error(file.name() + "#/" + name,
                  fmt::format("has shape {}; {} {}", ToText(tensor.shape), wanted.why,
                              ToText(wanted.shape)));
    }
    const bool integer = TensorOf(name).IsInteger();
    if (IsFloat(tensor.dtype) == integer) {
      throw Error(
          file.name() + "#/" + name,
          fmt::format("is {}; use {}", ToText(tensor.dtype),
                      integer ? "int64 or int32" : "float64, float32, bfloat16 or float16"));
    }
  }
  for (const auto& [name, tensor] : file.tensors()) {
    if (!required.contains(name)) {
      throw Error(file.name(),
                  fmt::format("holds tensor {}, which is not one that {}", Quoted(name), lister));
    }
  }
}

void CheckRank(const Manifest& manifest, const SafetensorsFile& file, std::int64_t rank) {
  std::map<std::string, Required> required;
  for (const auto& [name, tensor] : manifest.tensors) {
    required[name] = {
        SliceOf(manifest, name, rank).LocalShape(),
        fmt::format("by its {} rank {} holds",
                    RowsFollowTokens(manifest, name) ? "tokens" : "placements", rank)};
  }
  CheckExactlyHolds(file, required, "the manifest lists");
}

// What a rank file says of itself, where it says anything: a file of another run or another rank
// has the right shapes as often as not.
void CheckMetadata(const Manifest& manifest, const std::vector<SafetensorsFile>& ranks) {
  const std::string world = std::to_string(manifest.WorldSize());
  std::string torch;  // what all must have been written by, and who says so
  std::string torch_of;
  if (const auto version = manifest.versions.find("torch"); version != manifest.versions.end()) {
    torch = version->second;
    torch_of = "the manifest says";
  }
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto& metadata = ranks[rank].metadata();
    if (const auto of = metadata.find("rank");
        of != metadata.end() && of->second != std::to_string(rank)) {
      throw Error(ranks[rank].name(), fmt::format("says that it is of rank {}; it stands for rank "
                                                  "{}, so files were mixed up",
                                                  Quoted(of->second), rank));
    }
    if (const auto of = metadata.find("world"); of != metadata.end() && of->second != world) {
      throw Error(
          ranks[rank].name(),
          fmt::format("says that it is of a world of {} ranks; the manifest has {}, so they "
                      "are of different runs",
                      Quoted(of->second), world));
    }
    if (const auto of = metadata.find("torch"); of != metadata.end()) {
      if (torch_of.empty()) {
        torch = of->second;
        torch_of = fmt::format("rank {} by", rank);
      }
      if (of->second != torch) {
        throw Error(ranks[rank].name(),
                    fmt::format("was written by torch {}, {} {}; all ranks of a step run one "
                                "version",
                                Quoted(of->second), torch_of, Quoted(torch)));
      }
    }
  }
}

// A dump gets its name, and its manifest, when it is whole; anything else is never judged.
void RefuseHalfWritten(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::path(folder).lexically_normal();
  const std::string name = (path.has_filename() ? path : path.parent_path()).filename().string();
  if (name.ends_with(kPartialSuffix)) {
    throw Error(folder, fmt::format("is half-written: a producer drops {} from the name when the "
                                    "dump is whole",
                                    kPartialSuffix));
  }
  std::error_code code;
  if (!std::filesystem::exists(PathIn(folder, kManifestName), code)) {
    const std::size_t ranks = RankFilesIn(folder).size();
    throw Error(folder, ranks > 0 ? fmt::format("is half-written: it has {} rank files and no {}, "
                                                "which is written last",
                                                ranks, kManifestName)
                                  : fmt::format("has no {}, so it is no dump", kManifestName));
  }
}

void CheckInputs(const Manifest& manifest, const SafetensorsFile& file) {
  std::map<std::string, Required> required;
  for (const TensorInfo& input : InputsOf(manifest.model)) {
    required[input.name] = {input.shape, "the model gives it"};
  }
  CheckExactlyHolds(file, required, "the manifest's model has as input");
}

}  // namespace

const TensorView& Dump::Local(std::int64_t rank, const std::string& tensor) const {
  return ranks.at(static_cast<std::size_t>(rank)).tensors().at(tensor);
}

std::string RankFileName(std::int64_t rank) {
  return fmt::format("{}{:05}{}", kRankPrefix, rank, kRankSuffix);
}

Dump OpenDump(const std::string& folder) {
  std::error_code code;
  if (!std::filesystem::is_directory(folder, code)) {
    throw Error(folder, "is not a folder; a dump is a folder with a manifest.json");
  }
  RefuseHalfWritten(folder);
  const std::string manifest_path = PathIn(folder, kManifestName);
  Manifest manifest = ParseManifest(ReadJsonFile(manifest_path), manifest_path);
  const std::int64_t world = manifest.WorldSize();

  std::vector<SafetensorsFile> ranks;
  for (std::int64_t rank = 0; rank < world; ++rank) {
    const std::string path = PathIn(folder, RankFileName(rank));
    if (!std::filesystem::exists(path, code)) {
      throw Error(path, fmt::format("does not exist; the manifest has {} ranks, so there must be "
                                    "{} to {}",
                                    world, RankFileName(0), RankFileName(world - 1)));
    }
    ranks.push_back(SafetensorsFile::Open(path));
  }
  for (const std::string& stray : StrayRankFilesIn(folder, world)) {
    throw Error(PathIn(folder, stray),
                fmt::format("belongs to no rank; the manifest has {} ranks, {} to {}", world,
                            RankFileName(0), RankFileName(world - 1)));
  }
  std::optional<SafetensorsFile> inputs;
  if (manifest.inputs) {
    inputs = SafetensorsFile::Open(PathIn(folder, *manifest.inputs));
  }
  return MakeDump(folder, std::move(manifest), std::move(ranks), std::move(inputs));
}

Dump MakeDump(std::string name, Manifest manifest, std::vector<SafetensorsFile> ranks,
              std::optional<SafetensorsFile> inputs) {
  if (static_cast<std::int64_t>(ranks.size()) != manifest.WorldSize()) {
    throw Error(name, fmt::format("has the files of {} ranks; the manifest has {} ranks",
                                  ranks.size(), manifest.WorldSize()));
  }
  if (inputs.has_value() != manifest.inputs.has_value()) {
    throw Error(name, inputs ? "has inputs that the manifest does not name"
                             : "lacks the inputs that the manifest names");
  }
  CheckMetadata(manifest, ranks);
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    CheckRank(manifest, ranks[rank], static_cast<std::int64_t>(rank));
  }
  if (inputs) {
    CheckInputs(manifest, *inputs);
  }
  return {std::move(name), std::move(manifest), std::move(ranks), std::move(inputs)};
}

void WriteDump(const std::string& folder, const Dump& dump) {
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  if (code) {
    throw Error(folder, fmt::format("cannot be made: {}", code.message()));
  }
  // What an earlier dump left: its manifest would vouch for a mixture, its further ranks would be
  // taken for ours.
  std::filesystem::remove(PathIn(folder, kManifestName), code);
  for (const std::string& stray : StrayRankFilesIn(folder, dump.manifest.WorldSize())) {
    std::filesystem::remove(PathIn(folder, stray), code);
  }

  for (std::size_t rank = 0; rank < dump.ranks.size(); ++rank) {
    WriteSafetensors(PathIn(folder, RankFileName(static_cast<std::int64_t>(rank))),
                     dump.ranks[rank].tensors(), dump.ranks[rank].metadata());
  }
  if (dump.inputs) {
    WriteSafetensors(PathIn(folder, dump.manifest.inputs.value()), dump.inputs->tensors(),
                     dump.inputs->metadata());
  }
  WriteJsonFile(PathIn(folder, kManifestName), ToJson(dump.manifest));
}

}  // namespace moe
