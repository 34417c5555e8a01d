#include <gtest/gtest.h>
#include <tinyxml2.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "harness/base/error.h"
#include "harness/report/result.h"

namespace moe {
namespace {

Result Passing() {
  Result result{.id = "issues/a@tp2.ep2.etp1", .dtype = "float32", .backend = "threads"};
  result.judgement.findings = {{.tensor = "d_gate_ED", .error = 2.6e-7, .tolerance = 1.0e-5}};
  result.repro = "build/moegate run issues/a@tp2.ep2.etp1";
  return result;
}

Result Failing() {
  Result result = Passing();
  result.verdict = Verdict::kFail;
  result.judgement.findings = {
      {.tensor = "y_TD", .error = 1.0e-7, .tolerance = 1.0e-5},
      {.tensor = "d_gate_ED",
       .verdict = Verdict::kFail,
       .explanation = {.cause = Cause::kMissingSum, .axes = {Axis::kTp}},
       .error = 0.644,
       .tolerance = 1.0e-5,
       .residual = 2.6e-7,
       .ranks = {0, 1},
       .evidence = {.errors = {{0, 0.644}, {1, 0.5}}, .worst = {"expert", 3, {0}}}}};
  return result;
}

Result With(Verdict verdict, const std::string& text) {
  return {.id = "issues/a@tp2", .dtype = "float32", .verdict = verdict, .text = text};
}

std::string SummaryText(const std::vector<Result>& results, std::int64_t listed) {
  return ToText(Summarize(results, listed));
}

int StatusOf(const std::vector<Result>& results, std::int64_t listed) {
  return ExitStatus(Summarize(results, listed));
}

TEST(Summary, PassesWhereEveryListedCasePassed) {
  EXPECT_EQ(StatusOf({Passing(), Passing()}, 2), 0);
  EXPECT_EQ(SummaryText({Passing(), Passing()}, 2),
            "2 listed: 2 passed, 0 failed, 0 vacuous, 0 skipped, 0 error: gate PASSED");
}

TEST(Summary, FailsWhereOneCaseFailed) {
  EXPECT_EQ(StatusOf({Passing(), Failing()}, 2), 1);
  EXPECT_EQ(SummaryText({Passing(), Failing()}, 2),
            "2 listed: 1 passed, 1 failed, 0 vacuous, 0 skipped, 0 error: gate FAILED");
}

TEST(Summary, FailsWhereACaseProvedNothing) {
  EXPECT_EQ(StatusOf({Passing(), With(Verdict::kVacuous, "")}, 2), 1);
}

TEST(Summary, TakesASkipForNoPass) {
  EXPECT_EQ(StatusOf({Passing(), With(Verdict::kSkipped, "needs 2 GPUs")}, 2), 1);
  EXPECT_EQ(StatusOf({With(Verdict::kSkipped, "needs 2 GPUs")}, 1), 1);
}

TEST(Summary, GivesAnErrorPrecedence) {
  EXPECT_EQ(StatusOf({Passing(), Failing(), With(Verdict::kError, "rank 1 died")}, 3), 2);
}

TEST(Summary, FailsWhereFewerRanThanWereListed) {
  EXPECT_EQ(StatusOf({Passing()}, 2), 1);
}

TEST(Summary, FailsWhereNothingIsListed) {
  EXPECT_EQ(StatusOf({}, 0), 1);
  EXPECT_EQ(SummaryText({}, 0),
            "0 listed: 0 passed, 0 failed, 0 vacuous, 0 skipped, 0 error: gate FAILED");
}

TEST(Summary, CountsPlantedFaults) {
  Result result = Passing();
  result.planted = {{"drop d_gate_ED@tp", true, ""}, {"mean d_gate_ED@tp", false, "passed"}};
  EXPECT_EQ(
      SummaryText({result}, 1),
      "1 listed: 1 passed, 0 failed, 0 vacuous, 0 skipped, 0 error; planted faults told right "
      "1/2: gate PASSED");
}

TEST(ToText, TellsAPassInOneLine) {
  EXPECT_EQ(ToText(Passing()),
            "PASS     issues/a@tp2.ep2.etp1 float32   worst d_gate_ED 2.6e-07 of 1.0e-05\n");
}

TEST(ToText, TellsTheWholeStoryOfAFailure) {
  EXPECT_EQ(ToText(Failing()),
            "FAIL     issues/a@tp2.ep2.etp1 float32   d_gate_ED: missing sum over tp\n"
            "\n"
            "  what   d_gate_ED is off by 6.44e-01 (rank 0), 5.00e-01 (rank 1); allowed 1.0e-05; "
            "worst: expert 3 on rank 0\n"
            "  fine   y_TD 1.0e-07\n"
            "\n"
            "  repro  build/moegate run issues/a@tp2.ep2.etp1\n"
            "\n");
}

Result OfAStranger() {
  Result result = Passing();
  result.id = "dump";
  result.backend = "";
  Manifest manifest{.producer = "titan", .versions = {{"titan", "0.2"}, {"torch", "2.11.0"}}};
  manifest.layout = ParseLayout("tp2", "report_test");
  manifest.meshes = MakeMeshes(manifest.layout);
  manifest.dtype = Dtype::kFloat64;
  manifest.casts = {{"scores_TE", Dtype::kFloat32}};
  for (const TensorInfo& tensor : ResultsOf(manifest.model)) {
    if (tensor.name == "d_gate_ED" || tensor.name == "d_x_TD") {
      manifest.tensors[tensor.name].shape = tensor.shape;
    } else {
      manifest.missing[tensor.name] = "is None";
    }
  }
  manifest.missing["tokens_per_expert_E"] = "fused";
  manifest.not_dumped = {"topk_expert_TK"};
  result.judgement.foreign = {manifest, {{"d_gate_ED", 3.1e-7, 7.9e-15}}, true};
  return result;
}

TEST(ToText, SaysWhatWasTakenOnTrustOfAStranger) {
  EXPECT_EQ(ToText(OfAStranger()),
            "PASS     dump float32   worst d_gate_ED 2.6e-07 of 1.0e-05\n"
            "  dump   of titan (titan 0.2, torch 2.11.0)\n"
            "  claims d_x_TD, d_gate_ED: R on tp\n"
            "  floor  scores_TE in float32: d_gate_ED may be off by 3.1e-07 (7.9e-15 without)\n"
            "  gaps   y_TD: is None; d_w1_EFD: is None; d_w3_EFD: is None; d_w2_EDF: is None; "
            "routing, but for its effects: topk_expert_TK: left out on purpose (not_dumped); "
            "token counts: tokens_per_expert_E: fused\n");
}

TEST(Json, SaysWhatWasTakenOnTrustOfAStranger) {
  const Json json = ToJson({OfAStranger()}, Summary())["results"][0];
  EXPECT_EQ(json["producer"], "titan");
  EXPECT_EQ(json["versions"]["torch"], "2.11.0");
  EXPECT_EQ(json["claims"][0], "d_x_TD, d_gate_ED: R on tp");
  EXPECT_EQ(json["not_judged"].size(), 6U);
  EXPECT_EQ(json["cast_effects"][0]["tensor"], "d_gate_ED");
  EXPECT_FALSE(ToJson({Passing()}, Summary())["results"][0].contains("claims"));
}

TEST(ToText, SaysWhatASkipMissed) {
  EXPECT_EQ(ToText(With(Verdict::kSkipped, "needs 2 GPUs; there is 1")),
            "SKIPPED  issues/a@tp2 float32   needs 2 GPUs; there is 1\n");
}

TEST(ToText, CarriesNoControlCharactersOfAStranger) {
  EXPECT_EQ(ToText(With(Verdict::kSkipped, "\x1b[2J")),
            "SKIPPED  issues/a@tp2 float32   \\x1b[2J\n");
}

TEST(Json, HasTheShapeOfDesign) {
  const std::vector<Result> results = {Failing()};
  const Json json = ToJson(results, Summarize(results, 1));
  EXPECT_EQ(json["schema"], 1);
  const Json& result = json["results"][0];
  EXPECT_EQ(result["id"], "issues/a@tp2.ep2.etp1");
  EXPECT_EQ(result["dtype"], "float32");
  EXPECT_EQ(result["backend"], "threads");
  EXPECT_TRUE(result["fault"].is_null());
  EXPECT_EQ(result["verdict"], "fail");
  EXPECT_EQ(result["findings"][1],
            ParseJson(R"({"tensor": "d_gate_ED", "verdict": "fail", "cause": "missing_sum",
                          "axes": ["tp"], "error": 0.644, "tolerance": 1e-5, "residual": 2.6e-7,
                          "ranks": [0, 1], "candidates": [],
                          "evidence": {"errors": [{"rank": 0, "error": 0.644},
                                                  {"rank": 1, "error": 0.5}],
                                       "worst": {"unit": "expert", "index": 3, "ranks": [0]}},
                          "text": "missing sum over tp"})",
                      "want"));
  EXPECT_EQ(json["summary"].dump(),
            R"({"listed":1,"passed":0,"failed":1,"vacuous":0,"skipped":0,"error":0})");
}

