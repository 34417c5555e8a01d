#include "harness/dump/safetensors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "harness/base/error.h"

namespace moe {
namespace {

using Bytes = std::vector<std::byte>;

// A file with this header and `data_size` bytes of data; `claimed` replaces the header's length.
Bytes FileOf(const std::string& header, std::size_t data_size,
             std::optional<std::uint64_t> claimed = std::nullopt) {
  const std::uint64_t length = claimed.value_or(header.size());
  Bytes bytes(8 + header.size() + data_size);
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  return bytes;
}

std::string FaultOf(Bytes bytes) {
  try {
    SafetensorsFile::FromBytes(std::move(bytes), "f");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string OpenFaultOf(const std::string& path) {
  try {
    SafetensorsFile::Open(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

template <typename Value>
TensorView ViewOf(Dtype dtype, Shape shape, const std::vector<Value>& values) {
  return {dtype, std::move(shape), std::as_bytes(std::span(values))};
}

std::filesystem::path FreshFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "moegate-XXXXXX").string();
  return ::mkdtemp(pattern.data());
}

const std::vector<float> kFloats = {1.5F, -2.0F, 0.25F, 4.0F, 5.0F, 6.0F};
const std::vector<double> kDoubles = {0.1};
const std::vector<std::int64_t> kIntegers = {7, -8};

std::map<std::string, TensorView> SomeTensors() {
  return {{"a", ViewOf(Dtype::kFloat32, {2, 3}, kFloats)},
          {"none", ViewOf(Dtype::kFloat64, {0, 3}, std::vector<double>{})},
          {"scalar", ViewOf(Dtype::kFloat64, {}, kDoubles)},
          {"z", ViewOf(Dtype::kInt64, {2}, kIntegers)}};
}

TEST(Safetensors, ReadsWhatItWrote) {
  const auto file =
      SafetensorsFile::FromBytes(EncodeSafetensors(SomeTensors(), {{"format", "pt"}}), "f");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  ASSERT_EQ(file.tensors().size(), 4U);
  EXPECT_EQ(file.tensors().at("a").shape, (Shape{2, 3}));
  EXPECT_EQ(file.tensors().at("a").At(1), -2.0);
  EXPECT_EQ(file.tensors().at("none").shape, (Shape{0, 3}));
  EXPECT_EQ(file.tensors().at("scalar").At(0), 0.1);
  EXPECT_EQ(file.tensors().at("z").IntegerAt(1), -8);
}

TEST(Safetensors, WritesLargeElementsFirstAndAlignsTheData) {
  const Bytes bytes = EncodeSafetensors(SomeTensors());
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0U);
  const std::string header(reinterpret_cast<const char*>(bytes.data()) + 8, length);
  EXPECT_TRUE(header.starts_with(R"({"none":{"dtype":"F64","shape":[0,3],"data_offsets":[0,0]},)"
                                 R"("scalar":{"dtype":"F64","shape":[],"data_offsets":[0,8]},)"
                                 R"("z":{"dtype":"I64","shape":[2],"data_offsets":[8,24]},)"
                                 R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[24,48]}})"))
      << header;
}

TEST(Safetensors, OpensAMappedFileWithTheSameTensors) {
  const auto folder = FreshFolder();
  const std::string path = folder / "a.safetensors";
  WriteSafetensors(path, SomeTensors());
  const SafetensorsFile copy = SafetensorsFile::Open(path);  // the views outlive the original
  EXPECT_EQ(copy.name(), path);
  EXPECT_EQ(copy.tensors().at("a").At(5), 6.0);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  std::filesystem::remove_all(folder);
}

TEST(Safetensors, RefusesPathsThatAreNoFiles) {
  const auto folder = FreshFolder();
  EXPECT_EQ(OpenFaultOf(folder / "none"), (folder / "none").string() + ": does not exist");
  EXPECT_EQ(OpenFaultOf(folder), folder.string() + ": is not a regular file");
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(OpenFaultOf(pipe), pipe + ": is not a regular file");
  const std::string empty = folder / "empty";
  std::ofstream{empty};
  EXPECT_EQ(OpenFaultOf(empty), empty +
                                    ": has 0 bytes; a safetensors file begins with 8 bytes that "
                                    "give the length of its header");
  EXPECT_THROW(WriteSafetensors(folder / "none" / "a", SomeTensors()), Error);
  std::filesystem::remove_all(folder);
}

TEST(Safetensors, AcceptsTheSmallestFile) {
  EXPECT_EQ(FaultOf(FileOf("{}", 0)), "");
}

TEST(Safetensors, ChecksTheLengthOfTheHeader) {
  EXPECT_EQ(FaultOf(Bytes(7)),
            "f: has 7 bytes; a safetensors file begins with 8 bytes that give the length of its "
            "header");
  EXPECT_EQ(FaultOf(FileOf("{}", 0, 3)),
            "f: claims a header of 3 bytes, but only 2 follow; the file is truncated or no "
            "safetensors file");
  EXPECT_EQ(FaultOf(FileOf("{}", 0, UINT64_MAX)),
            "f: claims a header of 18446744073709551615 bytes; at most 100000000 are read (is it a "
            "safetensors file?)");
  EXPECT_EQ(FaultOf(FileOf("", 0)), "f: has a header that does not begin with '{'");
  EXPECT_EQ(FaultOf(FileOf(" {}", 0)), "f: has a header that does not begin with '{'");
}

TEST(Safetensors, ReadsAHeaderOfExactlyTheLimit) {
  const std::size_t limit = 100'000'000;
  std::string header(limit, ' ');
  header.replace(0, 2, "{}");
  EXPECT_EQ(FaultOf(FileOf(header, 0)), "");
  EXPECT_EQ(FaultOf(FileOf(header + " ", 0)),
            "f: claims a header of 100000001 bytes; at most 100000000 are read (is it a "
            "safetensors file?)");
}

TEST(Safetensors, RefusesAHeaderOfManyValuesBeforeParsingIt) {
  // With the colon after __metadata__, n entries make 2n separators; those inside strings are none.
  const auto header_of = [](int count) {
    std::string header = R"({"__metadata__":{)";
    for (int i = 0; i < count; ++i) {
      header += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":",:,:\",:")";
    }
    return header + "}}";
  };
  EXPECT_EQ(FaultOf(FileOf(header_of(5'000), 0)), "");
  EXPECT_EQ(FaultOf(FileOf(header_of(5'001), 0)),
            "f: has more than 10000 commas and colons in its header; a dump has a few hundred");
}

// Each header with 24 bytes of data.
TEST(Safetensors, SaysWhatIsWrongInTheHeader) {
  struct Bad {
    const char* header;
    const char* message;
  };
  for (const Bad& bad : {
           Bad{R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{}})",
               R"(f: key "a" stands twice in one object)"},
           Bad{R"({"a":[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]})", "f: nests deeper than 16 levels"},
           Bad{R"({"a":7})", "f#/a: is a number; must be an object"},
           Bad{R"({"a":{"dtype":"F32","shape":[6]}})", R"(f#/a: lacks the key "data_offsets")"},
           Bad{R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"x":1}})",
               R"(f#/a/x: unknown key "x"; known are dtype, shape, data_offsets)"},
           Bad{R"({"a":{"dtype":"F8_E4M3","shape":[24],"data_offsets":[0,24]}})",
               "f#/a/dtype: dtype \"F8_E4M3\" of tensor \"a\" is not one moegate reads; use F64, "
               "F32, BF16, F16, I64 or I32"},
           Bad{R"({"a\u001b":{"dtype":"f\n","shape":[24],"data_offsets":[0,24]}})",
               "f#/a\\x1b/dtype: dtype \"f\\n\" of tensor \"a\\u001b\" is not one moegate reads; "
               "use F64, F32, BF16, F16, I64 or I32"},
           Bad{R"({"a":{"dtype":"F32","shape":6,"data_offsets":[0,24]}})",
               "f#/a/shape: is a number; must be an array"},
           Bad{R"({"a":{"dtype":"F32","shape":[-6],"data_offsets":[0,24]}})",
               "f#/a/shape/0: is -6; must be a whole number of at least 0"},
           Bad{R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,24]}})",
               "f#/a/shape/0: is 1.5; must be a whole number of at least 0"},
           Bad{R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,24]}})",
               "f#/a/shape/0: is 18446744073709551615; must be a whole number of at least 0"},
           Bad{R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,6],"data_offsets":[0,24]}})",
               "f#/a/shape: has 9 dimensions; at most 8 are read"},
           Bad{R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,24]}})",
               "f#/a/shape: shape [4294967296, 4294967296] has more elements than 64 bits can "
               "count"},
           Bad{R"({"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})",
               "f#/a/shape: shape [0, 4294967296, 4294967296] has more elements than 64 bits can "
               "count"},
           Bad{R"({"a":{"dtype":"F32","shape":[2305843009213693952],"data_offsets":[0,24]}})",
               "f#/a/shape: shape [2305843009213693952] has more elements than 64 bits can count"},
           Bad{R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[24]}})",
               "f#/a/data_offsets: has 1 numbers; must be [begin, end]"},
           Bad{R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[24,0]}})",
               "f#/a/data_offsets: begin 24 lies after end 0"},
           Bad{R"({"a":{"dtype":"F32","shape":[7],"data_offsets":[0,28]}})",
               "f#/a/data_offsets: end 28 lies beyond the file, which has 24 bytes of data"},
           Bad{R"({"a":{"dtype":"F32","shape":[5],"data_offsets":[0,24]}})",
               "f#/a/data_offsets: spans 24 bytes; shape [5] of F32 needs 20"},
           Bad{R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},)"
               R"("b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}})",
               "f#/b/data_offsets: tensor \"b\" begins at 8, inside tensor \"a\", which ends at "
               "16"},
           Bad{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
               R"("b":{"dtype":"F32","shape":[2],"data_offsets":[16,24]}})",
               "f#/b/data_offsets: bytes 8 to 16 of the data, before tensor \"b\", belong to no "
               "tensor"},
           Bad{R"({"a":{"dtype":"F32","shape":[5],"data_offsets":[0,20]}})",
               "f: has 24 bytes of data; its tensors cover only the first 20"},
           Bad{R"({})", "f: has 24 bytes of data; its tensors cover only the first 0"},
           Bad{R"({"__metadata__":{"n":1},"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}})",
               "f#/__metadata__/n: is a number; must be a string"},
           Bad{R"({"__metadata__":[]})", "f#/__metadata__: is an array; must be an object"},
       }) {
    EXPECT_EQ(FaultOf(FileOf(bad.header, 24)), bad.message) << bad.header;
  }
}

