#include <tinyxml2.h>

#include <cmath>

#include "harness/base/error.h"
#include "harness/base/text.h"
#include "harness/report/claims_text.h"
#include "harness/report/finding_text.h"
#include "harness/report/result.h"

namespace moe {
namespace {

Json AxesJson(const std::vector<Axis>& axes) {
  Json json = Json::array();
  for (const Axis axis : axes) {
    json.push_back(std::string(ToText(axis)));
  }
  return json;
}

Json NumberJson(double number) {
  return std::isfinite(number) ? Json(number) : Json(nullptr);
}

// Its cause and axes, and of the rest what the cause speaks of.
void AddExplanation(const Explanation& explanation, Json& json) {
  json["cause"] = explanation.cause == Cause::kNone ? Json(nullptr)
                                                    : Json(std::string(ToText(explanation.cause)));
  json["axes"] = AxesJson(explanation.axes);
  if (!explanation.used.empty()) {
    json["used"] = AxesJson(explanation.used);
  }
  if (explanation.factor) {
    json["factor"] = NumberJson(*explanation.factor);
  }
  if (!explanation.path.empty()) {
    json["path"] = explanation.path;
  }
  if (!explanation.permuted.empty()) {
    json["permuted"] = explanation.permuted;
  }
  if (!explanation.option.empty()) {
    json["option"] = explanation.option;
  }
  if (!explanation.sources.empty()) {
    json["sources"] = explanation.sources;
  }
}

Json PlaceJson(const std::vector<Coordinate>& place) {
  Json json = Json::object();
  for (const Coordinate& coordinate : place) {
    json[std::string(ToText(coordinate.axis))] = coordinate.at;
  }
  return json;
}

Json ToJson(const UnitPlace& unit) {
  Json json;
  json["unit"] = unit.kind.empty() ? "slice" : unit.kind;
  json["index"] = unit.kind.empty() ? Json(nullptr) : Json(unit.index);
  json["ranks"] = unit.ranks;
  return json;
}

Json ToJson(const ElementPlace& element) {
  Json json;
  json["index"] = element.index;
  json["ranks"] = element.ranks;
  json["got"] = NumberJson(element.got);
  json["want"] = NumberJson(element.want);
  return json;
}

Json ToJson(const RoutingMargin& margin) {
  Json json;
  json["token"] = margin.token;
  json["margin"] = NumberJson(margin.margin);
  json["rounding"] = NumberJson(margin.bound);
  return json;
}

Json ToJson(const HeldShares& held) {
  Json json;
  json["ranks"] = held.ranks;
  json["at"] = PlaceJson(held.at);
  json["kind"] = std::string(ToText(held.kind));
  json["shares"] = Json::array();
  for (const HeldShares::Share& share : held.shares) {
    Json entry;
    entry["of"] = PlaceJson(share.of);
    entry["times"] = NumberJson(share.times);
    json["shares"].push_back(std::move(entry));
  }
  json["residual"] = NumberJson(held.residual);
  json["condition"] = NumberJson(held.condition);
  return json;
}

Json ToJson(const CallFact& fact) {
  Json json;
  json["sum"] = ToText(fact.sum);
  json["fact"] = std::string(ToText(fact.kind));
  json["owed"] = fact.owed;
  json["times"] = fact.times;
  json["logged"] = fact.logged;
  return json;
}

Json ToJson(const TooSmall& too_small) {
  Json json;
  json["numbers"] = too_small.numbers;
  json["of"] = too_small.of;
  json["axes"] = AxesJson(too_small.axes);
  json["condition"] = NumberJson(too_small.condition);
  return json;
}

// What there is of it; an empty object where there is nothing.
Json ToJson(const Evidence& evidence) {
  Json json = Json::object();
  if (!evidence.errors.empty()) {
    json["errors"] = Json::array();
    for (const auto& [rank, error] : evidence.errors) {
      Json entry;
      entry["rank"] = rank;
      entry["error"] = NumberJson(error);
      json["errors"].push_back(std::move(entry));
    }
    json["worst"] = ToJson(evidence.worst);
  }
  if (evidence.floors) {
    json["floors"]["noise"] = NumberJson(evidence.floors->noise);
    json["floors"]["fault"] = evidence.floors->fault ? NumberJson(*evidence.floors->fault) : Json();
  }
  if (evidence.scale) {
    json["scale"]["error"] = NumberJson(evidence.scale->error);
    json["scale"]["allowed"] = NumberJson(evidence.scale->allowed);
    json["scale"]["elementwise"] = NumberJson(evidence.scale->elementwise);
  }
  if (evidence.replicas) {
    Json& replicas = json["replicas"];
    replicas["difference"] = NumberJson(evidence.replicas->difference);
    replicas["ranks"] = evidence.replicas->ranks;
    replicas["others"] = evidence.replicas->others;
    replicas["at"] = ToJson(evidence.replicas->place);
  }
  if (evidence.element) {
    json["element"] = ToJson(*evidence.element);
  }
  if (evidence.not_zero) {
    json["not_zero"] = ToJson(*evidence.not_zero);
  }
  if (evidence.flip) {
    json["flip"] = ToJson(evidence.flip->margin);
    json["flip"]["chosen"] = evidence.flip->chosen;
    json["flip"]["wanted"] = evidence.flip->wanted;
  }
  if (evidence.miscount) {
    json["miscount"]["expert"] = evidence.miscount->expert;
    json["miscount"]["got"] = NumberJson(evidence.miscount->got);
    json["miscount"]["want"] = NumberJson(evidence.miscount->want);
  }
  for (const HeldShares& held : evidence.held) {
    json["held"].push_back(ToJson(held));
  }
  if (evidence.fits_every_rank) {
    json["fits_every_rank"] = true;
  }
  if (evidence.on_some_ranks) {
    json["on_some_ranks"] = true;
  }
  for (const CallFact& fact : evidence.calls) {
    json["calls"].push_back(ToJson(fact));
  }
  if (evidence.doubt != DoubtedClaim::kNone) {
    json["doubted_claim"] = std::string(ToText(evidence.doubt));
  }
  if (!evidence.factor_is.empty()) {
    json["factor_is"] = evidence.factor_is;
  }
  if (!evidence.same_ranks.empty()) {
    json["same_ranks"] = AxesJson(evidence.same_ranks);
  }
  if (evidence.too_small) {
    json["too_small"] = ToJson(*evidence.too_small);
  }
  if (!evidence.coarse.empty()) {
    json["coarse"] = evidence.coarse;
  }
  if (!evidence.option_value.empty()) {
    json["option_value"] = evidence.option_value;
  }
  return json;
}

Json ToJson(const Finding& finding) {
  Json json;
  json["tensor"] = finding.tensor;
  json["verdict"] = std::string(ToText(finding.verdict));
  AddExplanation(finding.explanation, json);
  if (finding.reason != Reason::kNone) {
    json["reason"] = std::string(ToText(finding.reason));
  }
  if (finding.expert >= 0) {
    json["expert"] = finding.expert;
  }
  json["error"] = NumberJson(finding.error);
  json["tolerance"] = NumberJson(finding.tolerance);
  json["residual"] = NumberJson(finding.residual);
  json["ranks"] = finding.ranks;
  json["candidates"] = Json::array();
  for (const Explanation& candidate : finding.candidates) {
    Json entry;
    AddExplanation(candidate, entry);
    json["candidates"].push_back(std::move(entry));
  }
  json["evidence"] = ToJson(finding.evidence);
  json["text"] = TextOf(finding);
  return json;
}

void AddForeign(const Judgement::Foreign& foreign, Json& json) {
  const Manifest& manifest = foreign.manifest;
  if (!manifest.producer.empty()) {
    json["producer"] = manifest.producer;
  }
  if (!manifest.versions.empty()) {
    json["versions"] = manifest.versions;
  }
  if (const auto gaps = DescribeGaps(manifest); !gaps.empty()) {
    json["not_judged"] = gaps;
  }
  if (const auto claims = DescribeClaims(manifest); !claims.empty()) {
    json["claims"] = claims;
  }
  if (foreign.has_coarser_casts) {
    json["floor"] = DescribeFloor(manifest, foreign.cast_effects);
    json["cast_effects"] = Json::array();
    for (const CastEffect& effect : foreign.cast_effects) {
      Json entry;
      entry["tensor"] = effect.tensor;
      entry["with"] = NumberJson(effect.with);
      entry["without"] = NumberJson(effect.without);
      json["cast_effects"].push_back(std::move(entry));
    }
  }
}

Json ToJson(const Result& result) {
  Json json;
  json["id"] = result.id;
  json["dtype"] = result.dtype;
  json["backend"] = result.backend.empty() ? Json(nullptr) : Json(result.backend);
  if (!result.options.empty()) {
    json["options"] = result.options;
  }
  json["fault"] = result.fault ? Json(*result.fault) : Json(nullptr);
  json["verdict"] = std::string(ToText(result.verdict));
  json["findings"] = Json::array();
  for (const Finding& finding : result.judgement.findings) {
    json["findings"].push_back(ToJson(finding));
  }
  json["planted"] = Json::array();
  for (const PlantedOutcome& planted : result.planted) {
    Json entry;
    entry["fault"] = planted.fault;
    entry["as_wanted"] = planted.as_wanted;
    entry["said"] = planted.said;
    json["planted"].push_back(std::move(entry));
  }
  json["notes"] = NotesOf(result.judgement);
  if (result.judgement.foreign) {
    AddForeign(*result.judgement.foreign, json);
  }
  json["text"] = Headline(result);
  json["repro"] = result.repro;
  return json;
}

}  // namespace

Json ToJson(const std::vector<Result>& results, const Summary& summary) {
  Json json;
  json["schema"] = 1;
  json["results"] = Json::array();
  for (const Result& result : results) {
    json["results"].push_back(ToJson(result));
  }
  Json& node = json["summary"];
  node["listed"] = summary.listed;
  node["passed"] = summary.passed;
  node["failed"] = summary.failed;
  node["vacuous"] = summary.vacuous;
  node["skipped"] = summary.skipped;
  node["error"] = summary.error;
  return json;
}

void WriteJUnit(const std::string& path, const std::vector<Result>& results,
                const Summary& summary) {
  tinyxml2::XMLDocument document;
  document.InsertFirstChild(document.NewDeclaration());
  tinyxml2::XMLElement* suite = document.NewElement("testsuite");
  document.InsertEndChild(suite);
  suite->SetAttribute("name", "moegate");
  suite->SetAttribute("tests", static_cast<std::int64_t>(results.size()));
  suite->SetAttribute("failures", summary.failed + summary.vacuous);
  suite->SetAttribute("errors", summary.error);
  suite->SetAttribute("skipped", summary.skipped);
  for (const Result& result : results) {
    tinyxml2::XMLElement* test = suite->InsertNewChildElement("testcase");
    const std::size_t at = result.id.find('@');
    // Not every byte of a folder's name may stand in XML.
    const std::string layout =
        at == std::string::npos ? "dump" : Printable(result.id.substr(at + 1));
    const std::string name = Printable(result.id.substr(0, at) + " " + result.dtype +
                                       (result.options.empty() ? "" : " " + result.options));
    test->SetAttribute("classname", layout.c_str());
    test->SetAttribute("name", name.c_str());
    test->SetAttribute("time", std::isfinite(result.seconds) ? result.seconds : 0.0);
    tinyxml2::XMLElement* properties = test->InsertNewChildElement("properties");
    const auto property = [&](const char* key, const std::string& value) {
      tinyxml2::XMLElement* element = properties->InsertNewChildElement("property");
      element->SetAttribute("name", key);
      element->SetAttribute("value", Printable(value).c_str());
    };
    property("verdict", std::string(ToText(result.verdict)));
    property("backend", result.backend);
    property("repro", result.repro);
    const auto child = [&](const char* tag) {
      tinyxml2::XMLElement* element = test->InsertNewChildElement(tag);
      element->SetAttribute("message", Printable(Headline(result)).c_str());
      if (result.verdict != Verdict::kSkipped) {
        element->SetText(ToText(result).c_str());
      }
    };
    switch (result.verdict) {
      case Verdict::kPass:
        break;
      case Verdict::kFail:
      case Verdict::kVacuous:
        child("failure");
        break;
      case Verdict::kSkipped:
        child("skipped");
        break;
      case Verdict::kError:
        child("error");
        break;
    }
  }
  if (document.SaveFile(path.c_str()) != tinyxml2::XML_SUCCESS) {
    throw Error(path, "cannot be written");
  }
}

}  // namespace moe
