#include "harness/dump/dump.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "harness/base/error.h"

namespace moe {
namespace {

constexpr const char* kManifest = R"json({
  "schema": 1,
  "producer": "test",
  "mesh": {"dense": {"axes": ["tp"], "sizes": [2]}, "expert": {"axes": ["ep"], "sizes": [2]}},
  "model": {"tokens": 4, "d_model": 2, "d_expert": 3, "experts": 2, "top_k": 1},
  "dtype": "float64",
  "inputs": "inputs.safetensors",
  "tensors": {
    "y_TD": {"shape": [4, 2], "mesh": "dense", "placements": {"tp": "S(0)"}},
    "topk_expert_TK": {"shape": [4, 1], "mesh": "dense", "placements": {"tp": "S(0)"}},
    "d_w1_EFD": {"shape": [2, 3, 2], "mesh": "expert", "placements": {"ep": "S(0)"}}
  },
  "tokens": [[0, 2], [1, 3]]
})json";

struct Spec {
  Dtype dtype;
  Shape shape;
};
using Specs = std::map<std::string, Spec>;

// A file of tensors whose bytes are all `fill`.
SafetensorsFile FileOf(const Specs& specs, const std::string& name, int fill = 0,
                       const std::map<std::string, std::string>& metadata = {}) {
  std::map<std::string, std::vector<std::byte>> bytes;
  std::map<std::string, TensorView> views;
  for (const auto& [tensor, spec] : specs) {
    bytes[tensor].assign(static_cast<std::size_t>(NumElements(spec.shape) * SizeOf(spec.dtype)),
                         static_cast<std::byte>(fill));
    views[tensor] = {spec.dtype, spec.shape, bytes[tensor]};
  }
  return SafetensorsFile::FromBytes(EncodeSafetensors(views, metadata), name);
}

Specs RankSpecs() {
  return {{"y_TD", {Dtype::kFloat64, {2, 2}}},
          {"topk_expert_TK", {Dtype::kInt64, {2, 1}}},
          {"d_w1_EFD", {Dtype::kFloat32, {1, 3, 2}}}};
}

Specs InputSpecs() {
  return {{"x_TD", {Dtype::kFloat64, {4, 2}}},      {"d_y_TD", {Dtype::kFloat64, {4, 2}}},
          {"gate_ED", {Dtype::kBfloat16, {2, 2}}},  {"w1_EFD", {Dtype::kFloat16, {2, 3, 2}}},
          {"w3_EFD", {Dtype::kFloat32, {2, 3, 2}}}, {"w2_EDF", {Dtype::kFloat64, {2, 2, 3}}}};
}

Dump Make(const Specs& rank1, const Specs& inputs) {
  return MakeDump("d", ParseManifest(ParseJson(kManifest, "m"), "m"),
                  {FileOf(RankSpecs(), "r0"), FileOf(rank1, "r1", 1)}, FileOf(inputs, "in"));
}

std::string FaultOf(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// A folder with a whole dump, removed at the end of a test.
class DumpFolder : public ::testing::Test {
 protected:
  DumpFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "moegate-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    WriteDump(folder_, Make(RankSpecs(), InputSpecs()));
  }
  ~DumpFolder() override { std::filesystem::remove_all(folder_); }

  std::string In(const std::string& name) const { return folder_ + "/" + name; }
  std::string Fault() const {
    return FaultOf([&] { OpenDump(folder_); });
  }

  std::string folder_;
};

TEST_F(DumpFolder, OpensWhatWasWritten) {
  const Dump dump = OpenDump(folder_);
  EXPECT_EQ(dump.name, folder_);
  ASSERT_EQ(dump.ranks.size(), 2U);
  EXPECT_EQ(dump.Local(1, "topk_expert_TK").IntegerAt(0), 0x0101010101010101);
  EXPECT_EQ(dump.inputs->tensors().at("x_TD").shape, (Shape{4, 2}));
  EXPECT_EQ(ToJson(dump.manifest).dump(), ReadJsonFile(In(kManifestName)).dump());
}

TEST_F(DumpFolder, NamesAMissingRank) {
  std::filesystem::remove(In("rank-00001.safetensors"));
  EXPECT_EQ(Fault(), In("rank-00001.safetensors") +
                         ": does not exist; the manifest has 2 ranks, so there must be "
                         "rank-00000.safetensors to rank-00001.safetensors");
}

