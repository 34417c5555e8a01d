// Text from strangers (file names, JSON keys, words of ranks) on its way into a message.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace moe {

enum class Newlines { kEscape, kKeep };

// `text` with every byte that could act on a terminal or break JSON and XML written as \xNN:
// control characters (below 0x20, 0x7f, U+0080 to U+009F) and bytes that are not UTF-8. Idempotent.
std::string Printable(std::string_view text, Newlines newlines = Newlines::kEscape);

// That of `candidates` which takes the fewest changed, added or left out bytes to become `text`
// (Levenshtein distance), of several the one that begins most like it; empty where there are no
// candidates. Looks at the first 64 bytes of each, so that a stranger's text cannot cost much.
std::string_view NearestOf(std::string_view text, std::span<const std::string_view> candidates);

}  // namespace moe
