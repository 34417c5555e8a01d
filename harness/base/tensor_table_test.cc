#include "harness/base/tensor_table.h"

#include <gtest/gtest.h>

#include <set>

#include "harness/base/error.h"
#include "harness/base/tensors.h"

namespace moe {
namespace {

const Model kLarge = {.tokens = 2,
                      .d_model = 3,
                      .d_expert = 5,
                      .experts = 7,
                      .top_k = 1,
                      .gate_bias = true,
                      .expert_bias = true,
                      .d_shared = 11,
                      .shared_gate = true};

TEST(TensorTable, NamesEveryTensorOnceAndEndsItInItsDimensions) {
  std::set<std::string_view> names;
  for (const TensorRow& row : TensorTable()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name << " stands twice";
    std::string suffix(row.dims);
    std::replace(suffix.begin(), suffix.end(), 'S', 'F');
    EXPECT_TRUE(row.name.ends_with("_" + suffix)) << row.name << " against " << row.dims;
  }
}

TEST(TensorTable, HasAGradientLikeItselfForEveryParameter) {
  for (const TensorRow& row : TensorTable()) {
    const TensorRow* gradient = GradientOf(row);
    EXPECT_EQ(gradient != nullptr, row.role == Role::kParameter || row.name == tensor::x_TD)
        << row.name;
    if (gradient != nullptr) {
      EXPECT_EQ(gradient->name, "d_" + std::string(row.name));
      EXPECT_EQ(gradient->dims, row.dims);
      EXPECT_EQ(gradient->mesh, row.mesh);
      EXPECT_EQ(gradient->is_in, row.is_in);
      EXPECT_EQ(gradient->IsOfParameter(), row.role == Role::kParameter);
    }
  }
}

TEST(TensorTable, GivesEveryResultAWayThatReachesIt) {
  for (const TensorRow& row : TensorTable()) {
    EXPECT_EQ(row.IsResult(), !row.paths.empty()) << row.name;
  }
}

TEST(TensorTable, GivesShapes) {
  EXPECT_EQ(ShapeOf("d_w1_EFD", kLarge), (Shape{7, 5, 3}));
  EXPECT_EQ(ShapeOf("shared_w2_DF", kLarge), (Shape{3, 11}));
  EXPECT_EQ(ShapeOf("topk_expert_TK", kLarge), (Shape{2, 1}));
  EXPECT_THROW(ShapeOf("w4_EFD", kLarge), Error);
}

TEST(TensorTable, ListsWhatAModelHasInTheOrderOfReports) {
  const auto names = [](const std::vector<TensorInfo>& tensors) {
    std::string list;
    for (const TensorInfo& tensor : tensors) {
      list += tensor.name + " ";
    }
    return list;
  };
  const Model plain = {.tokens = 2, .d_model = 3, .d_expert = 5, .experts = 7, .top_k = 1};
  EXPECT_EQ(names(InputsOf(plain)), "x_TD d_y_TD gate_ED w1_EFD w3_EFD w2_EDF ");
  EXPECT_EQ(names(ResultsOf(plain)), "y_TD d_x_TD d_gate_ED d_w1_EFD d_w3_EFD d_w2_EDF ");
  EXPECT_EQ(names(ResultsOf(kLarge)),
            "y_TD d_x_TD d_gate_ED d_w1_EFD d_w3_EFD d_w2_EDF d_gate_bias_E d_shared_w1_FD "
            "d_shared_w3_FD d_shared_w2_DF d_shared_gate_D ");
}

TEST(TensorTable, SaysOfAnUnknownNameWhichThereAreAndTheNearest) {
  const Model plain = {.tokens = 2, .d_model = 3, .d_expert = 5, .experts = 7, .top_k = 1};
  EXPECT_EQ(DescribeUnknown("d_gate_DE", plain),
            "\"d_gate_DE\" is not a tensor of this model; the nearest is d_gate_ED, and known are "
            "x_TD, d_y_TD, gate_ED, w1_EFD, w3_EFD, w2_EDF, y_TD, d_x_TD, d_gate_ED, d_w1_EFD, "
            "d_w3_EFD, d_w2_EDF, topk_expert_TK, tokens_per_expert_E");
}

}  // namespace
}  // namespace moe
