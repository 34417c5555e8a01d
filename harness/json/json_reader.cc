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
  const std::size_t column = before.size() - (newline == std::string_view::npos ? 0 : newline + 1) + 1;
  return fmt::format("line {} column {}", line, column);
}

// Checks what nlohmann_json lets through: duplicate keys and depth. Its parser recurses on nothing,
// but destroying a deep value would, so depth is refused while parsing.
class StrictCallback {
 public:
  StrictCallback(std::string where, int max_depth) : where_(std::move(where)), max_depth_(max_depth) {}

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      if (depth >= max_depth_) {
        throw Error(where_, fmt::format("nests deeper than {} levels", max_depth_));
      }
      keys_.emplace_back();
    } else if (event == Json::parse_event_t::object_end || event == Json::parse_event_t::array_end) {
      keys_.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_.back().insert(key).second) {
        throw Error(where_, fmt::format("key \"{}\" stands twice in one object", key));
      }
    }
    return true;
  }

 private:
  std::string where_;
  int max_depth_;
  std::vector<std::set<std::string>> keys_;
};

std::string_view KindOf(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null: return "null";
    case Json::value_t::object: return "an object";
    case Json::value_t::array: return "an array";
    case Json::value_t::string: return "a string";
    case Json::value_t::boolean: return "true or false";
    default: return "a number";
  }
}

}  // namespace

Json ParseJson(std::string_view text, const std::string& where, const JsonLimits& limits) {
  try {
    return Json::parse(text, StrictCallback(where, limits.max_depth));
  } catch (const Json::parse_error& error) {
    std::string reason = error.what();  // "[json.exception...] parse error at line 1, column 2: REASON"
    if (const std::size_t colon = reason.find(": "); colon != std::string::npos) {
      reason = reason.substr(colon + 2);
    }
    throw Error(where, fmt::format("is not JSON at {}: {}",
                                   PlaceOf(text, error.byte == 0 ? 0 : error.byte - 1), reason));
  } catch (const Json::exception& error) {
    throw Error(where, fmt::format("is not JSON: {}", error.what()));
  }
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
    file << json.dump(2) << '\n';
    if (!file.flush()) {
      throw Error(path, fmt::format("cannot be written: {}", std::strerror(errno)));
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

void JsonNode::Fail(const std::string& what) const { throw Error(where(), what); }

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
    Fail(fmt::format("is {}; must be {}", value_->is_number() ? value_->dump() : std::string(KindOf(*value_)), range));
  }
  return value_->get<std::int64_t>();
}

}  // namespace moe
