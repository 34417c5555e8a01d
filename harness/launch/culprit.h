// Which rank is to blame when several failed, and what is said of it. Knows ranks by how they ended
// and what they wrote; starts and watches none.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

// What a rank writes to standard error before the text of the exception that ends it.
inline constexpr std::string_view kRankFailed = "rank failed: ";

// Why a rank ended, in its own words: the exception that ended it, from its beginning (a stack
// trace may follow), else the end of what it wrote to standard error, or to standard output where
// that is blank. At most 2000 bytes, "[...]" in the place of more; empty where it wrote nothing.
std::string LastWords(std::string_view output, std::string_view error_output);

struct FailedRank {
  std::int64_t rank = 0;
  int status = 0;     // as of waitpid
  std::string words;  // LastWords()
};

// The rank among `failures` (in order of time, not empty) whose failure is likeliest its own: a
// crash, then words of its own, then a silent exit, and last those who tell of a peer that is gone,
// or died as a program does that does not catch such a loss. The first to fail among equals.
const FailedRank& Culprit(const std::vector<FailedRank>& failures);

// "ended with exit status 1 (ranks 0, 2 failed as well); its last words: ...", said of the culprit.
std::string DescribeFailure(const std::vector<FailedRank>& failures);

// "rank 3", "ranks 0-2, 5"; `ranks` ascend.
std::string RankList(const std::vector<std::int64_t>& ranks);

}  // namespace moe
