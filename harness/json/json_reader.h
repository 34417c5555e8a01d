// Reading JSON that strangers wrote: every complaint names the file and the JSON pointer, and says
// what would be right. Case files, golden files, manifests and safetensors headers come through
// here.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moe {

// Keeps the order of keys, so that what is written reads as it was meant.
using Json = nlohmann::ordered_json;

struct JsonLimits {
  std::int64_t max_bytes = 100'000'000;
  int max_depth = 16;
  // In the whole document, since reading takes time quadratic in the keys of an object: 10,000 long
  // ones take half a second.
  std::int64_t max_keys = 10'000;
};

// Parses `text`. Throws Error(where, ...) for a syntax error (with line and column), a key that
// stands twice in one object, nesting or keys beyond the limits, or bytes after the value.
Json ParseJson(std::string_view text, const std::string& where, const JsonLimits& limits = {});

// Reads and parses a file. Throws Error(path, ...) when it cannot be read, is larger than the
// limit, or is not JSON.
Json ReadJsonFile(const std::string& path, const JsonLimits& limits = {});

// Writes `json` with an indent of 2 to a temporary file beside `path` and renames it, so that no
// reader ever sees half of it. Throws Error(path, ...).
void WriteJsonFile(const std::string& path, const Json& json);

// A value inside a document together with its place. Does not own the document.
class JsonNode {
 public:
  // `file` is what messages begin with.
  JsonNode(const Json& value, std::string file) : value_(&value), file_(std::move(file)) {}

  const Json& value() const { return *value_; }
  std::string where() const;  // "cases/a.json#/model/top_k"

  // Throws Error(where(), what).
  [[noreturn]] void Fail(const std::string& what) const;

  // For objects. OnlyKeys throws for any key that is not listed and names the listed ones.
  void OnlyKeys(std::initializer_list<std::string_view> keys) const;
  JsonNode At(std::string_view key) const;                   // throws when missing
  std::optional<JsonNode> Find(std::string_view key) const;  // nothing when missing
  std::vector<std::pair<std::string, JsonNode>> Members() const;

  std::vector<JsonNode> Items() const;  // of an array

  std::string String() const;
  bool Bool() const;
  double Number() const;  // finite
  // Throws unless a whole number in [smallest, largest].
  std::int64_t Integer(std::int64_t smallest = INT64_MIN, std::int64_t largest = INT64_MAX) const;

 private:
  JsonNode Child(const Json& value, const std::string& token) const;

  const Json* value_;
  std::string file_;
  std::string pointer_;
};

}  // namespace moe
