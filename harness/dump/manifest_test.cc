#include "harness/dump/manifest.h"

#include <gtest/gtest.h>

#include "harness/base/error.h"
#include "harness/json/model_json.h"

namespace moe {
namespace {

// 8 tokens over 4 ranks: dp_shard shares out the sequences, tp what is left of each.
constexpr const char* kValid = R"json({
  "schema": 1,
  "producer": "test",
  "mesh": {"dense": {"axes": ["dp_shard", "tp"], "sizes": [2, 2]},
           "expert": {"axes": ["edp", "ep", "etp"], "sizes": [1, 2, 2]}},
  "layout": {"dp_shard": 2, "tp": 2, "ep": 2, "etp": 2, "sp": false, "local_batch": 2},
  "model": {"tokens": 8, "d_model": 4, "d_expert": 6, "experts": 4, "top_k": 2,
            "score_function": "sigmoid"},
  "dtype": "float32",
  "casts": {"scores_TE": "bfloat16", "routed_out_ND": "float16"},
  "loss": {"kind": "dot_with_cotangent", "reduction": "sum"},
  "inputs": "inputs.safetensors",
  "case": "basics/small",
  "tensors": {
    "y_TD": {"shape": [8, 4], "mesh": "dense", "placements": {"dp_shard": "S(0)", "tp": "S(0)"}},
    "topk_expert_TK": {"shape": [8, 2], "mesh": "dense",
                       "placements": {"dp_shard": "S(0)", "tp": "S(0)"}},
    "d_gate_ED": {"shape": [4, 4], "mesh": "dense", "placements": {"dp_shard": "P"}, "scale": 4},
    "d_w1_EFD": {"shape": [4, 6, 4], "mesh": "expert",
                 "placements": {"edp": "R", "ep": "S(0)", "etp": "SS(1,2)"}}
  },
  "not_dumped": ["d_x_TD"],
  "missing": {"d_w2_EDF": "experts.w2.grad is None on rank 1"},
  "versions": {"torch": "2.11.0"},
  "tokens": [[0, 4], [1, 5], [2, 6], [3, 7]]
})json";

Json Valid() {
  return ParseJson(kValid, "m");
}

// Valid() with the value at `pointer` replaced, or removed when `value` is empty.
Json With(const std::string& pointer, const std::string& value) {
  Json json = Valid();
  const Json::json_pointer at(pointer);
  if (value.empty()) {
    json[at.parent_pointer()].erase(at.back());
  } else {
    json[at] = ParseJson(value, "value");
  }
  return json;
}

