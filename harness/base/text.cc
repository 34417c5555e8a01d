#include "harness/base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

namespace moe {
namespace {

// Bytes of the UTF-8 character that `text` begins with; 0 when it begins with none (RFC 3629: no
// overlong form, no surrogate, nothing above U+10FFFF).
std::size_t CharacterLength(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(text[i]) & 0xffU; };
  const std::uint32_t first = byte(0);
  if (first < 0x80) {
    return 1;
  }
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc0 || first > 0xf7 || text.size() < length) {
    return 0;
  }
  std::uint32_t code = first & (0x7fU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80U) {
      return 0;
    }
    code = code << 6U | (byte(i) & 0x3fU);
  }
  constexpr std::array<std::uint32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  return code < kSmallest.at(length) || code > 0x10ffff || surrogate ? 0 : length;
}

bool IsControl(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  return first < 0x20 || first == 0x7f ||
         (first == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0);
}

std::size_t Distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);  // distances of what was seen of a to prefixes of b
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string Printable(std::string_view text, Newlines newlines) {
  std::string printable;
  while (!text.empty()) {
    const std::size_t length = CharacterLength(text);
    const std::string_view character = text.substr(0, length == 0 ? 1 : length);
    const bool kept = newlines == Newlines::kKeep && character == "\n";
    if (!kept && (length == 0 || IsControl(character))) {
      for (const char c : character) {
        printable += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
      }
    } else {
      printable += character;
    }
    text.remove_prefix(character.size());
  }
  return printable;
}

std::string_view NearestOf(std::string_view text, std::span<const std::string_view> candidates) {
  constexpr std::size_t kMost = 64;
  text = text.substr(0, kMost);
  // How far, and then how little they have in common at the beginning.
  const auto farness = [&](std::string_view candidate) {
    candidate = candidate.substr(0, kMost);
    const auto [end, _] =
        std::mismatch(text.begin(), text.end(), candidate.begin(), candidate.end());
    return std::pair(Distance(text, candidate), text.end() - end);
  };
  const auto nearest = std::min_element(
      candidates.begin(), candidates.end(),
      [&](std::string_view a, std::string_view b) { return farness(a) < farness(b); });
  return nearest == candidates.end() ? std::string_view() : *nearest;
}

}  // namespace moe