TEST_F(DumpFolder, NamesARankBeyondTheWorld) {
  for (const char* name : {"rank-00002.safetensors", "rank-1.safetensors"}) {
    std::filesystem::copy(In("rank-00000.safetensors"), In(name));
    EXPECT_EQ(Fault(), In(name) +
                           ": belongs to no rank; the manifest has 2 ranks, "
                           "rank-00000.safetensors to rank-00001.safetensors");
    std::filesystem::remove(In(name));
  }
  std::ofstream(In("notes.txt")) << "other files are nobody's business";
  EXPECT_EQ(Fault(), "");
}

TEST_F(DumpFolder, NamesMissingFiles) {
  std::filesystem::remove(In("inputs.safetensors"));
  EXPECT_EQ(Fault(), In("inputs.safetensors") + ": does not exist");
  EXPECT_EQ(FaultOf([&] { OpenDump(In("none")); }),
            In("none") + ": is not a folder; a dump is a folder with a manifest.json");
}

TEST_F(DumpFolder, IsNotReadWhereItIsHalfWritten) {
  const std::string partial = folder_ + "/d.partial";
  std::filesystem::create_directory(partial);
  WriteDump(partial, Make(RankSpecs(), InputSpecs()));
  for (const char* ending : {"", "/", "/."}) {
    EXPECT_EQ(FaultOf([&] { OpenDump(partial + ending); }),
              partial + ending +
                  ": is half-written: a producer drops .partial from the name when the dump is "
                  "whole");
  }
  std::filesystem::remove(In(kManifestName));
  EXPECT_EQ(Fault(), folder_ +
                         ": is half-written: it has 2 rank files and no manifest.json, which is "
                         "written last");
  std::filesystem::remove(In("rank-00000.safetensors"));
  std::filesystem::remove(In("rank-00001.safetensors"));
  EXPECT_EQ(Fault(), folder_ + ": has no manifest.json, so it is no dump");
}

TEST_F(DumpFolder, ReplacesAnEarlierDumpOfMoreRanks) {
  std::filesystem::copy(In("rank-00000.safetensors"), In("rank-00002.safetensors"));
  WriteDump(folder_, Make(RankSpecs(), InputSpecs()));
  EXPECT_EQ(Fault(), "");
}

TEST_F(DumpFolder, SurvivesTruncatedFiles) {
  const std::string path = In("rank-00001.safetensors");
  for (auto size = std::filesystem::file_size(path); size-- > 0;) {
    std::filesystem::resize_file(path, size);
    EXPECT_TRUE(Fault().starts_with(path)) << size;
  }
}

TEST(WriteDump, SaysWhereItCannotWrite) {
  EXPECT_TRUE(FaultOf([] {
                WriteDump("/dev/null/dump", Make(RankSpecs(), InputSpecs()));
              }).starts_with("/dev/null/dump: cannot be made"));
}

// The rank file or the inputs with one tensor changed, added, or (empty spec) removed.
struct Change {
  const char* tensor;
  std::optional<Spec> spec;
  const char* message;
};

Specs With(Specs specs, const Change& change) {
  specs.erase(change.tensor);
  if (change.spec) {
    specs.emplace(change.tensor, *change.spec);
  }
  return specs;
}

TEST(MakeDump, HoldsEachRankToTheManifest) {
  for (const Change& change :
       {Change{"y_TD", std::nullopt, "r1: lacks tensor y_TD, which the manifest lists"},
        Change{"d_x_TD", Spec{Dtype::kFloat64, {2, 2}},
               "r1: holds tensor \"d_x_TD\", which is not one that the manifest lists"},
        Change{"\n", Spec{Dtype::kFloat64, {}},
               "r1: holds tensor \"\\n\", which is not one that the manifest lists"},
        Change{"d_w1_EFD", Spec{Dtype::kFloat64, {2, 3, 2}},
               "r1#/d_w1_EFD: has shape [2, 3, 2]; by its placements rank 1 holds [1, 3, 2]"},
        Change{"y_TD", Spec{Dtype::kFloat64, {3, 2}},
               "r1#/y_TD: has shape [3, 2]; by its tokens rank 1 holds [2, 2]"},
        Change{"y_TD", Spec{Dtype::kInt32, {2, 2}},
               "r1#/y_TD: is int32; use float64, float32, bfloat16 or float16"},
        Change{"topk_expert_TK", Spec{Dtype::kFloat32, {2, 1}},
               "r1#/topk_expert_TK: is float32; use int64 or int32"},
        Change{"topk_expert_TK", Spec{Dtype::kInt32, {2, 1}}, ""},
        Change{"y_TD", Spec{Dtype::kBfloat16, {2, 2}}, ""},
        Change{"y_TD", Spec{Dtype::kFloat16, {2, 2}}, ""}}) {
    EXPECT_EQ(FaultOf([&] { Make(With(RankSpecs(), change), InputSpecs()); }), change.message)
        << change.tensor;
  }
}

