#include <tinyxml2.h>

#include <cmath>

#include "harness/base/error.h"
#include "harness/base/text.h"
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

Json ToJson(const Finding& finding) {
  Json json;
  json["tensor"] = finding.tensor;
  json["verdict"] = std::string(ToText(finding.verdict));
  AddExplanation(finding.explanation, json);
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
  json["text"] = finding.text;
  return json;
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
  json["notes"] = result.judgement.notes;
  if (!result.judgement.producer.empty()) {
    json["producer"] = result.judgement.producer;
  }
  if (!result.judgement.versions.empty()) {
    json["versions"] = result.judgement.versions;
  }
  if (!result.judgement.not_judged.empty()) {
    json["not_judged"] = result.judgement.not_judged;
  }
  if (!result.judgement.claims.empty()) {
    json["claims"] = result.judgement.claims;
  }
  if (!result.judgement.floor.empty()) {
    json["floor"] = result.judgement.floor;
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
