#include "harness/spec/case_spec.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "harness/base/error.h"
#include "harness/json/json_reader.h"

namespace moe {
namespace {

constexpr const char* kValid = R"json({
  "schema": 1,
  "why": "The gate's gradient is a partial sum until d_gate_ED@tp is reduced.",
  "source": "https://github.com/pytorch/torchtitan/issues/2387",
  "model": {"tokens": 48, "d_model": 8, "d_expert": 48, "experts": 8, "top_k": 2},
  "step": {"tp_backward": "sum_inside", "dp_reduction": "mean"},
  "numerics": {"dtypes": ["float32", "bfloat16"], "fill": "uniform", "seed": 7, "idle_experts": [3]},
  "layouts": ["tp2.ep2.etp1", "dp2.tp2"],
  "must_catch": [{"fault": "drop d_logits_TE@tp", "on": "tp2.ep2.etp1", "cause": "missing_sum",
                  "axes": ["tp"], "tensor": "d_gate_ED"}],
  "must_pass": [{"fault": "drop d_gate_ED@tp", "on": "tp2.ep2.etp1"}]
})json";

// A folder of cases that goes away with the test.
class CaseSpecTest : public testing::Test {
 protected:
  CaseSpecTest() { std::filesystem::create_directories(folder_ + "/issues"); }
  ~CaseSpecTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = folder_ + "/" + name + ".json";
    std::ofstream(path) << text;
    return path;
  }

  // What ReadCase says, behind the path, of the valid case with the value at `pointer` replaced, or
  // removed when `value` is empty.
  std::string ComplaintAfter(const std::string& pointer, const std::string& value) const {
    Json json = ParseJson(kValid, "valid");
    const Json::json_pointer at(pointer);
    if (value.empty()) {
      json[at.parent_pointer()].erase(at.back());
    } else {
      json[at] = ParseJson(value, "value");
    }
    const std::string path = Write("case", json.dump());
    try {
      ReadCase(path, "case");
    } catch (const Error& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with(path));
      return std::string(error.what()).substr(path.size());
    }
    return "";
  }

  struct Change {
    std::string pointer;
    std::string value;
    std::string complaint;
  };
  void ExpectComplaints(const std::vector<Change>& changes) const {
    for (const Change& change : changes) {
      EXPECT_EQ(ComplaintAfter(change.pointer, change.value), change.complaint)
          << change.pointer << " = " << change.value;
    }
  }

  const std::string folder_ = testing::TempDir() + "/case_spec_test_" + std::to_string(::getpid());
};

TEST_F(CaseSpecTest, ReadsEveryKey) {
  const CaseSpec spec = ReadCase(Write("issues/a", kValid), "issues/a");
  EXPECT_EQ(spec.name, "issues/a");
  EXPECT_EQ(spec.source, "https://github.com/pytorch/torchtitan/issues/2387");
  EXPECT_EQ(spec.model.d_expert, 48);
  EXPECT_EQ(spec.program.tp_backward, TpBackward::kSumInside);
  EXPECT_EQ(spec.program.dp_reduction, DpReduction::kMean);
  EXPECT_EQ(spec.numerics.dtypes, (std::vector<Dtype>{Dtype::kFloat32, Dtype::kBfloat16}));
  EXPECT_EQ(spec.numerics.seed, 7U);
  EXPECT_EQ(spec.numerics.idle_experts, std::vector<std::int64_t>{3});
  ASSERT_EQ(spec.layouts.size(), 2U);
  EXPECT_EQ(ToText(spec.layouts[1]), "dp2.tp2");
  ASSERT_EQ(spec.must_catch.size(), 1U);
  EXPECT_EQ(ToText(spec.must_catch[0].fault), "drop d_logits_TE@tp");
  EXPECT_EQ(spec.must_catch[0].cause, "missing_sum");
  EXPECT_EQ(spec.must_catch[0].axes, std::vector<std::string>{"tp"});
  EXPECT_EQ(spec.must_catch[0].tensor, "d_gate_ED");
  ASSERT_EQ(spec.must_pass.size(), 1U);
  EXPECT_EQ(ToText(spec.must_pass[0].on), "tp2.ep2.etp1");
}

