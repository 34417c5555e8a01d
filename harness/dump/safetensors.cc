#include "harness/dump/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <tuple>

#include "harness/base/error.h"
#include "harness/json/json_reader.h"

namespace moe {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kLargestHeader = 100'000'000;  // limit of the reference reader
constexpr const char* kMetadata = "__metadata__";

// Limits of moegate itself. A dump has some 25 tensors of at most 3 dimensions, while a header at
// the size limit could hold 50 million values, or a million keys, which ordered_json inserts in
// quadratic time.
constexpr std::size_t kMostSeparators = 10'000;
constexpr std::size_t kMostDimensions = 8;

struct FileDtype {
  std::string_view text;
  Dtype dtype;
};

constexpr std::array<FileDtype, 6> kFileDtypes = {{{"F64", Dtype::kFloat64},
                                                   {"F32", Dtype::kFloat32},
                                                   {"BF16", Dtype::kBfloat16},
                                                   {"F16", Dtype::kFloat16},
                                                   {"I64", Dtype::kInt64},
                                                   {"I32", Dtype::kInt32}}};

std::string_view ToFileText(Dtype dtype) {
  return std::find_if(kFileDtypes.begin(), kFileDtypes.end(),
                      [&](const FileDtype& known) { return known.dtype == dtype; })
      ->text;
}

// Names in a file are hostile too: quotes them with control characters escaped.
std::string Quoted(const std::string& name) {
  return Json(name).dump(/*indent=*/-1, /*indent_char=*/' ', /*ensure_ascii=*/true);
}

struct Entry {
  std::string name;
  JsonNode node;
  TensorView view;
  std::int64_t begin;  // in the data
  std::int64_t end;
};

Dtype ParseDtype(const JsonNode& node, const std::string& tensor) {
  const std::string text = node.String();
  for (const FileDtype& known : kFileDtypes) {
    if (known.text == text) {
      return known.dtype;
    }
  }
  node.Fail(fmt::format(
      "dtype {} of tensor {} is not one moegate reads; use F64, F32, BF16, F16, I64 or I32",
      Quoted(text), Quoted(tensor)));
}

Shape ParseShape(const JsonNode& node) {
  if (node.value().is_array() && node.value().size() > kMostDimensions) {
    node.Fail(fmt::format("has {} dimensions; at most {} are read", node.value().size(),
                          kMostDimensions));
  }
  Shape shape;
  for (const JsonNode& size : node.Items()) {
    shape.push_back(size.Integer(/*smallest=*/0));
  }
  return shape;
}

// Nothing when the product of the sizes other than 0 overflows: then no order of multiplying, as in
// strides, can overflow later.
std::optional<std::int64_t> BytesOf(const Shape& shape, Dtype dtype) {
  std::int64_t bytes = SizeOf(dtype);
  bool empty = false;
  for (const std::int64_t size : shape) {
    if (size == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(bytes, size, &bytes)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : bytes;
}

Entry ParseEntry(const std::string& name, const JsonNode& node, std::span<const std::byte> data) {
  node.OnlyKeys({"dtype", "shape", "data_offsets"});
  const Dtype dtype = ParseDtype(node.At("dtype"), name);
  const Shape shape = ParseShape(node.At("shape"));
  const std::optional<std::int64_t> needed = BytesOf(shape, dtype);
  if (!needed) {
    node.At("shape").Fail(
        fmt::format("shape {} has more elements than 64 bits can count", ToText(shape)));
  }

  const JsonNode offsets = node.At("data_offsets");
  if (offsets.value().is_array() && offsets.value().size() != 2) {
    offsets.Fail(fmt::format("has {} numbers; must be [begin, end]", offsets.value().size()));
  }
  const std::vector<JsonNode> ends = offsets.Items();
  const std::int64_t begin = ends[0].Integer(/*smallest=*/0);
  const std::int64_t end = ends[1].Integer(/*smallest=*/0);
  if (begin > end) {
    offsets.Fail(fmt::format("begin {} lies after end {}", begin, end));
  }
  if (static_cast<std::uint64_t>(end) > data.size()) {
    offsets.Fail(
        fmt::format("end {} lies beyond the file, which has {} bytes of data", end, data.size()));
  }
  if (end - begin != *needed) {
    offsets.Fail(fmt::format("spans {} bytes; shape {} of {} needs {}", end - begin, ToText(shape),
                             ToFileText(dtype), *needed));
  }
  const auto bytes =
      data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  return {name, node, {dtype, shape, bytes}, begin, end};
}

// Every byte of the data belongs to exactly one tensor.
void CheckCoverage(std::vector<Entry>& entries, std::size_t data_size, const std::string& file) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  std::int64_t covered = 0;
  const Entry* previous = nullptr;
  for (const Entry& entry : entries) {
    if (entry.begin < covered) {
      entry.node.At("data_offsets")
          .Fail(fmt::format("tensor {} begins at {}, inside tensor {}, which ends at {}",
                            Quoted(entry.name), entry.begin, Quoted(previous->name), covered));
    }
    if (entry.begin > covered) {
      entry.node.At("data_offsets")
          .Fail(fmt::format("bytes {} to {} of the data, before tensor {}, belong to no tensor",
                            covered, entry.begin, Quoted(entry.name)));
    }
    covered = entry.end;
    previous = &entry;
  }
  if (static_cast<std::uint64_t>(covered) != data_size) {
    throw Error(file, fmt::format("has {} bytes of data; its tensors cover only the first {}",
                                  data_size, covered));
  }
}

// Commas and colons outside strings: each value but the first has one before it.
std::size_t CountSeparators(std::string_view json) {
  std::size_t count = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string && c == '\\') {
      ++i;  // the escaped character does not end the string
    } else if (c == '"') {
      in_string = !in_string;
    } else if (!in_string && (c == ',' || c == ':')) {
      ++count;
    }
  }
  return count;
}

