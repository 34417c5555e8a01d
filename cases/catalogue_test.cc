// The shipped cases give the mutation campaign enough to plant.

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "harness/campaign/fault_catalogue.h"
#include "harness/spec/case_spec.h"

namespace moe {
namespace {

struct Planted {
  std::set<std::string> faults;   // by text
  std::set<std::string> layouts;  // by text
  std::set<std::string> unequal;  // layouts whose axes larger than 1 differ in size
};

bool HasUnequalAxes(const Layout& layout) {
  std::set<std::int64_t> sizes;
  for (const std::int64_t size :
       {layout.dp_replicate, layout.dp_shard, layout.cp, layout.tp, layout.ep}) {
    if (size > 1) {
      sizes.insert(size);
    }
  }
  return sizes.size() > 1;
}

TEST(Catalogue, PlantsTwoHundredDistinctFaultsUnderThirtyLayouts) {
  Planted all;
  for (const CaseSpec& spec : ReadCases(MOEGATE_SOURCE_DIR "/cases")) {
    for (const Layout& layout : spec.layouts) {
      all.layouts.insert(ToText(layout));
      if (HasUnequalAxes(layout)) {
        all.unequal.insert(ToText(layout));
      }
      for (const PlantedFault& planted : CatalogueOf(StepGraph(spec.model, layout, spec.program))) {
        all.faults.insert(ToText(planted.fault));
      }
    }
  }
  EXPECT_GE(all.faults.size(), 200U);
  EXPECT_GE(all.layouts.size(), 30U);
  EXPECT_GE(all.unequal.size(), 5U);
}

}  // namespace
}  // namespace moe