TEST_F(CaseSpecTest, NeedsOnlyTheKeysWithoutADefault) {
  for (const char* key : {"schema", "why", "source", "model", "numerics", "layouts"}) {
    EXPECT_EQ(ComplaintAfter(std::string("/") + key, ""),
              ": lacks the key \"" + std::string(key) + "\"");
  }
  for (const char* key : {"/must_pass", "/must_catch", "/numerics/dtypes", "/numerics/fill",
                          "/numerics/seed", "/numerics/idle_experts", "/must_catch/0/cause",
                          "/must_catch/0/axes", "/must_catch/0/tensor"}) {
    EXPECT_EQ(ComplaintAfter(key, ""), "") << key;
  }
}

TEST_F(CaseSpecTest, RefusesUnknownKeysEverywhere) {
  ExpectComplaints(
      {{"/tier", "1",
        "#/tier: unknown key \"tier\"; known are schema, why, source, model, step, numerics, "
        "layouts, "
        "must_catch, must_pass"},
       {"/step/sp", "1", "#/step/sp: unknown key \"sp\"; known are tp_backward, dp_reduction"},
       {"/numerics/dtype", "1",
        "#/numerics/dtype: unknown key \"dtype\"; known are dtypes, fill, seed, idle_experts"},
       {"/must_catch/0/of", "1",
        "#/must_catch/0/of: unknown key \"of\"; known are fault, on, cause, axis, axes, tensor"},
       {"/must_pass/0/cause", "\"\"",
        "#/must_pass/0/cause: unknown key \"cause\"; known are fault, on"}});
}

TEST_F(CaseSpecTest, RefusesWrongTypes) {
  ExpectComplaints(
      {{"/layouts", "\"tp2\"", "#/layouts: is a string; must be an array"},
       {"/layouts/0", "2", "#/layouts/0: is a number; must be a string"},
       {"/model", "[]", "#/model: is an array; must be an object"},
       {"/numerics/seed", "-1", "#/numerics/seed: is -1; must be a whole number of at least 0"},
       {"/must_catch", "{}", "#/must_catch: is an object; must be an array"}});
}

TEST_F(CaseSpecTest, RefusesAnotherSchema) {
  ExpectComplaints({{"/schema", "2", "#/schema: is 2; this moegate reads schema 1"}});
}

TEST_F(CaseSpecTest, SaysWhatItIsForAndWhereItComesFrom) {
  ExpectComplaints(
      {{"/why", "\" \\n\"", "#/why: is empty; say what goes wrong and why nobody notices"},
       {"/source", "\"\"", "#/source: is empty; say where the bug is reported"}});
}

TEST_F(CaseSpecTest, RefusesModelsThatCannotBe) {
  ExpectComplaints(
      {{"/model/top_k", "9", "#/model/top_k: top_k 9 is more than experts 8; use 1 to 8"}});
}

TEST_F(CaseSpecTest, RefusesUnknownChoices) {
  ExpectComplaints(
      {{"/step/tp_backward", "\"never\"",
        "#/step/tp_backward: is \"never\"; use sum_at_boundary or sum_inside"},
       {"/step/dp_reduction", "\"max\"", "#/step/dp_reduction: is \"max\"; use sum or mean"},
       {"/numerics/fill", "\"ones\"", "#/numerics/fill: is \"ones\"; use uniform or dyadic"},
       {"/numerics/dtypes/0", "\"float16\"",
        "#/numerics/dtypes/0: is \"float16\"; use float64, float32 or bfloat16"},
       {"/numerics/dtypes/1", "\"float32\"", "#/numerics/dtypes/1: float32 stands twice"},
       {"/numerics/dtypes", "[]",
        "#/numerics/dtypes: is empty; name at least one of float64, float32, bfloat16"}});
}

TEST_F(CaseSpecTest, LeavesEnoughExpertsBusy) {
  ExpectComplaints(
      {{"/numerics/idle_experts", "[0, 1, 2, 3, 4, 5]", ""},
       {"/numerics/idle_experts", "[0, 1, 2, 3, 4, 5, 6]",
        "#/numerics/idle_experts: leaves 1 experts for top_k 2; name fewer"},
       {"/numerics/idle_experts", "[8]",
        "#/numerics/idle_experts/0: is 8; must be a whole number from 0 to 7"},
       {"/numerics/idle_experts", "[1, 1]", "#/numerics/idle_experts/1: 1 stands twice"}});
}

