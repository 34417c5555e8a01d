// The safetensors file format, read strictly and written canonically: 8 bytes of little-endian
// header length, a JSON header, the data. https://github.com/huggingface/safetensors (README,
// "Format").
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "harness/dump/tensor_view.h"

namespace moe {

// Where the bytes of a dump come from: a mapped file or a buffer. Views into it stay valid while it
// lives.
class SafetensorsFile {
 public:
  // Maps the file read-only and checks everything before returning: the header's length (at most
  // 100,000,000 bytes and no longer than the file), its JSON (no duplicate key, no unknown dtype),
  // and that the tensors cover the data exactly, without overlap, hole or byte left over, each with
  // as many bytes as its shape and dtype need (shape products that overflow are refused).
  // Throws Error(path, one sentence).
  static SafetensorsFile Open(const std::string& path);

  // The same checks on bytes in memory; `name` is what messages begin with.
  static SafetensorsFile FromBytes(std::vector<std::byte> bytes, const std::string& name);

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  std::shared_ptr<const void>
      owner_;  // the mapping or the buffer; shared, so that a file can be copied
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// The bytes of a file with these tensors: header padded with spaces to a multiple of 8, tensors in
// the order of descending element size, then name, as the reference writer does.
std::vector<std::byte> EncodeSafetensors(const std::map<std::string, TensorView>& tensors,
                                         const std::map<std::string, std::string>& metadata = {});

// Writes to a temporary name beside `path` and renames, so that no reader ever sees half a file.
// Throws Error(path, ...).
void WriteSafetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace moe