std::string FaultOf(const Json& json) {
  try {
    ParseManifest(json, "m");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

struct Change {
  const char* pointer;
  const char* value;
  const char* message;
};

void ExpectFaults(std::initializer_list<Change> changes) {
  for (const Change& change : changes) {
    EXPECT_EQ(FaultOf(With(change.pointer, change.value)), change.message)
        << change.pointer << " = " << change.value;
  }
}

TEST(Manifest, ReadsEveryKey) {
  const Manifest manifest = ParseManifest(Valid(), "m");
  EXPECT_EQ(manifest.producer, "test");
  EXPECT_EQ(manifest.WorldSize(), 4);
  EXPECT_EQ(manifest.meshes.expert.SizeOf(Axis::kEtp), 2);
  EXPECT_EQ(manifest.layout,
            (Layout{.dp_shard = 2, .tp = 2, .ep = 2, .etp = 2, .sp = false, .local_batch = 2}));
  EXPECT_EQ(manifest.model.score_function, ScoreFunction::kSigmoid);
  EXPECT_EQ(manifest.dtype, Dtype::kFloat32);
  EXPECT_EQ(manifest.casts.at("scores_TE"), Dtype::kBfloat16);
  EXPECT_EQ(manifest.missing.at("d_w2_EDF"), "experts.w2.grad is None on rank 1");
  EXPECT_EQ(manifest.versions.at("torch"), "2.11.0");
  EXPECT_EQ(manifest.inputs, "inputs.safetensors");
  EXPECT_EQ(manifest.case_name, "basics/small");
  EXPECT_EQ(manifest.tensors.at("d_gate_ED").scale, 4.0);
  EXPECT_EQ(manifest.tensors.at("d_gate_ED").placements, (Placements{{Axis::kDpShard, Partial()}}));
  EXPECT_EQ(manifest.tensors.at("d_w1_EFD").mesh, MeshKind::kExpert);
  EXPECT_EQ(manifest.tensors.at("d_w1_EFD").placements.at(Axis::kEtp), StridedShard(1, 2));
  EXPECT_EQ(manifest.not_dumped, std::vector<std::string>{"d_x_TD"});
  EXPECT_EQ(manifest.tokens[3], (std::vector<std::int64_t>{3, 7}));
}

TEST(Manifest, ReadsWhatItWrote) {
  const Json written = ToJson(ParseManifest(Valid(), "m"));
  EXPECT_EQ(ToJson(ParseManifest(written, "m")), written);  // integers as C++ made them
  EXPECT_EQ(ToJson(ParseManifest(ParseJson(written.dump(), "m"), "m")).dump(), written.dump());
}

TEST(Manifest, TakesTheLayoutFromTheMeshesWhereItIsNotGiven) {
  const Manifest manifest = ParseManifest(With("/layout", ""), "m");
  EXPECT_EQ(manifest.layout, (Layout{.dp_shard = 2, .tp = 2, .ep = 2, .etp = 2}));
}

TEST(Manifest, NeedsOnlyTheKeysWithoutADefault) {
  for (const char* key : {"/layout", "/casts", "/loss", "/inputs", "/case", "/not_dumped",
                          "/tokens", "/tensors/d_w1_EFD/placements", "/tensors/d_gate_ED/scale"}) {
    EXPECT_EQ(FaultOf(With(key, "")), "") << key;
  }
  ExpectFaults({{"/schema", "", "m: lacks the key \"schema\""},
                {"/producer", "", "m: lacks the key \"producer\""},
                {"/mesh", "", "m: lacks the key \"mesh\""},
                {"/mesh/expert", "", "m#/mesh: lacks the key \"expert\""},
                {"/model", "", "m: lacks the key \"model\""},
                {"/dtype", "", "m: lacks the key \"dtype\""},
                {"/tensors", "", "m: lacks the key \"tensors\""},
                {"/tensors/y_TD/mesh", "", "m#/tensors/y_TD: lacks the key \"mesh\""}});
}

TEST(Manifest, RefusesWrongValuesAtTheTop) {
  ExpectFaults(
      {{"/schema", "2", "m#/schema: is 2; this moegate reads schema 1"},
       {"/extra", "1",
        "m#/extra: unknown key \"extra\"; known are schema, producer, mesh, layout, model, dtype, "
        "casts, loss, inputs, case, tensors, not_dumped, missing, versions, tokens"},
       {"/producer", "1", "m#/producer: is a number; must be a string"},
       {"/dtype", "\"int64\"", "m#/dtype: is \"int64\"; use float64, float32, bfloat16 or float16"},
       {"/casts/scores_TE", "\"fp8\"",
        "m#/casts/scores_TE: is \"fp8\"; use float64, float32, bfloat16 or float16"},
       {"/casts/scores", "\"float32\"",
        "m#/casts/scores: is not a tensor whose rounding is known; use logits_TE, scores_TE, "
        "routed_in_ND, routed_out_ND, or a tensor of the dump"},
       {"/missing/d_y", "\"why\"",
        "m#/missing/d_y: \"d_y\" is not a tensor of this model; the nearest is d_y_TD, and known "
        "are "
        "x_TD, d_y_TD, gate_ED, w1_EFD, w3_EFD, w2_EDF, y_TD, d_x_TD, d_gate_ED, d_w1_EFD, "
        "d_w3_EFD, d_w2_EDF, topk_expert_TK, tokens_per_expert_E"},
       {"/missing/d_gate_ED", "\"why\"",
        "m#/missing/d_gate_ED: stands under tensors or not_dumped too; it is dumped, left out, or "
        "missing"},
       {"/versions/torch", "2.11", "m#/versions/torch: is a number; must be a string"},
       {"/loss/kind", "\"mse\"", "m#/loss/kind: is \"mse\"; must be dot_with_cotangent"},
       {"/loss/reduction", "\"mean\"", "m#/loss/reduction: is \"mean\"; must be sum"}});
}

// Words that a report quotes must not look like lines of the report.
TEST(Manifest, KeepsTheWordsOfAStrangerOnOneLine) {
  const char* words = R"("a\ngate PASSED\u001b[2J")";
  const char* kept = "a\\x0agate PASSED\\x1b[2J";
  EXPECT_EQ(ParseManifest(With("/producer", words), "m").producer, kept);
  EXPECT_EQ(ParseManifest(With("/missing/d_w2_EDF", words), "m").missing.at("d_w2_EDF"), kept);
  EXPECT_EQ(ParseManifest(With("/versions/torch", words), "m").versions.at("torch"), kept);
}

TEST(Manifest, RefusesInputsOutsideTheFolder) {
  for (const char* name :
       {"", "../a.safetensors", "/etc/a.safetensors", "a/b.safetensors", "a\\b.safetensors",
        "..safetensors", "manifest.json", "rank-00000.safetensors", "a\n.safetensors"}) {
    const std::string quoted = Json(name).dump();
    EXPECT_EQ(FaultOf(With("/inputs", quoted)),
              "m#/inputs: " + quoted +
                  " is not the name of a file of inputs inside the folder; use a name such as "
                  "inputs.safetensors");
  }
  EXPECT_NE(FaultOf(With("/inputs", R"("a\u0000.safetensors")")), "");
}

TEST(Manifest, ChecksTheMeshes) {
  ExpectFaults(
      {{"/mesh/dense/axes", R"(["dp_shard", "ep"])",
        "m#/mesh/dense/axes/1: \"ep\" is not an axis of the dense mesh; use dp_replicate, "
        "dp_shard, cp, tp"},
       {"/mesh/expert/axes", R"(["edp", "ep", "tp"])",
        "m#/mesh/expert/axes/2: \"tp\" is not an axis of the expert mesh; use edp, ep, etp"},
       {"/mesh/dense/axes", R"(["tp", "tp"])", "m#/mesh/dense/axes/1: axis tp stands twice"},
       {"/mesh/dense/axes", R"(["tp", "tp", "tp", "tp", "tp"])",
        "m#/mesh/dense/axes: has 5 entries; at most 4 make sense"},
       {"/mesh/dense/sizes", "[4]", "m#/mesh/dense/sizes: has 1 sizes for 2 axes"},
       {"/mesh/dense/sizes", "[0, 2]",
        "m#/mesh/dense/sizes/0: is 0; must be a whole number from 1 to 4096"},
       {"/mesh/dense/sizes", "[4096, 2]",
        "m#/mesh/dense/sizes/1: makes a world of 8192 ranks; at most 4096 are read"},
       {"/mesh/expert/sizes", "[2, 2, 2]",
        "m#/mesh: the dense mesh has 4 ranks and the expert mesh 8; both are views of the same "
        "ranks"},
       {"/layout/tp", "4", "m#/layout/tp: is 4, but the dense mesh gives tp the size 2"},
       {"/layout/cp", "2", "m#/layout/cp: is 2, but the dense mesh gives cp the size 1"},
       {"/layout/edp", "1",
        "m#/layout/edp: unknown key \"edp\"; known are dp_replicate, dp_shard, cp, tp, ep, etp, "
        "sp, local_batch"},
       {"/layout/local_batch", "9",
        "m#/layout/local_batch: is 9; must be a whole number from 1 to 8"}});
}

TEST(Manifest, AcceptsAWorldOfExactlyTheLimit) {
  Json json = ParseJson(R"({"schema": 1, "producer": "", "dtype": "float64", "tensors": {},
    "mesh": {"dense": {"axes": ["tp", "dp_shard"], "sizes": [2, 2048]},
             "expert": {"axes": ["ep"], "sizes": [4096]}},
    "model": {"tokens": 8, "d_model": 4, "d_expert": 6, "experts": 4, "top_k": 2}})",
                        "m");
  EXPECT_EQ(ParseManifest(json, "m").WorldSize(), 4096);
  json["mesh"] = ParseJson(R"({"dense": {"axes": [], "sizes": []},
                               "expert": {"axes": [], "sizes": []}})",
                           "m");
  EXPECT_EQ(ParseManifest(json, "m").WorldSize(), 1);
}

