#include "harness/campaign/campaign_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <set>

namespace moe {
namespace {

// Of each kind of failure; --json has all.
constexpr std::size_t kMostShown = 20;

using Key = std::function<std::string(const Mutant&)>;

Tally TallyOf(const std::vector<Mutant>& mutants) {
  Tally tally;
  for (const Mutant& mutant : mutants) {
    ++tally.of[mutant.outcome];
  }
  return tally;
}

// "FC2" before "FC10".
struct ByLengthThenText {
  bool operator()(const std::string& a, const std::string& b) const {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  }
};
using Tallies = std::map<std::string, Tally, ByLengthThenText>;

Tallies TalliesBy(const std::vector<Mutant>& mutants, const Key& key) {
  Tallies tallies;
  for (const Mutant& mutant : mutants) {
    ++tallies[key(mutant)].of[mutant.outcome];
  }
  return tallies;
}

std::size_t DistinctOf(const std::vector<Mutant>& mutants, const Key& key) {
  std::set<std::string> distinct;
  for (const Mutant& mutant : mutants) {
    distinct.insert(key(mutant));
  }
  return distinct.size();
}

std::string RowText(const std::string& name, const Tally& tally) {
  std::string text = fmt::format("{:<10}{:>8}{:>8}", name, tally.Planted(), tally.Killed());
  for (const Outcome outcome : kOutcomes) {
    text += fmt::format("{:>12}", tally.Of(outcome));
  }
  return text + "\n";
}

std::string HeadText(const std::string& name) {
  std::string text = fmt::format("{:<10}{:>8}{:>8}", name, "planted", "killed");
  for (const Outcome outcome : kOutcomes) {
    text += fmt::format("{:>12}", ToText(outcome));
  }
  return text + "\n";
}

std::string TableText(const std::string& name, const Tallies& tallies) {
  std::string text = HeadText(name);
  for (const auto& [key, tally] : tallies) {
    text += RowText(key, tally);
  }
  return text;
}

std::string SaidText(const Mutant& mutant) {
  std::string text = mutant.why;
  for (const std::string& said : mutant.said) {
    text += (text.empty() ? "" : "; ") + said;
  }
  return text;
}

std::string DetailText(const Campaign& campaign, Outcome outcome, const std::string& title) {
  std::string text;
  std::size_t count = 0;
  for (const Mutant& mutant : campaign.mutants) {
    if (mutant.outcome == outcome && ++count <= kMostShown) {
      text += fmt::format("  {} {} '{}': {}\n    repro  {}\n", mutant.id, mutant.dtype,
                          mutant.fault, SaidText(mutant), mutant.repro);
    }
  }
  if (count > kMostShown) {
    text += fmt::format("  and {} more; --json lists all\n", count - kMostShown);
  }
  return count == 0 ? "" : fmt::format("\n{} ({})\n{}", title, count, text);
}

// One line for each fault that rounding hides, however many layouts it was planted under.
std::string UnseenText(const Campaign& campaign) {
  struct Hidden {
    std::int64_t times = 0;
    std::string example;
  };
  std::map<std::string, Hidden> hidden;
  std::int64_t count = 0;
  for (const Mutant& mutant : campaign.mutants) {
    if (mutant.outcome == Outcome::kUnseen) {
      ++count;
      Hidden& one = hidden[mutant.fault];
      if (++one.times == 1) {
        one.example = fmt::format("{}: {}", mutant.id, mutant.why);
      }
    }
  }
  if (count == 0) {
    return "";
  }
  std::string text = fmt::format(
      "\nnot seen in bfloat16, since the effect is within what rounding allows ({})\n", count);
  for (const auto& [fault, one] : hidden) {
    text += fmt::format("  '{}' {} times, as on {}\n", fault, one.times, one.example);
  }
  return text;
}

std::string SummaryText(const Campaign& campaign) {
  const Tally tally = TallyOf(campaign.mutants);
  const std::int64_t visible = tally.Planted() - tally.Of(Outcome::kEquivalent);
  const std::string how =
      campaign.full
          ? "each in every dtype and with every seed"
          : fmt::format(
                "of {} on these layouts, each in one of the dtypes and seeds in turn; --full "
                "plants all in all",
                campaign.planned);
  return fmt::format(
      "{} planted ({}), {} distinct faults on {} cases and layouts; {} of {} not equivalent ones "
      "killed; {:.2f} % of those with a name named right, {} ambiguous, {} named wrong, {} "
      "unexplained; {} clean steps, {} alarms; {:.0f} s: campaign {}\n",
      tally.Planted(), how, DistinctOf(campaign.mutants, [](const Mutant& m) { return m.fault; }),
      DistinctOf(campaign.mutants, [](const Mutant& m) { return m.id; }), tally.Killed(), visible,
      100.0 * tally.NamedRightShare(), tally.Of(Outcome::kAmbiguous),
      tally.Of(Outcome::kNamedWrong), tally.Of(Outcome::kUnexplained), campaign.clean_steps,
      campaign.unclean.size(), campaign.seconds, Holds(campaign) ? "PASSED" : "FAILED");
}

Json TallyJson(const Tally& tally) {
  Json json;
  json["planted"] = tally.Planted();
  json["killed"] = tally.Killed();
  for (const Outcome outcome : kOutcomes) {
    json[std::string(ToText(outcome))] = tally.Of(outcome);
  }
  json["named_right_share"] = tally.NamedRightShare();
  return json;
}

Json TalliesJson(const Tallies& tallies) {
  Json json = Json::object();
  for (const auto& [key, tally] : tallies) {
    json[key] = TallyJson(tally);
  }
  return json;
}

}  // namespace

std::int64_t Tally::Of(Outcome outcome) const {
  const auto found = of.find(outcome);
  return found == of.end() ? 0 : found->second;
}

std::int64_t Tally::Planted() const {
  std::int64_t planted = 0;
  for (const auto& [outcome, count] : of) {
    planted += count;
  }
  return planted;
}

std::int64_t Tally::Killed() const {
  std::int64_t killed = 0;
  for (const auto& [outcome, count] : of) {
    killed += IsKilled(outcome) ? count : 0;
  }
  return killed;
}

double Tally::NamedRightShare() const {
  const std::int64_t with_a_name = Killed() - Of(Outcome::kUnnamed) - Of(Outcome::kCrashed);
  return with_a_name == 0
             ? 1.0
             : static_cast<double>(Of(Outcome::kNamedRight)) / static_cast<double>(with_a_name);
}

bool Holds(const Campaign& campaign) {
  const Tally tally = TallyOf(campaign.mutants);
  return tally.Killed() > 0 && tally.Of(Outcome::kSurvived) == 0 &&
         tally.Of(Outcome::kNamedWrong) == 0 && campaign.unclean.empty();
}

std::string ToText(const Campaign& campaign) {
  const auto& mutants = campaign.mutants;
  std::string text =
      TableText("class", TalliesBy(mutants, [](const Mutant& m) { return m.bug_class; }));
  text += "\n" + TableText("dtype", TalliesBy(mutants, [](const Mutant& m) { return m.dtype; }));
  text += "\n" + TableText("fill", TalliesBy(mutants, [](const Mutant& m) { return m.fill; }));
  text += RowText("total", TallyOf(mutants));
  text += UnseenText(campaign);
  text += DetailText(campaign, Outcome::kUnexplained, "killed, but the cause was not named");
  text += DetailText(campaign, Outcome::kNamedWrong, "NAMED WRONG");
  text += DetailText(campaign, Outcome::kSurvived, "SURVIVED");
  text += DetailText(campaign, Outcome::kCrashed, "CRASHED");
  if (!campaign.unclean.empty()) {
    text += fmt::format("\nFAILS WITHOUT A FAULT ({})\n", campaign.unclean.size());
    for (const std::string& unclean : campaign.unclean) {
      text += "  " + unclean + "\n";
    }
  }
  return text + "\n" + SummaryText(campaign);
}

Json ToJson(const Campaign& campaign) {
  const auto& mutants = campaign.mutants;
  Json json;
  json["schema"] = 1;
  json["holds"] = Holds(campaign);
  json["full"] = campaign.full;
  json["planned"] = campaign.planned;
  json["seconds"] = campaign.seconds;
  json["clean_steps"] = campaign.clean_steps;
  json["unclean"] = campaign.unclean;
  json["distinct_faults"] = DistinctOf(mutants, [](const Mutant& m) { return m.fault; });
  json["cases_on_layouts"] = DistinctOf(mutants, [](const Mutant& m) { return m.id; });
  json["total"] = TallyJson(TallyOf(mutants));
  json["class"] = TalliesJson(TalliesBy(mutants, [](const Mutant& m) { return m.bug_class; }));
  json["layout"] = TalliesJson(TalliesBy(mutants, [](const Mutant& m) { return m.layout; }));
  json["dtype"] = TalliesJson(TalliesBy(mutants, [](const Mutant& m) { return m.dtype; }));
  json["fill"] = TalliesJson(TalliesBy(mutants, [](const Mutant& m) { return m.fill; }));
  json["tensor"] = TalliesJson(TalliesBy(mutants, [](const Mutant& m) { return m.tensor; }));
  json["faults"] = Json::array();
  for (const Mutant& mutant : mutants) {
    json["faults"].push_back(ToJson(mutant));
  }
  return json;
}

}  // namespace moe
