#include "harness/base/text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "harness/explain/joint.h"
#include "harness/report/claims_text.h"
#include "harness/report/finding_text.h"
#include "harness/report/result.h"

namespace moe {
namespace {

// The gate is what drifts apart unnoticed, so it is named first; then by how far off a tensor is.
const Finding* WorstFinding(const Result& result) {
  const Finding* worst = nullptr;
  const auto order = [](const Finding& f) {
    const int gate_first = f.tensor == tensor::topk_expert_TK ? 0
                           : f.tensor == tensor::d_gate_ED    ? 1
                                                              : 2;
    const bool is_named =
        f.explanation.cause != Cause::kUnexplained && f.explanation.cause != Cause::kNone;
    // What is no number is as wrong as can be.
    return std::make_tuple(gate_first, is_named ? 0 : 1,
                           std::isnan(f.error) ? -INFINITY : -f.error);
  };
  for (const Finding& finding : result.judgement.findings) {
    if (finding.verdict == result.verdict && (worst == nullptr || order(finding) < order(*worst))) {
      worst = &finding;
    }
  }
  return worst;
}

// Whether one fault explains both.
bool SharesCause(const Finding& a, const Finding& b) {
  return a.explanation == b.explanation ||
         ShareAFault(a.tensor, a.explanation, b.tensor, b.explanation);
}

std::string Label(Verdict verdict) {
  std::string label(ToText(verdict));
  std::transform(label.begin(), label.end(), label.begin(), [](char c) { return std::toupper(c); });
  return label;
}

std::string RoomText(const Result& result) {
  const Finding* tightest = nullptr;
  for (const Finding& finding : result.judgement.findings) {
    if (finding.tolerance > 0.0 &&
        (tightest == nullptr ||
         finding.error / finding.tolerance > tightest->error / tightest->tolerance)) {
      tightest = &finding;
    }
  }
  if (tightest == nullptr) {
    return "";
  }
  return fmt::format("worst {} {:.1e} of {:.1e}", tightest->tensor, tightest->error,
                     tightest->tolerance);
}

std::string FineLine(const Result& result) {
  std::vector<std::string> parts;
  const Judgement& judgement = result.judgement;
  if (judgement.routing.compared &&
      std::all_of(judgement.findings.begin(), judgement.findings.end(), [](const Finding& f) {
        return f.tensor != tensor::topk_expert_TK || f.verdict == Verdict::kPass;
      })) {
    parts.push_back(fmt::format("routing identical ({} slots, margin {:.1e})", judgement.slots,
                                judgement.routing.smallest_margin));
  }
  for (const Finding& finding : judgement.findings) {
    if (finding.verdict == Verdict::kPass && finding.tolerance > 0.0) {
      parts.push_back(fmt::format("{} {:.1e}", finding.tensor, finding.error));
    }
  }
  return fmt::format("{}", fmt::join(parts, "  "));
}

std::string EvidenceText(const Finding& finding) {
  std::string text;
  for (const std::string& sentence : EvidenceOf(finding)) {
    text += fmt::format("  {}\n", sentence);
  }
  return text;
}

std::string PlantedText(const Result& result) {
  if (result.planted.empty()) {
    return "";
  }
  const auto right = std::count_if(result.planted.begin(), result.planted.end(),
                                   [](const PlantedOutcome& p) { return p.as_wanted; });
  return fmt::format("  faults told {}/{}", right, result.planted.size());
}

// What was taken on trust. A step that passes among many of a producer does not need it.
std::string TrustOf(const Result& result) {
  std::string text;
  const auto& foreign = result.judgement.foreign;
  if (foreign && (result.verdict != Verdict::kPass || result.backend.empty())) {
    const Manifest& manifest = foreign->manifest;
    if (!manifest.producer.empty()) {
      std::vector<std::string> versions;
      for (const auto& [name, version] : manifest.versions) {
        versions.push_back(fmt::format("{} {}", name, version));
      }
      text += fmt::format("  dump   of {}{}\n", manifest.producer,
                          versions.empty() ? "" : fmt::format(" ({})", fmt::join(versions, ", ")));
    }
    std::string_view label = "claims";
    for (const std::string& claim : DescribeClaims(manifest)) {
      text += fmt::format("  {:<6} {}\n", std::exchange(label, ""), claim);
    }
    if (foreign->has_coarser_casts) {
      text += fmt::format("  floor  {}\n", DescribeFloor(manifest, foreign->cast_effects));
    }
    if (const auto gaps = DescribeGaps(manifest); !gaps.empty()) {
      text += fmt::format("  gaps   {}\n", fmt::join(gaps, "; "));
    }
  }
  for (const std::string& note : NotesOf(result.judgement)) {
    text += fmt::format("  note   {}\n", note);
  }
  return text;
}

std::string StoryOf(const Result& result) {
  const std::string head =
      fmt::format("{:<7}  {} {}{}{}", Label(result.verdict), result.id, result.dtype,
                  result.options.empty() ? "" : " " + result.options,
                  result.fault ? fmt::format(" with '{}'", *result.fault) : "");
  if (result.verdict == Verdict::kPass || result.verdict == Verdict::kSkipped) {
    return fmt::format("{}   {}\n{}", head, Headline(result), TrustOf(result));
  }
  std::string text = fmt::format("{}   {}\n", head, Headline(result));
  if (result.verdict == Verdict::kError) {
    return text + (result.repro.empty() ? "" : fmt::format("  repro  {}\n", result.repro));
  }
  text += '\n';
  const Finding* worst = WorstFinding(result);
  if (worst != nullptr) {
    text += EvidenceText(*worst);
  }
  for (const Finding& finding : result.judgement.findings) {
    if (&finding != worst && finding.verdict != Verdict::kPass) {
      const bool is_told = worst != nullptr && SharesCause(finding, *worst);
      text += fmt::format("\n  {}: {}\n{}", finding.tensor, TextOf(finding),
                          is_told ? "" : EvidenceText(finding));
    }
  }
  for (const PlantedOutcome& planted : result.planted) {
    if (!planted.as_wanted) {
      text += fmt::format("  fault  '{}': {}\n", planted.fault, planted.said);
    }
  }
  if (const std::string fine = FineLine(result); !fine.empty()) {
    text += fmt::format("  fine   {}\n", fine);
  }
  text += TrustOf(result);
  text += fmt::format("\n  repro  {}\n\n", result.repro);
  return text;
}

}  // namespace

std::string Headline(const Result& result) {
  if (result.verdict == Verdict::kPass) {
    return RoomText(result) + PlantedText(result);
  }
  if (const Finding* finding = WorstFinding(result)) {
    const std::string text = TextOf(*finding);
    std::string headline =
        text.starts_with(finding->tensor) ? text : fmt::format("{}: {}", finding->tensor, text);
    // A cause that several tensors share is said once.
    std::vector<std::string> others;
    std::vector<std::string> different;
    for (const Finding& other : result.judgement.findings) {
      if (&other != finding && other.verdict == finding->verdict) {
        (SharesCause(other, *finding) ? others : different).push_back(other.tensor);
      }
    }
    if (!others.empty()) {
      headline += fmt::format(" (also {})", fmt::join(others, ", "));
    }
    if (!different.empty()) {
      headline += fmt::format("; for other reasons {}", fmt::join(different, ", "));
    }
    return headline;
  }
  for (const PlantedOutcome& planted : result.planted) {
    if (!planted.as_wanted) {
      return fmt::format("planted '{}' was told wrong: {}", planted.fault, planted.said);
    }
  }
  return result.text;
}

std::string ToText(const Result& result) {
  // Folders and dumps of strangers have their say in it, and it ends on a terminal.
  return Printable(StoryOf(result), Newlines::kKeep);
}

std::string ToText(const Summary& s) {
  const bool good = ExitStatus(s) == 0;
  return fmt::format("{} listed: {} passed, {} failed, {} vacuous, {} skipped, {} error{}: gate {}",
                     s.listed, s.passed, s.failed, s.vacuous, s.skipped, s.error,
                     s.planted == 0 ? ""
                                    : fmt::format("; planted faults told right {}/{}",
                                                  s.planted_as_wanted, s.planted),
                     good ? "PASSED" : "FAILED");
}

Summary Summarize(const std::vector<Result>& results, std::int64_t listed) {
  Summary summary{.listed = listed};
  for (const Result& result : results) {
    switch (result.verdict) {
      case Verdict::kPass:
        ++summary.passed;
        break;
      case Verdict::kFail:
        ++summary.failed;
        break;
      case Verdict::kVacuous:
        ++summary.vacuous;
        break;
      case Verdict::kSkipped:
        ++summary.skipped;
        break;
      case Verdict::kError:
        ++summary.error;
        break;
    }
    for (const PlantedOutcome& planted : result.planted) {
      ++summary.planted;
      summary.planted_as_wanted += planted.as_wanted ? 1 : 0;
    }
  }
  return summary;
}

int ExitStatus(const Summary& summary) {
  if (summary.error > 0) {
    return 2;
  }
  // Nothing listed is nothing shown.
  return summary.listed > 0 && summary.passed == summary.listed ? 0 : 1;
}

}  // namespace moe