TEST(Manifest, ChecksTheModel) {
  ExpectFaults(
      {{"/model/top_k", "9", "m#/model/top_k: top_k 9 is more than experts 4; use 1 to 4"},
       {"/model/tokens", "1e3", "m#/model/tokens: is 1000.0; must be a whole number"},
       {"/model/experts", "", "m#/model: lacks the key \"experts\""},
       {"/model/route_norm", "1", "m#/model/route_norm: is a number; must be true or false"},
       {"/model/score_function", "\"relu\"",
        "m#/model/score_function: is \"relu\"; use softmax or sigmoid"},
       {"/model/score_placement", "\"before\"",
        "m#/model/score_placement: is \"before\"; use before_experts or after_experts"}});
}

TEST(Manifest, ChecksTheTensors) {
  const std::string known =
      "x_TD, d_y_TD, gate_ED, w1_EFD, w3_EFD, w2_EDF, y_TD, d_x_TD, d_gate_ED, d_w1_EFD, d_w3_EFD, "
      "d_w2_EDF, topk_expert_TK, tokens_per_expert_E";
  EXPECT_EQ(
      FaultOf(With("/tensors/d_gate_bias_E", "{}")),
      "m#/tensors/d_gate_bias_E: \"d_gate_bias_E\" is not a tensor of this model; the nearest is "
      "d_gate_ED, and known are " +
          known);
  EXPECT_EQ(FaultOf(With("/not_dumped", R"(["w4_EFD"])")),
            "m#/not_dumped/0: \"w4_EFD\" is not a tensor of this model; the nearest is w1_EFD, and "
            "known are " +
                known);
  ExpectFaults(
      {{"/not_dumped", R"(["y_TD"])",
        "m#/not_dumped/0: y_TD stands under tensors too; it is either dumped or not"},
       {"/not_dumped", R"(["x_TD", "x_TD"])", "m#/not_dumped/1: x_TD stands twice"},
       {"/tensors/y_TD/shape", "[4, 8]",
        "m#/tensors/y_TD/shape: is [4, 8]; the model gives y_TD the shape [8, 4]"},
       {"/tensors/y_TD/shape", "[8, -4]",
        "m#/tensors/y_TD/shape/1: is -4; must be a whole number of at least 0"},
       {"/tensors/y_TD/mesh", "\"sparse\"",
        "m#/tensors/y_TD/mesh: is \"sparse\"; use dense or expert"},
       {"/tensors/y_TD/placements", R"({"cp": "R"})",
        "m#/tensors/y_TD/placements/cp: \"cp\" is not an axis of this dense mesh, which has "
        "dp_shard, tp"},
       {"/tensors/d_w1_EFD/placements/ep", "\"S\"",
        "m#/tensors/d_w1_EFD/placements/ep: \"S\" is no placement; use R, P, S(dim) or "
        "SS(dim,split)"},
       {"/tensors/d_w1_EFD/placements/ep", "\"S(3)\"",
        "m#/tensors/d_w1_EFD/placements/ep: \"S(3)\" shards a dimension that d_w1_EFD lacks; use "
        "0 to 2"},
       {"/tensors/d_w1_EFD/placements/ep", "\"S(2)\"", ""},
       {"/tensors/d_w1_EFD/placements/ep", "\"SS(0,4)\"", ""},
       {"/tensors/d_w1_EFD/placements/ep", "\"SS(0,5)\"",
        "m#/tensors/d_w1_EFD/placements/ep: \"SS(0,5)\" splits into 5 parts; use 1 to 4, the "
        "number of ranks"},
       {"/tensors/topk_expert_TK/placements/tp", "\"P\"",
        "m#/tensors/topk_expert_TK/placements/tp: \"P\" would add expert ids; topk_expert_TK is R "
        "or S(0)"},
       {"/tensors/topk_expert_TK/placements/tp", "\"S(1)\"",
        "m#/tensors/topk_expert_TK/placements/tp: \"S(1)\" would cut a token's choice; "
        "topk_expert_TK is R or S(0)"},
       {"/tensors/topk_expert_TK/scale", "0.5",
        "m#/tensors/topk_expert_TK/scale: is 0.5; topk_expert_TK holds expert ids, which have no "
        "factor"},
       {"/tensors/y_TD/scale", "0",
        "m#/tensors/y_TD/scale: is 0; use the factor that the values still lack"},
       {"/tensors/y_TD/scale", "\"4\"",
        "m#/tensors/y_TD/scale: is a string; must be a finite number"}});
}

