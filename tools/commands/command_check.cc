// moegate check: judges dump folders that somebody else made.

#include <fmt/format.h>

#include <new>

#include "harness/base/error.h"
#include "tools/commands/commands.h"
#include "tools/commands/judge_dump.h"

namespace moe {

int Check(const CommonOptions& common, const std::vector<std::string>& dumps,
          const OutputOptions& output) {
  std::vector<Result> results;
  for (const std::string& folder : dumps) {
    try {
      results.push_back(JudgeDump(common, folder));
    } catch (const Error& error) {
      results.push_back({.id = folder, .verdict = Verdict::kError, .text = error.what()});
    } catch (const std::bad_alloc&) {
      results.push_back({.id = folder,
                         .verdict = Verdict::kError,
                         .text = folder + ": needs more memory than there is"});
    }
    if (!output.json) {
      fmt::print("{}", ToText(results.back()));
    }
  }
  return Finish(results, static_cast<std::int64_t>(dumps.size()), output);
}

}  // namespace moe
