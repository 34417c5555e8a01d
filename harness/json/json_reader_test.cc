#include "harness/json/json_reader.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>

#include "harness/base/error.h"

namespace moe {
namespace {

std::string ComplaintOf(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string ParseComplaint(const std::string& text, const JsonLimits& limits = {}) {
  return ComplaintOf([&] { ParseJson(text, "f.json", limits); });
}

// What `read` says of the value of {"a/b~": <value>}.
std::string ReadComplaint(const std::string& value,
                          const std::function<void(const JsonNode&)>& read) {
  const Json json = ParseJson(R"({"a/b~": )" + value + "}", "f.json");
  return ComplaintOf([&] { read(JsonNode(json, "f.json").At("a/b~")); });
}

std::string Repeated(const std::string& text, int times) {
  std::string repeated;
  for (int i = 0; i < times; ++i) {
    repeated += text;
  }
  return repeated;
}

// An object with `count` different keys of `length` bytes.
std::string ObjectOf(int count, std::size_t length) {
  std::string text = "{";
  for (int i = 0; i < count; ++i) {
    std::string key = std::to_string(i);
    key.insert(0, length - key.size(), 'k');
    text += (i == 0 ? "\"" : ",\"") + key + "\":0";
  }
  return text + "}";
}

TEST(ParseJson, RefusesAKeyThatStandsTwiceInOneObject) {
  EXPECT_EQ(ParseComplaint(R"({"a": {"b": 1}, "c": 2, "a": 3})"),
            "f.json: key \"a\" stands twice in one object");
  EXPECT_EQ(ParseComplaint(R"({"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]})"), "");
}

TEST(ParseJson, NamesLineAndColumnOfASyntaxError) {
  EXPECT_EQ(ParseComplaint("{\n  \"a\": tru\n}").substr(0, 58),
            "f.json: is not JSON at line 2 column 11: syntax error whil");
  EXPECT_EQ(ParseComplaint("[1, 2").substr(0, 39), "f.json: is not JSON at line 1 column 6:");
  EXPECT_EQ(ParseComplaint("").substr(0, 39), "f.json: is not JSON at line 1 column 1:");
}

TEST(ParseJson, RefusesBytesAfterTheValue) {
  EXPECT_EQ(ParseComplaint("{} {}").substr(0, 39), "f.json: is not JSON at line 1 column 4:");
}

TEST(ParseJson, RefusesWhatIsNotUtf8) {
  EXPECT_NE(ParseComplaint("\"\xff\"").find("invalid string: ill-formed UTF-8 byte"),
            std::string::npos);
}

TEST(ParseJson, RefusesNumbersThatNoDoubleHolds) {
  EXPECT_NE(ParseComplaint("1e999").find("number overflow parsing '1e999'"), std::string::npos);
}

TEST(ParseJson, NestsAsDeepAsTheLimitAndNoDeeper) {
  EXPECT_EQ(ParseComplaint(Repeated("[", 16) + Repeated("]", 16)), "");
  EXPECT_EQ(ParseComplaint(Repeated("[", 17) + Repeated("]", 17)),
            "f.json: nests deeper than 16 levels");
  EXPECT_EQ(ParseComplaint(Repeated("{\"a\":", 1'000'000)), "f.json: nests deeper than 16 levels");
}

TEST(ParseJson, ReadsAsManyKeysAsTheLimitAndNoMore) {
  const std::string text = R"({"a": {"x": 1}, "b": [{"x": 1}]})";
  EXPECT_EQ(ParseComplaint(text, {.max_keys = 4}), "");
  EXPECT_EQ(ParseComplaint(text, {.max_keys = 3}), "f.json: has more than 3 keys");
}

TEST(ParseJson, RefusesKeysTooLongToBeNames) {
  EXPECT_EQ(ParseComplaint(ObjectOf(1, 128)), "");
  EXPECT_EQ(ParseComplaint(ObjectOf(1, 129)),
            "f.json: has a key of 129 bytes; at most 128 are read");
}

// ordered_json takes quadratic time for keys, and its callback parser for objects in an array.
TEST(ParseJson, ReadsTheWorstFilesInSeconds) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(ParseComplaint(ObjectOf(10'000, 128)), "");
  EXPECT_EQ(ParseComplaint(ObjectOf(1'000'000, 8)), "f.json: has more than 10000 keys");
  EXPECT_EQ(ParseComplaint("[0" + Repeated(",{}", 300'000) + "]"), "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(ParseJson, KeepsTheOrderOfKeys) {
  EXPECT_EQ(ParseJson(R"({"b": 1, "a": 2})", "f").dump(), R"({"b":1,"a":2})");
}

TEST(ReadJsonFile, ReadsNoMoreBytesThanTheLimit) {
  const std::string path = testing::TempDir() + "/json_reader_test_size.json";
  std::ofstream(path) << "[1, 2, 3]\n";
  EXPECT_EQ(ComplaintOf([&] { ReadJsonFile(path, {.max_bytes = 10}); }), "");
  EXPECT_EQ(ComplaintOf([&] { ReadJsonFile(path, {.max_bytes = 9}); }),
            path + ": has 10 bytes; at most 9 are read");
}

TEST(ReadJsonFile, NamesWhatIsNoFile) {
  const std::string folder = testing::TempDir() + "/json_reader_test_folder";
  std::filesystem::create_directories(folder);
  EXPECT_EQ(ComplaintOf([&] { ReadJsonFile(folder); }), folder + ": is not a regular file");
  EXPECT_EQ(ComplaintOf([&] { ReadJsonFile(folder + "/none"); }), folder + "/none: does not exist");
}

TEST(WriteJsonFile, WritesWhatItReadsEvenFromTextThatIsNotUtf8) {
  const std::string path = testing::TempDir() + "/json_reader_test_write.json";
  WriteJsonFile(path, Json{{"name", "caf\xe9"}, {"size", 3}});
  const Json json = ReadJsonFile(path);
  EXPECT_EQ(json["name"], "caf\xef\xbf\xbd");
  EXPECT_EQ(json["size"], 3);
}

TEST(WriteJsonFile, NamesAFileThatCannotBeWritten) {
  EXPECT_EQ(ComplaintOf([] { WriteJsonFile("/nowhere/a.json", Json(1)); }),
            "/nowhere/a.json: cannot be written: No such file or directory");
}

TEST(JsonNode, NamesUnknownKeysAndTheKnownOnes) {
  const Json json = ParseJson(R"({"m": {"tokens": 1, "token": 2}})", "f.json");
  EXPECT_EQ(ComplaintOf([&] {
              JsonNode(json, "f.json").At("m").OnlyKeys({"tokens", "top_k"});
            }),
            "f.json#/m/token: unknown key \"token\"; known are tokens, top_k");
}

TEST(JsonNode, NamesTheMissingKey) {
  const Json json = ParseJson("{}", "f.json");
  EXPECT_EQ(ComplaintOf([&] { JsonNode(json, "f.json").At("why"); }),
            "f.json: lacks the key \"why\"");
}

TEST(JsonNode, EscapesItsPointer) {
  const Json json = ParseJson(R"({"a/b~": [0, {"c": 1}]})", "f.json");
  EXPECT_EQ(JsonNode(json, "f.json").At("a/b~").Items()[1].At("c").where(), "f.json#/a~1b~0/1/c");
}

TEST(JsonNode, NamesWrongTypes) {
  const std::string at = "f.json#/a~1b~0: ";
  EXPECT_EQ(ReadComplaint("1", [](const JsonNode& node) { node.String(); }),
            at + "is a number; must be a string");
  EXPECT_EQ(ReadComplaint("null", [](const JsonNode& node) { node.Bool(); }),
            at + "is null; must be true or false");
  EXPECT_EQ(ReadComplaint("true", [](const JsonNode& node) { node.Number(); }),
            at + "is true or false; must be a finite number");
  EXPECT_EQ(ReadComplaint("{}", [](const JsonNode& node) { node.Items(); }),
            at + "is an object; must be an array");
  EXPECT_EQ(ReadComplaint("[]", [](const JsonNode& node) { node.At("k"); }),
            at + "is an array; must be an object");
  EXPECT_EQ(ReadComplaint("\"\"", [](const JsonNode& node) { node.OnlyKeys({}); }),
            at + "is a string; must be an object");
}

TEST(JsonNode, ReadsWholeNumbersInRange) {
  const auto read = [](const JsonNode& node) { node.Integer(1, 4); };
  const std::string at = "f.json#/a~1b~0: ";
  EXPECT_EQ(ReadComplaint("1", read) + ReadComplaint("4", read), "");
  EXPECT_EQ(ReadComplaint("0", read), at + "is 0; must be a whole number from 1 to 4");
  EXPECT_EQ(ReadComplaint("5", read), at + "is 5; must be a whole number from 1 to 4");
  EXPECT_EQ(ReadComplaint("2.0", read), at + "is 2.0; must be a whole number from 1 to 4");
  EXPECT_EQ(ReadComplaint("\"2\"", read), at + "is a string; must be a whole number from 1 to 4");
  EXPECT_EQ(ReadComplaint("-1", [](const JsonNode& node) { node.Integer(0); }),
            at + "is -1; must be a whole number of at least 0");
}

TEST(JsonNode, ReadsTheLargestIntegerAndRefusesTheNext) {
  const auto read = [](const JsonNode& node) { EXPECT_EQ(node.Integer(), INT64_MAX); };
  EXPECT_EQ(ReadComplaint("9223372036854775807", read), "");
  EXPECT_EQ(ReadComplaint("9223372036854775808", read),
            "f.json#/a~1b~0: is 9223372036854775808; must be a whole number");
}

}  // namespace
}  // namespace moe