TEST(Json, GivesAPassingFindingNoCause) {
  const Json json = ToJson({Passing()}, Summarize({Passing()}, 1));
  const Json& finding = json["results"][0]["findings"][0];
  EXPECT_EQ(finding["verdict"], "pass");
  EXPECT_TRUE(finding["cause"].is_null());
}

TEST(Json, ListsTheCausesThatGiveTheSameNumbers) {
  Result result = Failing();
  Finding& finding = result.judgement.findings[1];
  finding.explanation = {.cause = Cause::kAmbiguous};
  finding.candidates = {{.cause = Cause::kMissingSum, .axes = {Axis::kTp}},
                        {.cause = Cause::kMeanForSum, .axes = {Axis::kEp}}};
  const Json json = ToJson({result}, Summarize({result}, 1));
  EXPECT_EQ(json["results"][0]["findings"][1]["candidates"].dump(),
            R"([{"cause":"missing_sum","axes":["tp"]},{"cause":"mean_for_sum","axes":["ep"]}])");
}

// Numbers that JSON cannot write and texts that neither it nor XML can.
Result Nasty() {
  Result result = Failing();
  result.id = "dumps/caf\xe9\x01<&>@tp2";
  result.judgement.findings[1].error = NAN;
  result.judgement.findings[1].tolerance = INFINITY;
  result.judgement.findings[1].verdict = Verdict::kVacuous;
  result.judgement.findings[1].reason = Reason::kMissing;
  result.judgement.findings[1].reason_given = "\xff\x1b[31m ]]> \"quoted\"";
  result.judgement.findings[1].explanation = {};
  result.repro = "run 'caf\xe9'";
  result.seconds = NAN;
  return result;
}

