#include "harness/launch/culprit.h"

#include <fmt/core.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <csignal>
#include <cstring>

namespace moe {
namespace {

constexpr std::size_t kShownOutput = 2000;

std::string_view Trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) {
    return {};
  }
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

bool InsideUtf8Character(char c) {
  return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U;
}

// The reason comes first in an exception's text (a stack trace may follow) ...
std::string Beginning(std::string_view text) {
  std::size_t size = kShownOutput;
  if (text.size() <= size) {
    return std::string(text);
  }
  while (size > 0 && InsideUtf8Character(text[size])) {
    --size;
  }
  return std::string(text.substr(0, size)) + " [...]";
}

// ... and last in a log.
std::string End(std::string_view text) {
  if (text.size() <= kShownOutput) {
    return std::string(text);
  }
  std::size_t start = text.size() - kShownOutput;
  while (start < text.size() && InsideUtf8Character(text[start])) {
    ++start;
  }
  return "[...] " + std::string(text.substr(start));
}

// The text of the exception that ended a rank, where there was one.
std::string_view ExceptionText(std::string_view error_output) {
  std::size_t at = error_output.rfind(kRankFailed);
  while (at != std::string_view::npos && at > 0 && error_output[at - 1] != '\n') {
    at = error_output.rfind(kRankFailed, at - 1);
  }
  return at == std::string_view::npos ? std::string_view{} : Trimmed(error_output.substr(at));
}

// Words of a rank that only saw another one go.
bool IsAboutAPeer(std::string_view words) {
  std::string lower(words);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr std::array<std::string_view, 12> kSigns = {
      "connection closed", "connection reset", "connection refused", "connection was closed",
      "closed by peer",    "reset by peer",    "socket closed",      "broken pipe",
      "timed out",         "timeout",          "failed to recv",     "remote process exited"};
  return std::any_of(kSigns.begin(), kSigns.end(),
                     [&](std::string_view sign) { return lower.find(sign) != std::string::npos; });
}

// How sure it is that this failure is nobody else's fault; 0 is surest.
int Suspicion(const FailedRank& rank) {
  const bool peer = IsAboutAPeer(rank.words);
  if (WIFSIGNALED(rank.status)) {
    const int signal_number = WTERMSIG(rank.status);
    // Both are also how a program ends that does not catch the loss of its peer.
    const bool victim = signal_number == SIGPIPE || (signal_number == SIGABRT && peer);
    return victim ? 3 : 0;
  }
  if (peer) {
    return 3;
  }
  return rank.words.empty() ? 2 : 1;
}

std::string HowItEnded(const FailedRank& rank) {
  if (WIFSIGNALED(rank.status)) {
    const int signal_number = WTERMSIG(rank.status);
    return fmt::format("crashed with signal {} ({})", signal_number, strsignal(signal_number));
  }
  return fmt::format("ended with exit status {}", WEXITSTATUS(rank.status));
}

}  // namespace

std::string LastWords(std::string_view output, std::string_view error_output) {
  if (const std::string_view thrown = ExceptionText(error_output); !thrown.empty()) {
    return Beginning(thrown);
  }
  const std::string_view words = Trimmed(error_output);
  return End(words.empty() ? Trimmed(output) : words);
}

const FailedRank& Culprit(const std::vector<FailedRank>& failures) {
  return *std::min_element(
      failures.begin(), failures.end(),
      [](const FailedRank& a, const FailedRank& b) { return Suspicion(a) < Suspicion(b); });
}

std::string DescribeFailure(const std::vector<FailedRank>& failures) {
  const FailedRank& culprit = Culprit(failures);
  std::vector<std::int64_t> others;
  for (const FailedRank& rank : failures) {
    if (&rank != &culprit) {
      others.push_back(rank.rank);
    }
  }
  std::sort(others.begin(), others.end());
  return HowItEnded(culprit) +
         (others.empty() ? "" : fmt::format(" ({} failed as well)", RankList(others))) +
         (culprit.words.empty() ? " and left no words" : "; its last words: " + culprit.words);
}

std::string RankList(const std::vector<std::int64_t>& ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) {
      ++last;
    }
    text += text.empty() ? "" : ", ";
    text += last == i ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[last]);
    i = last + 1;
  }
  return (ranks.size() == 1 ? "rank " : "ranks ") + text;
}

}  // namespace moe
