#include "harness/measure/golden.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>

#include "harness/base/error.h"

namespace moe {
namespace {

// A case file and its golden file, in a folder that goes away with the test.
class GoldenTest : public testing::Test {
 protected:
  GoldenTest() {
    std::filesystem::create_directories(folder_ + "/golden/issues");
    spec_.name = "issues/a";
    spec_.path = folder_ + "/a.json";
    spec_.model = {.tokens = 8, .d_model = 4, .d_expert = 6, .experts = 4, .top_k = 2};
    spec_.numerics.dtypes = {Dtype::kFloat32};
    std::ofstream(spec_.path) << "a case";
    golden_.case_sha256 = Sha256OfFile(spec_.path);
    golden_.smallest_logit_margin = 0.0383;
    for (const TensorInfo& result : ResultsOf(spec_.model)) {
      golden_.reference[result.name] = {.norm = 20.5, .digest = -44.25};
      golden_.tolerances[Dtype::kFloat32][result.name] = {.tolerance = 1.0,
                                                          .bound = 0.5,
                                                          .worst_case = 7.5,
                                                          .detectable_scale = 0.25,
                                                          .noise_floor = 0.25,
                                                          .fault_floor = 4.0,
                                                          .why = "a bound"};
    }
  }
  ~GoldenTest() override { std::filesystem::remove_all(folder_); }

  GoldenTolerance& Gate() { return golden_.tolerances[Dtype::kFloat32]["d_gate_ED"]; }

  std::string Write(const Json& json) const {
    const std::string path = GoldenPath(folder_ + "/golden", spec_);
    WriteJsonFile(path, json);
    return path;
  }

  // What ReadGolden says, behind the path of the golden file.
  std::string Complaint() const {
    try {
      ReadGolden(folder_ + "/golden", spec_);
    } catch (const Error& error) {
      const std::string path = GoldenPath(folder_ + "/golden", spec_);
      EXPECT_TRUE(std::string(error.what()).starts_with(path)) << error.what();
      return std::string(error.what()).substr(path.size());
    }
    return "";
  }
  std::string ComplaintOf(const Json& json) const {
    Write(json);
    return Complaint();
  }