TEST_F(CaseSpecTest, RefusesLayoutsThatDoNotFit) {
  ExpectComplaints(
      {{"/layouts/1", "\"tp5.etp5\"",
        "#/layouts/1: etp 5 does not divide d_expert 48; use 1, 2, 3, 4 or 6"},
       {"/layouts/1", "\"xp2\"",
        "#/layouts/1: \"xp2\" in layout \"xp2\" is not a part of a layout; parts are dpr, dp, cp, "
        "tp, "
        "ep, etp and lb with a size, and sp0 or sp1, as in dp2.tp2.ep4.etp1"},
       {"/layouts/1", "\"tp2.ep2.etp2\"",
        "#/layouts/1: layout \"tp2.ep2.etp2\" does not fill its world: ep 2 times etp 2 does not "
        "divide the 2 ranks of dp * cp * tp"},
       {"/layouts/1", "\"ep2.etp1.tp2\"", "#/layouts/1: tp2.ep2.etp1 stands twice"},
       {"/layouts", "[]", "#/layouts: is empty; name at least one, such as tp2.ep2.etp1"}});
}

TEST_F(CaseSpecTest, RefusesFaultsThatCannotBePlanted) {
  ExpectComplaints(
      {{"/must_catch/0/fault", "\"drop d_gate_ED@ep\"",
        "#/must_catch/0/fault: d_gate_ED@ep does not exist here; this layout has y_TD@tp, "
        "d_routed_TD@tp, d_logits_TE@tp, d_x_TD@tp, d_gate_ED@tp"},
       {"/must_pass/0/fault", "\"skip-rank 2 d_gate_ED@tp\"",
        "#/must_pass/0/fault: skip-rank 2: the ranks are 0 to 1"},
       {"/must_catch/0/on", "\"dp5\"",
        "#/must_catch/0/on: dp * lb 5 does not divide tokens 48; use 1, 2, 3, 4 or 6"},
       {"/must_catch/0/on", "", "#/must_catch/0: lacks the key \"on\""}});
}

TEST_F(CaseSpecTest, RefusesExpectationsThatCannotCome) {
  ExpectComplaints({{"/must_catch/0/axes", "[\"tp\", \"dp\"]",
                     "#/must_catch/0/axes/1: \"dp\" is no axis; use dp_replicate, dp_shard, cp, "
                     "tp, edp, ep or etp"},
                    {"/must_catch/0/axis", "\"dp\"",
                     "#/must_catch/0/axis: \"dp\" is no axis; use dp_replicate, dp_shard, cp, tp, "
                     "edp, ep or etp"},
                    {"/must_catch/0/tensor", "\"d_logits_TE\"",
                     "#/must_catch/0/tensor: d_logits_TE is not a result of this model"}});
}

TEST_F(CaseSpecTest, RunsTheLayoutsThatOnlyFaultsArePlantedOn) {
  Json json = ParseJson(kValid, "valid");
  json["must_catch"][0]["on"] = "tp2";
  const CaseSpec spec = ReadCase(Write("case", json.dump()), "case");
  ASSERT_EQ(spec.layouts.size(), 3U);
  EXPECT_EQ(ToText(spec.layouts[2]), "tp2");
}

TEST_F(CaseSpecTest, FindsCasesByName) {
  Write("issues/b", kValid);
  Write("issues/a", kValid);
  EXPECT_EQ(FindCase(folder_, "issues/a").name, "issues/a");
  const std::vector<CaseSpec> specs = ReadCases(folder_);
  ASSERT_EQ(specs.size(), 2U);
  EXPECT_EQ(specs[1].name, "issues/b");
  try {
    FindCase(folder_, "issue/b");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), "\"issue/b\": is no case in " + folder_ +
                                "; the nearest is issues/b, and there are issues/a, issues/b");
  }
}

TEST_F(CaseSpecTest, NamesAFolderWithoutCases) {
  try {
    ReadCases(folder_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), folder_ + ": holds no case (*.json)");
  }
}

}  // namespace
}  // namespace moe