TEST(MakeDump, HoldsWhatRankFilesSayOfThemselvesToTheManifest) {
  using Metadata = std::map<std::string, std::string>;
  const auto fault = [](const Metadata& rank0, const Metadata& rank1,
                        const std::map<std::string, std::string>& versions = {}) {
    Manifest manifest = ParseManifest(ParseJson(kManifest, "m"), "m");
    manifest.versions = versions;
    return FaultOf([&] {
      MakeDump("d", manifest,
               {FileOf(RankSpecs(), "r0", 0, rank0), FileOf(RankSpecs(), "r1", 1, rank1)},
               FileOf(InputSpecs(), "in"));
    });
  };
  const Metadata whole0 = {{"rank", "0"}, {"world", "2"}, {"torch", "2.11.0"}, {"format", "pt"}};
  const Metadata whole1 = {{"rank", "1"}, {"world", "2"}, {"torch", "2.11.0"}};
  EXPECT_EQ(fault(whole0, whole1), "");
  EXPECT_EQ(fault(whole0, {}, {{"torch", "2.11.0"}}), "");
  EXPECT_EQ(fault(whole0, {{"rank", "0"}}),
            "r1: says that it is of rank \"0\"; it stands for rank 1, so files were mixed up");
  EXPECT_EQ(fault({{"world", "4\n"}}, whole1),
            "r0: says that it is of a world of \"4\\n\" ranks; the manifest has 2, so they are of "
            "different runs");
  EXPECT_EQ(fault(whole0, {{"torch", "2.14.1"}}),
            "r1: was written by torch \"2.14.1\", rank 0 by \"2.11.0\"; all ranks of a step run "
            "one version");
  EXPECT_EQ(fault(whole0, whole1, {{"torch", "2.14.1"}}),
            "r0: was written by torch \"2.11.0\", the manifest says \"2.14.1\"; all ranks of a "
            "step run one version");
}

TEST(MakeDump, HoldsTheInputsToTheModel) {
  for (const Change& change :
       {Change{"gate_ED", std::nullopt,
               "in: lacks tensor gate_ED, which the manifest's model has as input"},
        Change{"gate_bias_E", Spec{Dtype::kFloat64, {2}},
               "in: holds tensor \"gate_bias_E\", which is not one that the manifest's model has "
               "as input"},
        Change{"x_TD", Spec{Dtype::kFloat64, {2, 2}},
               "in#/x_TD: has shape [2, 2]; the model gives it [4, 2]"},
        Change{"x_TD", Spec{Dtype::kInt64, {4, 2}},
               "in#/x_TD: is int64; use float64, float32, bfloat16 or float16"}}) {
    EXPECT_EQ(FaultOf([&] { Make(RankSpecs(), With(InputSpecs(), change)); }), change.message)
        << change.tensor;
  }
}

TEST(MakeDump, CountsRanksAndInputs) {
  const Manifest manifest = ParseManifest(ParseJson(kManifest, "m"), "m");
  const SafetensorsFile rank = FileOf(RankSpecs(), "r");
  EXPECT_EQ(FaultOf([&] { MakeDump("d", manifest, {rank}, std::nullopt); }),
            "d: has the files of 1 ranks; the manifest has 2 ranks");
  EXPECT_EQ(FaultOf([&] {
              MakeDump("d", manifest, {rank, rank}, std::nullopt);
            }),
            "d: lacks the inputs that the manifest names");
  Manifest without = manifest;
  without.inputs.reset();
  EXPECT_EQ(FaultOf([&] {
              MakeDump("d", without, {rank, rank}, rank);
            }),
            "d: has inputs that the manifest does not name");
  EXPECT_EQ(FaultOf([&] { MakeDump("d", without, {rank, rank}, std::nullopt); }), "");
}

}  // namespace
}  // namespace moe