  const std::string folder_ = testing::TempDir() + "/golden_test_" + std::to_string(::getpid());
  CaseSpec spec_;
  Golden golden_;
};

TEST_F(GoldenTest, ReadsWhatItWrote) {
  Gate().fault_floor.reset();
  const Json json = ToJson(golden_);
  Write(json);
  const Golden read = ReadGolden(folder_ + "/golden", spec_);
  EXPECT_EQ(ToJson(read).dump(), json.dump());
  const auto& tolerances = read.tolerances.at(Dtype::kFloat32);
  EXPECT_EQ(tolerances.at("d_gate_ED").fault_floor, std::nullopt);
  EXPECT_EQ(tolerances.at("y_TD").fault_floor, 4.0);
  EXPECT_EQ(tolerances.at("y_TD").why, "a bound");
  EXPECT_EQ(tolerances.at("y_TD").worst_case, 7.5);
  EXPECT_EQ(tolerances.at("y_TD").detectable_scale, 0.25);
  EXPECT_EQ(read.reference.at("d_x_TD").digest, -44.25);
}

TEST_F(GoldenTest, SaysThatTheFileIsMissing) {
  EXPECT_EQ(Complaint(),
            ": is missing, so nothing says what issues/a may be off by; run tools/regen_golden.sh "
            "issues/a");
}

TEST_F(GoldenTest, SaysThatTheCaseHasChangedSince) {
  Write(ToJson(golden_));
  std::ofstream(spec_.path, std::ios::app) << "!";
  EXPECT_EQ(Complaint(), ": is stale: " + spec_.path +
                             " has changed since it was made; run tools/regen_golden.sh issues/a");
}

TEST_F(GoldenTest, KeepsATolerancesDistanceFromTheNoiseFloor) {
  EXPECT_EQ(ComplaintOf(ToJson(golden_)), "");  // exactly 4 times above
  Gate().tolerance = 0.99;
  EXPECT_EQ(
      ComplaintOf(ToJson(golden_)),
      "#/tolerances/float32/d_gate_ED: tolerance 9.90e-01 is not 4 times above the noise floor "
      "2.50e-01");
}

TEST_F(GoldenTest, KeepsATolerancesDistanceFromTheFaultFloor) {
  Gate().noise_floor = 0.0;
  EXPECT_EQ(ComplaintOf(ToJson(golden_)), "");  // exactly 4 times below
  Gate().tolerance = 1.1;
  EXPECT_EQ(
      ComplaintOf(ToJson(golden_)),
      "#/tolerances/float32/d_gate_ED: tolerance 1.10e+00 is not 4 times below the fault floor "
      "4.00e+00");
}

TEST_F(GoldenTest, RefusesARatioThatDoesNotFollow) {
  Json json = ToJson(golden_);
  Json& gate = json["tolerances"]["float32"]["d_gate_ED"];
  EXPECT_EQ(gate["noise_to_bound"], 0.5);
  EXPECT_EQ(gate["fault_to_tolerance"], 4.0);
  gate["noise_to_bound"] = 0.4;
  EXPECT_EQ(
      ComplaintOf(json),
      "#/tolerances/float32/d_gate_ED/noise_to_bound: is 0.4; the numbers beside it give 0.5");
}

// Of the dyadic fill: clean runs round nowhere, and any fault at all is clear of that.
TEST_F(GoldenTest, AllowsNothingWhereNothingRounds) {
  Gate() = {.fault_floor = 1e-30, .why = "exact"};
  EXPECT_EQ(ComplaintOf(ToJson(golden_)), "");
  Gate().noise_floor = 1e-30;
  EXPECT_EQ(ComplaintOf(ToJson(golden_)),
            "#/tolerances/float32/d_gate_ED: tolerance 0.00e+00 is not 4 times above the noise "
            "floor 1.00e-30");
  Gate() = {.fault_floor = 0.0, .why = "exact"};
  EXPECT_EQ(ComplaintOf(ToJson(golden_)),
            "#/tolerances/float32/d_gate_ED: fault floor is 0: a planted fault changes nothing, so "
            "no tolerance tells it");
}

TEST_F(GoldenTest, SaysWhichTensorItLacks) {
  golden_.tolerances[Dtype::kFloat32].erase("d_w2_EDF");
  EXPECT_EQ(ComplaintOf(ToJson(golden_)),
            ": lacks d_w2_EDF in float32; run tools/regen_golden.sh issues/a");
}

TEST_F(GoldenTest, SaysWhichDtypeItLacks) {
  spec_.numerics.dtypes = {Dtype::kFloat32, Dtype::kBfloat16};
  EXPECT_EQ(ComplaintOf(ToJson(golden_)),
            ": lacks y_TD in bfloat16; run tools/regen_golden.sh issues/a");
}

TEST_F(GoldenTest, SaysWhichReferenceItLacks) {
  golden_.reference.erase("d_x_TD");
  EXPECT_EQ(ComplaintOf(ToJson(golden_)),
            ": lacks d_x_TD in float32; run tools/regen_golden.sh issues/a");
}

TEST_F(GoldenTest, RefusesWrongValuesAtTheirPlace) {
  const auto complaint_after = [&](const std::function<void(Json&)>& change) {
    Json json = ToJson(golden_);
    change(json);
    return ComplaintOf(json);
  };
  EXPECT_EQ(complaint_after([](Json& json) { json["schema"] = 2; }),
            "#/schema: is 2; this moegate reads schema 1");
  EXPECT_EQ(complaint_after([](Json& json) { json["reference"]["y_TD"]["norm"] = -1; }),
            "#/reference/y_TD/norm: is negative");
  EXPECT_EQ(complaint_after([](Json& json) { json["tolerances"]["fp8"] = Json::object(); }),
            "#/tolerances/fp8: \"fp8\" is no dtype of a case; use float64, float32 or bfloat16");
  EXPECT_EQ(complaint_after([](Json& json) { json["tolerances"]["float32"]["y_TD"].erase("why"); }),
            "#/tolerances/float32/y_TD: lacks the key \"why\"");
}

TEST_F(GoldenTest, HashesBytesAsSha256Does) {
  std::ofstream(spec_.path, std::ios::trunc) << "abc";  // FIPS 180-2, appendix B.1
  EXPECT_EQ(Sha256OfFile(spec_.path),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(RoundedUp, GoesUpToTwoDigitsAndStaysThere) {
  EXPECT_EQ(RoundedUp(1.201e-6), 1.3e-6);
  EXPECT_EQ(RoundedUp(1.2e-6), 1.2e-6);
  EXPECT_EQ(RoundedUp(9.91), 10.0);
  EXPECT_EQ(RoundedUp(0.0), 0.0);
  // The last bits of a sum in another order do not show.
  EXPECT_EQ(RoundedUp(1.2e-6 * (1.0 + 1e-12)), 1.2e-6);
  EXPECT_EQ(RoundedUp(1.2e-6 * (1.0 - 1e-12)), 1.2e-6);
}

TEST(NoiseStep, LeavesRoomForAnotherMachine) {
  EXPECT_EQ(NoiseStep(0.333, 1.0, std::nullopt), 0.5);
  EXPECT_EQ(NoiseStep(0.334, 1.0, std::nullopt), 0.707);
  EXPECT_EQ(NoiseStep(0.9, 1.0, std::nullopt), 1.0);
  EXPECT_EQ(NoiseStep(0.0, 0.0, std::nullopt), 0.0);
}

TEST(NoiseStep, StaysUntilTheNoiseIsOutsideItOrFarBelow) {
  const GoldenTolerance before{.bound = 2.0, .noise_floor = 1.0};  // a half
  EXPECT_EQ(NoiseStep(0.62, 1.0, before), 0.5);
  EXPECT_EQ(NoiseStep(0.63, 1.0, before), 1.0);
  EXPECT_EQ(NoiseStep(0.126, 1.0, before), 0.5);
  EXPECT_EQ(NoiseStep(0.117, 1.0, before), 0.177);
}

TEST(FaultStep, DecidesHalvesByMoreThanTheLastBit) {
  EXPECT_EQ(FaultStep(0.875), 0.88);
  EXPECT_EQ(FaultStep(0.875 - 1e-15), 0.88);
  EXPECT_EQ(FaultStep(0.8749), 0.87);
  EXPECT_EQ(FaultStep(2.0 / 3.0), 0.67);
}

TEST(ReferenceSums, OfSlicesAreThoseOfTheWhole) {
  const std::vector<double> elements = {1.0, -2.0, 4.0, 8.0, 16.0, -32.0};
  ReferenceSums whole;
  whole.Add("d_w1_EFD", elements, 0);
  ReferenceSums slices;
  slices.Add("d_w1_EFD", std::span(elements).subspan(2), 2);
  slices.Add("d_w1_EFD", std::span(elements).first(2), 0);
  EXPECT_EQ(slices.ByTensor().at("d_w1_EFD").norm, whole.ByTensor().at("d_w1_EFD").norm);
  EXPECT_EQ(slices.ByTensor().at("d_w1_EFD").digest, whole.ByTensor().at("d_w1_EFD").digest);
}

// What CheckProblem says of a reference of two elements and a margin, against a file that was made
// of {3, 4} and a margin of 0.0383.
std::string ComplaintAbout(const std::vector<double>& elements, double margin) {
  ReferenceSums then;
  then.Add("y_TD", std::vector<double>{3.0, 4.0}, 0);
  ReferenceSums now;
  now.Add("y_TD", elements, 0);
  try {
    CheckProblem({.smallest_logit_margin = 0.0383, .reference = then.ByTensor()}, now, margin,
                 "dump");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CheckProblem, AcceptsWhatAgreesToTheDigitsOfTheFile) {
  EXPECT_EQ(ComplaintAbout({3.00002, 4.00002}, 0.03834), "");
}

TEST(CheckProblem, RefusesAnotherNorm) {
  EXPECT_EQ(ComplaintAbout({3.0, 4.001}, 0.0383),
            "dump: is not the problem of its golden file: the reference's y_TD has norm "
            "5.000800e+00 here and 5.000000e+00 there; other inputs, or a golden file to "
            "regenerate");
}

TEST(CheckProblem, RefusesTheSameElementsInAnotherOrder) {
  EXPECT_EQ(ComplaintAbout({4.0, 3.0}, 0.0383),
            "dump: is not the problem of its golden file: the reference's y_TD has the same norm "
            "and, with signs, the sum 1.000000e+00 here and -1.000000e+00 there; other inputs, or "
            "a golden file to regenerate");
}

TEST(CheckProblem, RefusesAnotherMargin) {
  EXPECT_EQ(ComplaintAbout({3.0, 4.0}, 0.0389),
            "dump: is not the problem of its golden file: the least decided choice of experts has "
            "the margin 3.890000e-02 here and 3.830000e-02 there; other inputs, or a golden file "
            "to regenerate");
}

TEST(CheckProblem, RefusesADecisionWhereEveryExpertIsChosen) {
  EXPECT_NE(ComplaintAbout({3.0, 4.0}, INFINITY), "");
}

TEST(CheckProblem, RefusesATensorThatTheReferenceDoesNotGive) {
  ReferenceSums then;
  then.Add("y_TD", std::vector<double>{3.0, 4.0}, 0);
  EXPECT_THROW(CheckProblem({.reference = then.ByTensor()}, {}, 0.0, "dump"), Error);
}

}  // namespace
}  // namespace moe
