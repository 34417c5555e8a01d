#include "harness/inputs/exactness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "harness/base/error.h"

namespace moe {
namespace {

// Every element of an input tensor is the same.
class ConstantProblem : public TensorSource {
 public:
  void Read(const std::string& name, const Slice& /*slice*/, std::span<double> out) const override {
    std::fill(out.begin(), out.end(), values.at(name));
  }
  std::map<std::string, double> values = {
      {"x_TD", 1.0},         {"d_y_TD", 1.0},       {"gate_ED", 0.0},      {"w1_EFD", 1024.0},
      {"w3_EFD", 1.0},       {"w2_EDF", 1.0},       {"gate_bias_E", 0.0},  {"shared_w1_FD", 1024.0},
      {"shared_w3_FD", 1.0}, {"shared_w2_DF", 1.0}, {"shared_gate_D", 0.0}};
};

// One number in place of every matrix; each token adds one term to every gradient of a weight.
Model Smallest(std::int64_t tokens) {
  return {.tokens = tokens,
          .d_model = 1,
          .d_expert = 1,
          .experts = 1,
          .top_k = 1,
          .score_function = ScoreFunction::kSigmoid};
}

std::string ComplaintOf(const Model& model, const ConstantProblem& problem) {
  try {
    RequireExactness(model, problem, "case");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Exactness, CountsTo256AndNoFurther) {
  EXPECT_EQ(ComplaintOf(Smallest(256), {}), "");
  EXPECT_EQ(ComplaintOf(Smallest(257), {}),
            "case: the fill is dyadic, and terms of d_w1_EFD add up to 1.28e+02 in steps of "
            "5.00e-01: 257 steps, of which bfloat16 counts 256 exactly; use fewer tokens for each "
            "expert, or a smaller d_expert or d_shared");
}

// Of opposite signs the terms cancel in the whole, but not in every part of it.
TEST(Exactness, CountsTermsThatCancel) {
  class Alternating : public ConstantProblem {
   public:
    void Read(const std::string& name, const Slice& slice, std::span<double> out) const override {
      ConstantProblem::Read(name, slice, out);
      for (std::size_t i = 0; name == "d_y_TD" && i < out.size(); i += 2) {
        out[i] = -out[i];
      }
    }
  };
  EXPECT_EQ(ComplaintOf(Smallest(256), Alternating()), "");
  EXPECT_NE(ComplaintOf(Smallest(258), Alternating()).find("258 steps"), std::string::npos);
}

TEST(Exactness, CountsInTheSmallestStepOfTheTerms) {
  ConstantProblem problem;
  problem.values["w3_EFD"] = 1.5;  // two bits
  EXPECT_NE(ComplaintOf(Smallest(86), problem).find("258 steps"), std::string::npos);
  EXPECT_EQ(ComplaintOf(Smallest(85), problem), "");
}

TEST(Exactness, CountsTheTermsOfAllPathsToTheTokens) {
  Model model = Smallest(1);
  model.d_expert = 64;  // each hidden unit gives d_x a term through w1 and one through w3
  EXPECT_EQ(ComplaintOf(model, {}), "");
  model.d_expert = 128;
  EXPECT_EQ(ComplaintOf(model, {}), "");
  model.d_expert = 129;
  EXPECT_NE(ComplaintOf(model, {}).find("terms of d_x_TD"), std::string::npos);
  model.d_expert = 64;
  model.d_shared = 64;  // whose weight is 1, not 1/2: twice as many steps
  EXPECT_NE(ComplaintOf(model, {}).find("terms of d_x_TD"), std::string::npos);
}

TEST(Exactness, WantsSiluWhereItIsExact) {
  ConstantProblem problem;
  problem.values["w1_EFD"] = -1024.0;
  EXPECT_EQ(ComplaintOf(Smallest(1), problem), "");
  problem.values["w1_EFD"] = 0.0;
  EXPECT_EQ(ComplaintOf(Smallest(1), problem), "");
  problem.values["w1_EFD"] = 512.0;
  EXPECT_EQ(ComplaintOf(Smallest(1), problem),
            "case: the fill is dyadic, and SiLU of 512 rounds; it must get 0 or at least 1024 in "
            "magnitude");
}

TEST(Exactness, WantsTheSharedGateAtZero) {
  Model model = Smallest(1);
  model.d_shared = 1;
  model.shared_gate = true;
  ConstantProblem problem;
  EXPECT_EQ(ComplaintOf(model, problem), "");
  problem.values["shared_gate_D"] = 1.0;
  EXPECT_EQ(ComplaintOf(model, problem),
            "case: the fill is dyadic, and x . shared_gate_D must be 0 for every token");
}

}  // namespace
}  // namespace moe
