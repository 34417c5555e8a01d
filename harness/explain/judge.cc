#include "harness/explain/judge.h"

namespace moe {

Judgement Judge(const Dump& dump, const TensorSource& problem, const JudgeOptions& options) {
  const Measured measured = Measure(dump, problem,
                                    {.golden = options.golden,
                                     .is_foreign = options.graph == nullptr,
                                     .idle_experts = options.idle_experts,
                                     .worst_case = options.worst_case,
                                     .exact = options.exact});
  return Decide(measured, {.graph = options.graph, .calls = options.calls});
}

}  // namespace moe
