// Every case on every layout in every dtype, and every planted fault, as a GoogleTest test. The
// tests are registered from the case files: a new file appears here without touching C++.
//
//   build/case_test --gtest_filter='issues/torchtitan-2387@*'
//
// MOEGATE_BACKEND (threads, gloo, nccl) says what ranks are, MOEGATE_CASES and MOEGATE_GOLDEN where
// the files lie, MOEGATE_DTYPE keeps to one dtype.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cstdlib>
#include <map>
#include <memory>

#include "harness/run_case.h"

namespace moe {
namespace {

std::string EnvironmentOr(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

// What the tests of one case share; made when the first of them runs.
struct PreparedCase {
  explicit PreparedCase(const CaseSpec& spec, const std::string& golden_folder)
      : inputs(spec), golden(ReadGolden(golden_folder, spec)) {}
  InputGenerator inputs;
  Golden golden;
};

struct Suite {
  std::vector<CaseSpec> specs;
  RunOptions options;
  std::map<std::string, std::unique_ptr<PreparedCase>> prepared;

  PreparedCase& Prepare(const CaseSpec& spec) {
    auto& one = prepared[spec.name];
    if (!one) {
      one = std::make_unique<PreparedCase>(spec, options.golden_folder);
    }
    return *one;
  }
};

// One run: clean, with a fault that must be told, or with one that must change nothing.
struct Planned {
  const CaseSpec* spec = nullptr;
  Layout layout;
  Dtype dtype = Dtype::kFloat64;
  const MustCatch* must_catch = nullptr;
  const MustPass* must_pass = nullptr;
};

class CaseTest : public testing::Test {
 public:
  CaseTest(Suite& suite, const Planned& planned) : suite_(suite), planned_(planned) {}

  void TestBody() override {
    PreparedCase& prepared = suite_.Prepare(*planned_.spec);
    std::optional<Fault> fault;
    if (planned_.must_catch != nullptr) {
      fault = planned_.must_catch->fault;
    } else if (planned_.must_pass != nullptr) {
      fault = planned_.must_pass->fault;
    }
    const Result result =
        RunOnce(*planned_.spec, GraphOf(*planned_.spec, planned_.layout), planned_.dtype,
                prepared.inputs, fault, &prepared.golden, suite_.options);
    RecordProperty("verdict", std::string(ToText(result.verdict)));
    RecordProperty("headline", Headline(result));
    if (result.verdict == Verdict::kSkipped) {
      GTEST_SKIP() << result.text;
    }
    if (planned_.must_catch != nullptr) {
      EXPECT_TRUE(IsCaught(*planned_.must_catch, result)) << ToText(result);
    } else {
      EXPECT_EQ(result.verdict, Verdict::kPass) << ToText(result);
    }
  }

 private:
  Suite& suite_;
  Planned planned_;
};

void Register(Suite& suite, const Planned& planned) {
  std::string name(ToText(planned.dtype));
  if (planned.must_catch != nullptr) {
    name += "/tells " + ToText(planned.must_catch->fault);
    if (!planned.must_catch->tensor.empty()) {
      name += " on " + planned.must_catch->tensor;
    }
  } else if (planned.must_pass != nullptr) {
    name += "/stays green under " + ToText(planned.must_pass->fault);
  }
  testing::RegisterTest(CaseId(*planned.spec, planned.layout).c_str(), name.c_str(), nullptr,
                        nullptr, planned.spec->path.c_str(), 1,
                        [&suite, planned]() -> CaseTest* { return new CaseTest(suite, planned); });
}

void RegisterAll(Suite& suite) {
  const std::string only = EnvironmentOr("MOEGATE_DTYPE", "");
  for (const CaseSpec& spec : suite.specs) {
    for (const Dtype dtype : spec.numerics.dtypes) {
      if (!only.empty() && ToText(dtype) != only) {
        continue;
      }
      for (const Layout& layout : spec.layouts) {
        Register(suite, {&spec, layout, dtype});
      }
      for (const MustCatch& wanted : spec.must_catch) {
        Register(suite,
                 {.spec = &spec, .layout = wanted.on, .dtype = dtype, .must_catch = &wanted});
      }
      for (const MustPass& wanted : spec.must_pass) {
        Register(suite, {.spec = &spec, .layout = wanted.on, .dtype = dtype, .must_pass = &wanted});
      }
    }
  }
}

// In a filter GoogleTest takes the first '-' for the beginning of what to leave out. Case names
// have hyphens inside ("torchtitan-2387"), so one between two letters or digits becomes '?', which
// matches it.
std::string KeepHyphens(std::string filter) {
  for (std::size_t i = 1; i + 1 < filter.size(); ++i) {
    if (filter[i] == '-' && std::isalnum(static_cast<unsigned char>(filter[i - 1])) != 0 &&
        std::isalnum(static_cast<unsigned char>(filter[i + 1])) != 0) {
      filter[i] = '?';
    }
  }
  return filter;
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::GTEST_FLAG(filter) = moe::KeepHyphens(testing::GTEST_FLAG(filter));
  ::setenv("OMP_NUM_THREADS", "1", /*overwrite=*/0);
  try {
    moe::Suite suite{
        .specs = moe::ReadCases(moe::EnvironmentOr("MOEGATE_CASES", MOEGATE_SOURCE_DIR "/cases")),
        .options = {
            .backend = moe::EnvironmentOr("MOEGATE_BACKEND", "threads"),
            .golden_folder = moe::EnvironmentOr("MOEGATE_GOLDEN", MOEGATE_SOURCE_DIR "/golden")}};
    moe::RegisterAll(suite);
    const int status = RUN_ALL_TESTS();
    const testing::UnitTest& all = *testing::UnitTest::GetInstance();
    // Nothing run is nothing shown.
    if (status == 0 && !testing::GTEST_FLAG(list_tests) && all.test_to_run_count() == 0) {
      fmt::print(stderr, "no test matches --gtest_filter={}\n", testing::GTEST_FLAG(filter));
      return 1;
    }
    // A skip is not a pass; ctest reads 77 as one (SKIP_RETURN_CODE), and a failure stays a
    // failure.
    return status == 0 && all.skipped_test_count() > 0 ? 77 : status;
  } catch (const std::exception& error) {
    fmt::print(stderr, "ERROR  {}\n", error.what());
    return 2;
  }
}
