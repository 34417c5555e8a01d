// A dump: what each rank of one step holds, and the problem it was given. The only thing that is
// ever judged; the built-in step produces the same thing that a foreign framework would.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/dump/manifest.h"
#include "harness/dump/safetensors.h"

namespace moe {

struct Dump {
  std::string name;  // the folder, or the case id for a dump in memory
  Manifest manifest;
  std::vector<SafetensorsFile> ranks;     // rank-00000.safetensors, ... in rank order
  std::optional<SafetensorsFile> inputs;  // the whole problem, where the manifest names its file

  // The local tensor of one rank. Its existence and shape were checked when the dump was opened.
  const TensorView& Local(std::int64_t rank, const std::string& tensor) const;
};

inline constexpr const char* kManifestName = "manifest.json";
std::string RankFileName(std::int64_t rank);  // "rank-00003.safetensors"

// Opens a folder: reads the manifest, maps every rank file (a missing rank is an Error that names
// it; so is a file of a rank beyond the world), and checks that each rank file holds exactly the
// tensors of the manifest with the local shapes that their placements give. Metadata of a rank file
// must agree where there is any: "rank", "world", and "torch" with the manifest's versions or the
// other ranks. A half-written folder (NAME.partial, or rank files without a manifest) is an Error.
// Throws Error.
Dump OpenDump(const std::string& folder);

// The same checks on parts that are already in memory.
Dump MakeDump(std::string name, Manifest manifest, std::vector<SafetensorsFile> ranks,
              std::optional<SafetensorsFile> inputs);

// Writes the folder (made if need be): rank files and inputs first, the manifest last, each under a
// temporary name that is then renamed, so that a folder with a manifest is whole.
void WriteDump(const std::string& folder, const Dump& dump);

}  // namespace moe