TEST(Manifest, ChecksTheTokenLists) {
  ExpectFaults(
      {{"/tokens", "[]", "m#/tokens: has 0 lists; must have one for each of the 4 ranks"},
       {"/tokens/1", "3", "m#/tokens/1: is a number; must be an array"},
       {"/tokens/1", "[1, 8]", "m#/tokens/1/1: is 8; must be a whole number from 0 to 7"},
       {"/tokens/1", "[-1, 5]", "m#/tokens/1/0: is -1; must be a whole number from 0 to 7"},
       {"/tokens/1", "[1, 18446744073709551615]",
        "m#/tokens/1/1: is 18446744073709551615; must be a whole number from 0 to 7"},
       {"/tokens/1", "[1, \"5\"]",
        "m#/tokens/1/1: is a string; must be a whole number from 0 to 7"},
       {"/tokens/1", "[5, 5]", "m#/tokens/1: lists token 5 twice"},
       {"/tokens/1", "[1]", "m#/tokens: no rank holds token 5 of topk_expert_TK"},
       {"/tokens/1", "[1, 5, 2]", ""},
       {"/tensors/y_TD/placements/tp", "\"R\"",
        "m#/tokens: ranks 0 and 1 differ only along tp, where y_TD is R, so they must list the "
        "same tokens in the same order"},
       {"/tensors/y_TD/placements/dp_shard", "\"P\"",
        "m#/tokens: ranks 0 and 2 differ only along dp_shard, where y_TD is P, so they must list "
        "the same tokens in the same order"},
       {"/tensors/y_TD/placements/tp", "\"S(1)\"",
        "m#/tokens: ranks 0 and 1 differ only along tp, where y_TD is S(1), so they must list the "
        "same tokens in the same order"}});
}

