#include "harness/json/json_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "harness/base/error.h"

namespace moe {
namespace {

// Line and column (from 1) of byte `offset`, as editors count them.
std::string PlaceOf(std::string_view text, std::size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t newline = before.rfind('\n');
  const std::size_t column =
      before.size() - (newline == std::string_view::npos ? 0 : newline + 1) + 1;
  return fmt::format("line {} column {}", line, column);
}

// The longest name that anything of ours has is far shorter; comparing long keys takes long.
constexpr std::size_t kLongestKey = 128;

// Reads a document without building it and throws at what nlohmann_json lets through: duplicate
// keys, and what would take it long to build (its ordered objects compare a new key with all
// others; its callback parser looks through an array after every object in it) or to destroy (it
// recurses).
class StrictReader : public Json::json_sax_t {
 public:
  StrictReader(std::string_view text, const std::string& where, const JsonLimits& limits)
      : text_(text), where_(where), limits_(limits) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(Json::number_integer_t) override { return true; }
  bool number_unsigned(Json::number_unsigned_t) override { return true; }
  bool number_float(Json::number_float_t, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(Json::binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Open(); }
  bool start_array(std::size_t) override { return Open(); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(std::string& key) override {
    if (key.size() > kLongestKey) {
      throw Error(where_, fmt::format("has a key of {} bytes; at most {} are read", key.size(),
                                      kLongestKey));
    }
    if (!keys_.back().insert(key).second) {
      throw Error(where_, fmt::format("key \"{}\" stands twice in one object", key));
    }
    if (++key_count_ > limits_.max_keys) {
      throw Error(where_, fmt::format("has more than {} keys", limits_.max_keys));
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const Json::exception& error) override {
    std::string reason =
        error.what();  // "[json.exception...] parse error at line 1, column 2: REASON"
    if (const std::size_t colon = reason.find(": "); colon != std::string::npos) {
      reason = reason.substr(colon + 2);
    } else if (const std::size_t bracket = reason.find("] "); bracket != std::string::npos) {
      reason = reason.substr(bracket + 2);
    }
    throw Error(where_, fmt::format("is not JSON at {}: {}",
                                    PlaceOf(text_, position == 0 ? 0 : position - 1), reason));
  }

 private:
  bool Open() {
    keys_.emplace_back();
    if (keys_.size() > static_cast<std::size_t>(limits_.max_depth)) {
      throw Error(where_, fmt::format("nests deeper than {} levels", limits_.max_depth));
    }
    return true;
  }

  bool Close() {
    keys_.pop_back();
    return true;
  }

  std::string_view text_;
  const std::string& where_;
  const JsonLimits& limits_;
  std::int64_t key_count_ = 0;
  std::vector<std::set<std::string>> keys_;  // of every open object; an array has none
};

std::string_view KindOf(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "true or false";
    default:
      return "a number";
  }
}

}  // namespace

Json ParseJson(std::string_view text, const std::string& where, const JsonLimits& limits) {
  StrictReader reader(text, where, limits);
  Json::sax_parse(text, &reader);
  return Json::parse(text);
}

Json ReadJsonFile(const std::string& path, const JsonLimits& limits) {
  std::error_code code;
  const auto status = std::filesystem::status(path, code);
  if (!std::filesystem::exists(status)) {
    throw Error(path, "does not exist");
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw Error(path, "is not a regular file");
  }
  const auto size = std::filesystem::file_size(path, code);
  if (code || static_cast<std::int64_t>(size) > limits.max_bytes) {
    throw Error(path, fmt::format("has {} bytes; at most {} are read", size, limits.max_bytes));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(size, '\0');
  if (!file || !file.read(text.data(), static_cast<std::streamsize>(size))) {
    throw Error(path, fmt::format("cannot be read: {}", std::strerror(errno)));
  }
  return ParseJson(text, path, limits);
}

void WriteJsonFile(const std::string& path, const Json& json) {
  const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  {
    std::ofstream file(temporary, std::ios::binary);
    // Texts may quote what is not UTF-8, such as the name of a folder.
    file << json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) << '\n';
    if (!file.flush()) {
      const std::string why = std::strerror(errno);
      std::error_code code;
      std::filesystem::remove(temporary, code);
      throw Error(path, fmt::format("cannot be written: {}", why));
    }
  }
  std::error_code code;
  std::filesystem::rename(temporary, path, code);
  if (code) {
    std::filesystem::remove(temporary, code);
    throw Error(path, "cannot be written: the rename failed");
  }
}

std::string JsonNode::where() const {
  return pointer_.empty() ? file_ : file_ + "#" + pointer_;
}

void JsonNode::Fail(const std::string& what) const {
  throw Error(where(), what);
}

JsonNode JsonNode::Child(const Json& value, const std::string& token) const {
  std::string escaped;  // RFC 6901: ~ is ~0, / is ~1
  for (const char c : token) {
    escaped += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  }
  JsonNode child(value, file_);
  child.pointer_ = pointer_ + "/" + escaped;
  return child;
}

void JsonNode::OnlyKeys(std::initializer_list<std::string_view> keys) const {
  for (const auto& [key, child] : Members()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      child.Fail(fmt::format("unknown key \"{}\"; known are {}", key, fmt::join(keys, ", ")));
    }
  }
}

std::optional<JsonNode> JsonNode::Find(std::string_view key) const {
  if (!value_->is_object()) {
    Fail(fmt::format("is {}; must be an object", KindOf(*value_)));
  }
  const auto found = value_->find(std::string(key));
  if (found == value_->end()) {
    return std::nullopt;
  }
  return Child(*found, std::string(key));
}

JsonNode JsonNode::At(std::string_view key) const {
  if (auto child = Find(key)) {
    return *child;
  }
  Fail(fmt::format("lacks the key \"{}\"", key));
}

std::vector<std::pair<std::string, JsonNode>> JsonNode::Members() const {
  if (!value_->is_object()) {
    Fail(fmt::format("is {}; must be an object", KindOf(*value_)));
  }
  std::vector<std::pair<std::string, JsonNode>> members;
  for (const auto& [key, value] : value_->items()) {
    members.emplace_back(key, Child(value, key));
  }
  return members;
}

std::vector<JsonNode> JsonNode::Items() const {
  if (!value_->is_array()) {
    Fail(fmt::format("is {}; must be an array", KindOf(*value_)));
  }
  std::vector<JsonNode> items;
  for (std::size_t i = 0; i < value_->size(); ++i) {
    items.push_back(Child((*value_)[i], std::to_string(i)));
  }
  return items;
}

std::string JsonNode::String() const {
  if (!value_->is_string()) {
    Fail(fmt::format("is {}; must be a string", KindOf(*value_)));
  }
  return value_->get<std::string>();
}

bool JsonNode::Bool() const {
  if (!value_->is_boolean()) {
    Fail(fmt::format("is {}; must be true or false", KindOf(*value_)));
  }
  return value_->get<bool>();
}

double JsonNode::Number() const {
  if (!value_->is_number() || !std::isfinite(value_->get<double>())) {
    Fail(fmt::format("is {}; must be a finite number", KindOf(*value_)));
  }
  return value_->get<double>();
}

std::int64_t JsonNode::Integer(std::int64_t smallest, std::int64_t largest) const {
  const bool too_large = value_->is_number_unsigned() && value_->get<std::uint64_t>() > INT64_MAX;
  if (!value_->is_number_integer() || too_large || value_->get<std::int64_t>() < smallest ||
      value_->get<std::int64_t>() > largest) {
    std::string range = "a whole number";
    if (smallest != INT64_MIN && largest != INT64_MAX) {
      range += fmt::format(" from {} to {}", smallest, largest);
    } else if (smallest != INT64_MIN) {
      range += fmt::format(" of at least {}", smallest);
    }
    Fail(fmt::format("is {}; must be {}",
                     value_->is_number() ? value_->dump() : std::string(KindOf(*value_)), range));
  }
  return value_->get<std::int64_t>();
}

}  // namespace moe