class ReportFileTest : public testing::Test {
 protected:
  ~ReportFileTest() override { std::filesystem::remove(path_); }

  const std::string path_ = testing::TempDir() + "/report_test_" + std::to_string(::getpid());
};

TEST_F(ReportFileTest, WritesJsonWhateverTheNumbersAndTexts) {
  WriteJsonFile(path_, ToJson({Nasty()}, Summarize({Nasty()}, 1)));
  const Json finding = ReadJsonFile(path_)["results"][0]["findings"][1];
  EXPECT_TRUE(finding["error"].is_null());
  EXPECT_TRUE(finding["tolerance"].is_null());
}

TEST_F(ReportFileTest, CountsInJUnitAsInTheSummary) {
  const std::vector<Result> results = {Passing(), Failing(), With(Verdict::kVacuous, "no gradient"),
                                       With(Verdict::kSkipped, "needs 2 GPUs"),
                                       With(Verdict::kError, "rank 1 died")};
  WriteJUnit(path_, results, Summarize(results, 5));
  tinyxml2::XMLDocument document;
  ASSERT_EQ(document.LoadFile(path_.c_str()), tinyxml2::XML_SUCCESS);
  const tinyxml2::XMLElement* suite = document.FirstChildElement("testsuite");
  ASSERT_NE(suite, nullptr);
  EXPECT_EQ(suite->IntAttribute("tests"), 5);
  EXPECT_EQ(suite->IntAttribute("failures"), 2);
  EXPECT_EQ(suite->IntAttribute("errors"), 1);
  EXPECT_EQ(suite->IntAttribute("skipped"), 1);
  std::string children;
  for (const auto* test = suite->FirstChildElement("testcase"); test != nullptr;
       test = test->NextSiblingElement("testcase")) {
    const auto* outcome = test->FirstChildElement("properties")->NextSiblingElement();
    children += outcome == nullptr ? "-" : outcome->Name();
    children += ' ';
  }
  EXPECT_EQ(children, "- failure failure skipped error ");
}

TEST_F(ReportFileTest, NamesATestByItsCaseDtypeAndLayout) {
  WriteJUnit(path_, {Failing()}, Summarize({Failing()}, 1));
  tinyxml2::XMLDocument document;
  ASSERT_EQ(document.LoadFile(path_.c_str()), tinyxml2::XML_SUCCESS);
  const auto* test = document.FirstChildElement("testsuite")->FirstChildElement("testcase");
  EXPECT_STREQ(test->Attribute("classname"), "tp2.ep2.etp1");
  EXPECT_STREQ(test->Attribute("name"), "issues/a float32");
  EXPECT_STREQ(test->FirstChildElement("failure")->Attribute("message"),
               "d_gate_ED: missing sum over tp");
}

// tinyxml2 reads more than XML allows, so the bytes themselves are looked at (XML 1.0, sec. 2.2).
TEST_F(ReportFileTest, WritesXmlWhateverTheNumbersAndTexts) {
  WriteJUnit(path_, {Nasty()}, Summarize({Nasty()}, 1));
  std::ifstream file(path_, std::ios::binary);
  const std::string xml{std::istreambuf_iterator<char>(file), {}};
  for (const char c : xml) {
    ASSERT_TRUE(c == '\n' || (c >= 0x20 && c < 0x7f)) << xml;
  }
  EXPECT_NE(xml.find("caf\\xe9\\x01&lt;&amp;&gt;"), std::string::npos) << xml;
  EXPECT_NE(xml.find("\\xff\\x1b[31m ]]&gt;"), std::string::npos) << xml;
  EXPECT_NE(xml.find("time=\"0\""), std::string::npos) << xml;
}

TEST_F(ReportFileTest, NamesAFileThatCannotBeWritten) {
  try {
    WriteJUnit("/nowhere/junit.xml", {}, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "/nowhere/junit.xml: cannot be written");
  }
}

}  // namespace
}  // namespace moe