TEST(Manifest, AcceptsReplicatedRowsWithEqualLists) {
  Json json = With("/tokens", "[[0, 4, 1, 5], [0, 4, 1, 5], [2, 6, 3, 7], [2, 6, 3, 7]]");
  json["tensors"].erase("topk_expert_TK");
  json["tensors"]["y_TD"]["placements"]["tp"] = "R";
  EXPECT_EQ(FaultOf(json), "");
  json["tokens"][1] = {4, 0, 1, 5};
  EXPECT_NE(FaultOf(json), "");  // the order counts
}

TEST(Manifest, TakesRowsFromTheTokensAndTheRestFromThePlacements) {
  Manifest manifest = ParseManifest(Valid(), "m");
  using Index = std::vector<std::vector<std::int64_t>>;
  EXPECT_EQ(SliceOf(manifest, "y_TD", 2).index, (Index{{2, 6}, {0, 1, 2, 3}}));
  EXPECT_EQ(SliceOf(manifest, "d_w1_EFD", 3).index, (Index{{2, 3}, {2, 5}, {0, 1, 2, 3}}));
  manifest.tokens.clear();
  EXPECT_EQ(SliceOf(manifest, "y_TD", 2).index, (Index{{4, 5}, {0, 1, 2, 3}}));
}

TEST(Manifest, SurvivesEveryFlippedByteAndEveryTruncation) {
  const std::string valid = Valid().dump();
  const auto read = [](const std::string& text) {
    try {
      ParseManifest(ParseJson(text, "m"), "m");
    } catch (const Error&) {
    }
  };
  for (std::size_t i = 0; i < valid.size(); ++i) {
    for (const int flip : {1, 2, 4, 8, 16, 32, 64, 128}) {
      std::string text = valid;
      text[i] = static_cast<char>(text[i] ^ flip);
      read(text);
    }
    read(valid.substr(0, i));
  }
}

TEST(ModelJson, LeavesOutDefaults) {
  const Json json =
      ParseJson(R"({"tokens": 8, "d_model": 4, "d_expert": 6, "experts": 4, "top_k": 2})", "m");
  EXPECT_EQ(ToJson(ParseModel(JsonNode(json, "m"))), json);
}

TEST(ModelJson, ReadsWhatItWrote) {
  const Json json = ParseJson(
      R"({"tokens": 8, "d_model": 4, "d_expert": 6, "experts": 4, "top_k": 2,
          "score_function": "sigmoid", "score_placement": "before_experts", "route_norm": true,
          "route_scale": 2.5, "gate_bias": true, "expert_bias": true, "expert_groups": 2,
          "limited_groups": 2, "d_shared": 3, "shared_gate": true})",
      "m");
  EXPECT_EQ(ToJson(ParseModel(JsonNode(json, "m"))), json);
}

}  // namespace
}  // namespace moe
