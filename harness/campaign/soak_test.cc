#include "harness/campaign/soak.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(Soak, TellsAlarmsWithTheirReproLineAndSumsUp) {
  const SoakResult soak{.steps = 200,
                        .vacuous = 3,
                        .refused_seeds = 1,
                        .largest_ratio = {{"float32", {0.5, "y_TD of a/b@tp2"}}},
                        .alarms = {"d_gate_ED: missing sum over tp\n    repro  build/moegate run"},
                        .seconds = 2.0};
  EXPECT_EQ(
      ToText(soak),
      "ALARM  d_gate_ED: missing sum over tp\n    repro  build/moegate run\n"
      "float32: errors reach 0.50 times the expected one, of 4 allowed (y_TD of a/b@tp2)\n"
      "200 clean steps in 2.0 s (100 steps/s), 1 alarms, 0 errors; 3 vacuous, 1 seeds without "
      "usable inputs left out\n");
}

}  // namespace
}  // namespace moe