// The JSON text at the start of a file.
std::string_view HeaderOf(std::span<const std::byte> bytes, const std::string& file) {
  if (bytes.size() < kLengthBytes) {
    throw Error(file, fmt::format("has {} bytes; a safetensors file begins with {} bytes that give "
                                  "the length of its header",
                                  bytes.size(), kLengthBytes));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kLargestHeader) {
    throw Error(file,
                fmt::format("claims a header of {} bytes; at most {} are read (is it a safetensors "
                            "file?)",
                            length, kLargestHeader));
  }
  if (length > bytes.size() - kLengthBytes) {
    throw Error(file, fmt::format("claims a header of {} bytes, but only {} follow; the file is "
                                  "truncated or no safetensors file",
                                  length, bytes.size() - kLengthBytes));
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                                static_cast<std::size_t>(length));
  if (!header.starts_with('{')) {
    throw Error(file, "has a header that does not begin with '{'");
  }
  if (CountSeparators(header) > kMostSeparators) {
    throw Error(file, fmt::format("has more than {} commas and colons in its header; a dump has a "
                                  "few hundred",
                                  kMostSeparators));
  }
  return header;
}

struct Contents {
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> metadata;
};

Contents Parse(std::span<const std::byte> bytes, const std::string& file) {
  const std::string_view header = HeaderOf(bytes, file);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + header.size());
  const Json json = ParseJson(header, file);

  Contents contents;
  std::vector<Entry> entries;
  for (const auto& [name, node] : JsonNode(json, file).Members()) {
    if (name != kMetadata) {
      entries.push_back(ParseEntry(name, node, data));
      continue;
    }
    for (const auto& [key, value] : node.Members()) {
      contents.metadata.emplace(key, value.String());
    }
  }
  CheckCoverage(entries, data.size(), file);
  for (Entry& entry : entries) {
    contents.tensors.emplace(std::move(entry.name), std::move(entry.view));
  }
  return contents;
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int value) : value_(value) {}
  ~FileDescriptor() {
    if (value_ >= 0) {
      ::close(value_);
    }
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int value() const { return value_; }

 private:
  int value_;
};

// Bytes of a file, read when touched. Whoever shortens the file afterwards makes touching the lost
// pages end the process (SIGBUS); writers here rename whole files into place and never do.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    // O_NONBLOCK: opening a pipe would wait for its writer; for a regular file it means nothing.
    const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat status {};
    if (file.value() < 0 || ::fstat(file.value(), &status) != 0) {
      throw Error(path, errno == ENOENT ? "does not exist"
                                        : fmt::format("cannot be read: {}", std::strerror(errno)));
    }
    if (!S_ISREG(status.st_mode)) {
      throw Error(path, "is not a regular file");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) {
      return;  // mmap refuses a length of 0
    }
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.value(), /*offset=*/0);
    if (address == MAP_FAILED) {
      throw Error(path, fmt::format("cannot be mapped: {}", std::strerror(errno)));
    }
    address_ = address;
  }
  ~Mapping() {
    if (address_ != nullptr) {
      ::munmap(address_, size_);
    }
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(address_), size_};
  }

 private:
  void* address_ = nullptr;
  std::size_t size_ = 0;
};

