// What words of a command line select, and what they are told when they select nothing.

#include "tools/commands/selection.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "harness/base/error.h"

namespace moe {
namespace {

// Four cases: a/one and a/two on dp2, tp2 and dp2.tp2, b/one on dp2 alone, b/three with 6 experts
// on ep3.
class SelectionTest : public testing::Test {
 protected:
  SelectionTest() {
    Write("a/one", 4, R"(["dp2", "tp2", "dp2.tp2"])");
    Write("a/two", 4, R"(["dp2", "tp2", "dp2.tp2"])");
    Write("b/one", 4, R"(["dp2"])");
    Write("b/three", 6, R"(["dp3.ep3"])");
  }
  ~SelectionTest() override { std::filesystem::remove_all(folder_); }

  // "a/one@dp2 a/one@tp2": what is selected, in its order.
  std::string Selected(const std::vector<std::string>& texts, const std::string& layout = "") {
    std::vector<std::string> ids;
    for (const CaseSpec& spec : Select(folder_, texts, layout)) {
      for (const Layout& one : spec.layouts) {
        ids.push_back(CaseId(spec, one));
      }
    }
    return fmt::format("{}", fmt::join(ids, " "));
  }

  // What Select says against these words; "" when it says nothing.
  std::string Complaint(const std::vector<std::string>& texts, const std::string& layout = "") {
    try {
      Select(folder_, texts, layout);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  const std::string folder_ =
      std::filesystem::temp_directory_path() / fmt::format("selection_test.{}", ::getpid());

 private:
  void Write(const std::string& name, int experts, const std::string& layouts) const {
    const std::filesystem::path path = folder_ + "/" + name + ".json";
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << fmt::format(
        R"({{"schema": 1, "why": "a test", "source": "a test",
             "model": {{"tokens": 24, "d_model": 8, "d_expert": 8, "experts": {}, "top_k": 2}},
             "numerics": {{"seed": 1}}, "layouts": {}}})",
        experts, layouts);
  }
};

TEST_F(SelectionTest, NoWordsMeanEveryCaseOnEachOfItsLayouts) {
  EXPECT_EQ(Selected({}),
            "a/one@dp2 a/one@tp2 a/one@dp2.tp2 a/two@dp2 a/two@tp2 a/two@dp2.tp2 b/one@dp2 "
            "b/three@dp3.ep3");
}

TEST_F(SelectionTest, ACaseMeansAllItsLayouts) {
  EXPECT_EQ(Selected({"b/three", "a/one"}), "b/three@dp3.ep3 a/one@dp2 a/one@tp2 a/one@dp2.tp2");
}

TEST_F(SelectionTest, ACaseOnALayoutMeansThatOne) {
  EXPECT_EQ(Selected({"a/one@tp2"}), "a/one@tp2");
}

TEST_F(SelectionTest, ALayoutMayBeOneThatTheCaseDoesNotList) {
  EXPECT_EQ(Selected({"b/one@dp2.tp2.ep4"}), "b/one@dp2.tp2.ep4.etp1");
}

TEST_F(SelectionTest, AGlobMeansTheCasesThatMatch) {
  EXPECT_EQ(Selected({"*/one"}), "a/one@dp2 a/one@tp2 a/one@dp2.tp2 b/one@dp2");
  EXPECT_EQ(Selected({"?/t[w]o"}), "a/two@dp2 a/two@tp2 a/two@dp2.tp2");
}

TEST_F(SelectionTest, AGlobOfLayoutsMeansThoseThatTheCaseLists) {
  EXPECT_EQ(Selected({"a/two@*tp2"}), "a/two@tp2 a/two@dp2.tp2");
}

TEST_F(SelectionTest, GlobsOnBothSidesLeaveOutCasesWithoutSuchALayout) {
  EXPECT_EQ(Selected({"*/one@tp*"}), "a/one@tp2");
}

TEST_F(SelectionTest, WhatIsMeantTwiceIsSelectedOnce) {
  EXPECT_EQ(Selected({"a/one@tp2", "b/one", "a/one@*tp2", "a/one@tp2"}),
            "a/one@tp2 a/one@dp2.tp2 b/one@dp2");
}

TEST_F(SelectionTest, ANameThatIsNoneIsToldTheNearest) {
  EXPECT_EQ(Complaint({"b/on"}),
            "\"b/on\": is no case in " + folder_ +
                "; the nearest is b/one, and there are a/one, a/two, b/one, b/three");
}

TEST_F(SelectionTest, AnEmptyWordIsNoCase) {
  EXPECT_TRUE(Complaint({""}).starts_with("\"\": is no case in ")) << Complaint({""});
}

TEST_F(SelectionTest, AGlobThatNothingMatchesIsRefused) {
  EXPECT_EQ(Complaint({"a/one", "c/*"}),
            "c/*: selects no case on any of its layouts; `moegate list` shows what there is");
}

TEST_F(SelectionTest, AGlobOfLayoutsThatTheCaseLacksIsRefused) {
  EXPECT_EQ(Complaint({"b/one@tp*"}),
            "b/one@tp*: selects no case on any of its layouts; `moegate list` shows what there is");
}

TEST_F(SelectionTest, ALayoutThatTheModelCannotRunUnderIsRefused) {
  EXPECT_EQ(Complaint({"a/one@dp3.ep3"}),
            "a/one@dp3.ep3: ep 3 does not divide experts 4; use 1, 2 or 4");
}

TEST_F(SelectionTest, AGlobOnALayoutSaysWhichCaseCannotRunUnderIt) {
  EXPECT_EQ(Complaint({"*@dp3.ep3"}),
            "*@dp3.ep3 on a/one: ep 3 does not divide experts 4; use 1, 2 or 4");
}

TEST_F(SelectionTest, AnAtWithoutALayoutIsRefused) {
  EXPECT_TRUE(Complaint({"a/one@"}).starts_with("a/one@: \"\" in layout \"\" is not a part"))
      << Complaint({"a/one@"});
}

TEST_F(SelectionTest, TheOptionStandsInForTheLayoutsOfEveryCase) {
  EXPECT_EQ(Selected({"a/*", "b/one"}, "cp2"), "a/one@cp2 a/two@cp2 b/one@cp2");
}

TEST_F(SelectionTest, TheOptionSaysWhichCaseCannotRunUnderIt) {
  EXPECT_EQ(Complaint({"b/three", "b/one"}, "dp3.ep3"),
            "b/one on --layout dp3.ep3: ep 3 does not divide experts 4; use 1, 2 or 4");
}

TEST_F(SelectionTest, TheOptionIsNoPattern) {
  EXPECT_TRUE(Complaint({"a/one"}, "tp*").starts_with("--layout: \"tp*\" in layout \"tp*\""))
      << Complaint({"a/one"}, "tp*");
}

TEST_F(SelectionTest, TheOptionAndAWordThatNamesALayoutContradictOneAnother) {
  EXPECT_EQ(Complaint({"a/one@tp2"}, "dp2"),
            "--layout: dp2 stands in for the layouts of the cases, and \"a/one@tp2\" names its "
            "own; leave out one of them");
}

TEST(StepDtype, IsNoneForNoText) {
  EXPECT_EQ(StepDtype(""), std::nullopt);
}

TEST(StepDtype, RefusesADtypeThatTheStepDoesNotRunIn) {
  try {
    StepDtype("int64");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "--dtype: \"int64\" is no dtype of the step; use float64, float32 or bfloat16");
  }
}

}  // namespace
}  // namespace moe