TEST(Safetensors, AcceptsTensorsInAnyOrderOfTheHeader) {
  EXPECT_EQ(FaultOf(FileOf(R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[16,24]},)"
                           R"("none":{"dtype":"F16","shape":[0],"data_offsets":[16,16]},)"
                           R"("a":{"dtype":"F16","shape":[2,4],"data_offsets":[0,16]}}  )",
                           24)),
            "");
}

TEST(Safetensors, RefusesSyntaxErrorsWithTheirPlace) {
  const std::string fault = FaultOf(FileOf("{\"a\":}", 0));
  EXPECT_TRUE(fault.starts_with("f: is not JSON at line 1 column 6")) << fault;
}

TEST(Safetensors, RefusesToWriteBytesThatDoNotFitTheShape) {
  EXPECT_THROW(EncodeSafetensors({{"a", ViewOf(Dtype::kFloat32, {5}, kFloats)}}), Error);
  EXPECT_THROW(EncodeSafetensors({{"__metadata__", ViewOf(Dtype::kFloat32, {6}, kFloats)}}), Error);
}

// Anything but success or Error ends the test program; sanitizers see the rest.
void ReadAll(Bytes bytes) {
  try {
    const auto file = SafetensorsFile::FromBytes(std::move(bytes), "f");
    for (const auto& [name, view] : file.tensors()) {
      std::vector<double> values(static_cast<std::size_t>(NumElements(view.shape)));
      view.Read(0, values);
    }
  } catch (const Error&) {
  }
}