using NamedView = std::pair<std::string, TensorView>;

// Larger elements first, so that each tensor is aligned to its elements.
std::vector<NamedView> InFileOrder(const std::map<std::string, TensorView>& tensors) {
  std::vector<NamedView> ordered(tensors.begin(), tensors.end());
  std::stable_sort(ordered.begin(), ordered.end(), [](const NamedView& a, const NamedView& b) {
    return SizeOf(a.second.dtype) > SizeOf(b.second.dtype);
  });
  return ordered;
}

// The length and the padded JSON header.
std::string EncodeHeader(const std::vector<NamedView>& ordered,
                         const std::map<std::string, std::string>& metadata) {
  Json json = Json::object();
  if (!metadata.empty()) {
    json[kMetadata] = metadata;
  }
  std::size_t offset = 0;
  for (const auto& [name, view] : ordered) {
    const std::optional<std::int64_t> needed = BytesOf(view.shape, view.dtype);
    if (name == kMetadata || !needed || static_cast<std::uint64_t>(*needed) != view.bytes.size()) {
      throw Error(name, fmt::format("cannot be written: {} bytes of {} under shape {}",
                                    view.bytes.size(), ToFileText(view.dtype), ToText(view.shape)));
    }
    json[name] = {{"dtype", ToFileText(view.dtype)},
                  {"shape", view.shape},
                  {"data_offsets", {offset, offset + view.bytes.size()}}};
    offset += view.bytes.size();
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data begins aligned
  const std::uint64_t length = text.size();
  std::string header(kLengthBytes, '\0');
  std::memcpy(header.data(), &length, kLengthBytes);
  return header + text;
}

}  // namespace

SafetensorsFile SafetensorsFile::Open(const std::string& path) {
  const auto mapping = std::make_shared<const Mapping>(path);
  Contents contents = Parse(mapping->bytes(), path);
  SafetensorsFile file;
  file.name_ = path;
  file.owner_ = mapping;
  file.tensors_ = std::move(contents.tensors);
  file.metadata_ = std::move(contents.metadata);
  return file;
}

SafetensorsFile SafetensorsFile::FromBytes(std::vector<std::byte> bytes, const std::string& name) {
  const auto buffer = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  Contents contents = Parse(*buffer, name);
  SafetensorsFile file;
  file.name_ = name;
  file.owner_ = buffer;
  file.tensors_ = std::move(contents.tensors);
  file.metadata_ = std::move(contents.metadata);
  return file;
}

std::vector<std::byte> EncodeSafetensors(const std::map<std::string, TensorView>& tensors,
                                         const std::map<std::string, std::string>& metadata) {
  const std::vector<NamedView> ordered = InFileOrder(tensors);
  const std::string header = EncodeHeader(ordered, metadata);
  const auto header_bytes = std::as_bytes(std::span(header));
  std::vector<std::byte> bytes(header_bytes.begin(), header_bytes.end());
  for (const auto& [name, view] : ordered) {
    bytes.insert(bytes.end(), view.bytes.begin(), view.bytes.end());
  }
  return bytes;
}

void WriteSafetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  const std::vector<NamedView> ordered = InFileOrder(tensors);
  const std::string header = EncodeHeader(ordered, metadata);
  const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  std::error_code code;
  {
    std::ofstream file(temporary, std::ios::binary);
    file << header;
    for (const auto& [name, view] : ordered) {
      file.write(reinterpret_cast<const char*>(view.bytes.data()),
                 static_cast<std::streamsize>(view.bytes.size()));
    }
    if (!file.flush()) {
      const std::string reason = std::strerror(errno);
      std::filesystem::remove(temporary, code);
      throw Error(path, fmt::format("cannot be written: {}", reason));
    }
  }
  std::filesystem::rename(temporary, path, code);
  if (code) {
    const std::string reason = code.message();
    std::filesystem::remove(temporary, code);
    throw Error(path, fmt::format("cannot be written: {}", reason));
  }
}

}  // namespace moe