TEST(Safetensors, SurvivesEveryFlippedByteAndEveryTruncation) {
  const Bytes valid = EncodeSafetensors(SomeTensors(), {{"k", "v"}});
  for (std::size_t i = 0; i < valid.size(); ++i) {
    for (const int flip : {1, 2, 4, 8, 16, 32, 64, 128}) {
      Bytes bytes = valid;
      bytes[i] ^= static_cast<std::byte>(flip);
      ReadAll(std::move(bytes));
    }
    ReadAll(Bytes(valid.begin(), valid.begin() + static_cast<std::ptrdiff_t>(i)));
  }
}

TEST(TensorView, ReadsEveryFloat16Exactly) {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) {
    bits[i] = static_cast<std::uint16_t>(i);
  }
  const TensorView view = ViewOf(Dtype::kFloat16, {65536}, bits);
  for (std::int64_t i = 0; i < 65536; ++i) {
    const int exponent = static_cast<int>(i >> 10) & 0x1f;
    const int fraction = static_cast<int>(i) & 0x3ff;
    const double sign = i < 32768 ? 1.0 : -1.0;
    double want =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) {
      want = fraction == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
    }
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(view.At(i))) << i;
    } else {
      EXPECT_EQ(std::bit_cast<std::uint64_t>(view.At(i)),
                std::bit_cast<std::uint64_t>(sign * want))
          << i;  // bitwise: the sign of zero too
    }
  }
}

TEST(TensorView, ReadsBfloat16AsTheUpperHalfOfAFloat) {
  const std::vector<std::uint16_t> bits = {0x3f80, 0xc040, 0x0001, 0x7f80, 0x8000};
  const TensorView view = ViewOf(Dtype::kBfloat16, {5}, bits);
  EXPECT_EQ(view.At(0), 1.0);
  EXPECT_EQ(view.At(1), -3.0);
  EXPECT_EQ(view.At(2), 0x1p-133);
  EXPECT_EQ(view.At(3), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::signbit(view.At(4)));
}

TEST(TensorView, ReadsAtAnyAlignment) {
  Bytes bytes(1 + 3 * 8);
  const double values[] = {1.0, 2.0, 3.0};
  std::memcpy(bytes.data() + 1, values, sizeof values);
  const TensorView view = {Dtype::kFloat64, {3}, std::span<const std::byte>(bytes).subspan(1)};
  std::vector<double> out(2);
  view.Read(1, out);
  EXPECT_EQ(out, (std::vector<double>{2.0, 3.0}));
}

TEST(TensorView, GivesIntegersOfIntegerTensorsOnly) {
  const std::vector<std::int32_t> small = {-5};
  const std::vector<std::int64_t> large = {(std::int64_t{1} << 53) + 1};
  EXPECT_EQ(ViewOf(Dtype::kInt32, {1}, small).IntegerAt(0), -5);
  EXPECT_EQ(ViewOf(Dtype::kInt32, {1}, small).At(0), -5.0);
  EXPECT_EQ(ViewOf(Dtype::kInt64, {1}, large).IntegerAt(0), large[0]);
  EXPECT_THROW(ViewOf(Dtype::kFloat32, {6}, kFloats).IntegerAt(0), Error);
}

}  // namespace
}  // namespace moe
