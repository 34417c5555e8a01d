#include "harness/layout/layout.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "harness/base/error.h"

namespace moe {
namespace {

constexpr std::array<std::string_view, 7> kAxisNames = {"dp_replicate", "dp_shard", "cp", "tp",
                                                        "edp",          "ep",       "etp"};

// No machine has more ranks than this in one run of ours; it keeps products far from overflow.
constexpr std::int64_t kLargestSize = 4096;

struct Field {
  std::string_view prefix;
  std::int64_t Layout::*size;
};

// In the order of the text. "dpr" before "dp": the longer prefix is tried first.
constexpr std::array<Field, 7> kFields = {{{"dpr", &Layout::dp_replicate},
                                           {"dp", &Layout::dp_shard},
                                           {"cp", &Layout::cp},
                                           {"tp", &Layout::tp},
                                           {"ep", &Layout::ep},
                                           {"etp", &Layout::etp},
                                           {"lb", &Layout::local_batch}}};

// A refused size is answered with the usable ones up to half as large again, or to this.
constexpr std::int64_t kLeastListed = 7;

std::string DivisorsOf(std::int64_t n, std::int64_t at_most) {
  std::vector<std::int64_t> divisors;
  for (std::int64_t d = 1; d <= std::min(n, at_most); ++d) {
    if (n % d == 0) {
      divisors.push_back(d);
    }
  }
  if (divisors.size() == 1) {
    return "1";
  }
  const std::int64_t last = divisors.back();
  divisors.pop_back();
  return fmt::format("{} or {}", fmt::join(divisors, ", "), last);
}

std::int64_t DefaultEtp(const Layout& layout) {
  return layout.ep == 1 ? layout.tp : 1;
}

}  // namespace

std::string_view ToText(Axis axis) {
  return kAxisNames.at(static_cast<std::size_t>(axis));
}

std::optional<Axis> AxisFromText(std::string_view text) {
  const auto* found = std::find(kAxisNames.begin(), kAxisNames.end(), text);
  if (found == kAxisNames.end()) {
    return std::nullopt;
  }
  return static_cast<Axis>(found - kAxisNames.begin());
}

std::string ToText(const Layout& layout) {
  std::vector<std::string> parts;
  for (const Field& field : kFields) {
    const std::int64_t size = layout.*field.size;
    const bool is_etp = field.size == &Layout::etp;
    const bool is_tp = field.size == &Layout::tp;
    const bool printed = is_etp  ? (layout.tp > 1 && layout.ep > 1) || size != DefaultEtp(layout)
                         : is_tp ? size != 1 || layout.etp != 1  // "dp2.tp1.etp2": etp is not tp
                                 : size != 1;
    if (printed && field.size != &Layout::local_batch) {
      parts.push_back(fmt::format("{}{}", field.prefix, size));
    }
  }
  if (parts.empty()) {
    parts.emplace_back("dp1");
  }
  if (!layout.sp) {
    parts.emplace_back("sp0");
  }
  if (layout.local_batch != 1) {
    parts.push_back(fmt::format("lb{}", layout.local_batch));
  }
  return fmt::format("{}", fmt::join(parts, "."));
}

Layout ParseLayout(std::string_view text, const std::string& where) {
  Layout layout;
  bool etp_given = false;
  std::vector<std::string_view> seen;
  std::string_view rest = text;
  while (true) {
    const std::string_view part = rest.substr(0, rest.find('.'));
    const std::size_t digits = part.find_first_of("0123456789");
    const std::string_view prefix = part.substr(0, digits);
    std::int64_t value = 0;
    bool good = digits != std::string_view::npos;
    if (good) {
      const auto [end, code] =
          std::from_chars(part.data() + digits, part.data() + part.size(), value);
      good = code == std::errc{} && end == part.data() + part.size();
    }
    const auto* field = std::find_if(kFields.begin(), kFields.end(),
                                     [&](const Field& f) { return f.prefix == prefix; });
    if (!good || (field == kFields.end() && prefix != "sp")) {
      throw Error(where,
                  fmt::format("\"{}\" in layout \"{}\" is not a part of a layout; parts are dpr, "
                              "dp, cp, tp, ep, etp and lb with a size, and sp0 or sp1, as in "
                              "dp2.tp2.ep4.etp1",
                              part, text));
    }
    if (std::find(seen.begin(), seen.end(), prefix) != seen.end()) {
      throw Error(where, fmt::format("layout \"{}\" gives {} twice", text, prefix));
    }
    seen.push_back(prefix);
    if (prefix == "sp") {
      if (value > 1) {
        throw Error(where,
                    fmt::format("layout \"{}\": sp is {}; use sp0 (off) or sp1 (on)", text, value));
      }
      layout.sp = value == 1;
    } else {
      if (value < 1 || value > kLargestSize) {
        throw Error(where, fmt::format("layout \"{}\": {} is {}; use 1 to {}", text, prefix, value,
                                       kLargestSize));
      }
      layout.*field->size = value;
      etp_given = etp_given || field->size == &Layout::etp;
    }
    if (part.size() == rest.size()) {
      break;
    }
    rest.remove_prefix(part.size() + 1);
  }
  if (!etp_given) {
    layout.etp = DefaultEtp(layout);
  }
  if (layout.dp_replicate * layout.dp_shard > kLargestSize || layout.WorldSize() > kLargestSize) {
    throw Error(where, fmt::format("layout \"{}\" has more than {} ranks", text, kLargestSize));
  }
  if (layout.WorldSize() % (layout.ep * layout.etp) != 0) {
    throw Error(where,
                fmt::format("layout \"{}\" does not fill its world: ep {} times etp {} does not "
                            "divide the {} ranks of dp * cp * tp",
                            text, layout.ep, layout.etp, layout.WorldSize()));
  }
  return layout;
}

std::string FindMisfit(const Model& model, const Layout& layout) {
  struct Rule {
    std::string_view axis;
    std::int64_t size;
    std::string_view key;
    std::int64_t divided;
  };
  const std::int64_t sequences = layout.dp_replicate * layout.dp_shard * layout.local_batch;
  const std::int64_t chunks = sequences * layout.cp * layout.tp;
  for (const Rule& rule :
       {Rule{"ep", layout.ep, "experts", model.experts},
        Rule{"etp", layout.etp, "d_expert", model.d_expert},
        Rule{"tp", model.d_shared > 0 ? layout.tp : 1, "d_shared", model.d_shared},
        Rule{"dp * lb", sequences, "tokens", model.tokens},
        Rule{"dp * lb * cp * tp", chunks, "tokens", model.tokens}}) {
    if (rule.size > 1 && rule.divided % rule.size != 0) {
      return fmt::format("{} {} does not divide {} {}; use {}", rule.axis, rule.size, rule.key,
                         rule.divided,
                         DivisorsOf(rule.divided, std::max(kLeastListed, rule.size * 3 / 2)));
    }
  }
  return "";
}

std::int64_t Mesh::WorldSize() const {
  std::int64_t world = 1;
  for (const std::int64_t size : sizes) {
    world *= size;
  }
  return world;
}

bool Mesh::Has(Axis axis) const {
  return std::find(axes.begin(), axes.end(), axis) != axes.end();
}

std::int64_t Mesh::SizeOf(Axis axis) const {
  const auto found = std::find(axes.begin(), axes.end(), axis);
  return found == axes.end() ? 1 : sizes[static_cast<std::size_t>(found - axes.begin())];
}

std::int64_t Mesh::Coordinate(std::int64_t rank, Axis axis) const {
  for (std::size_t i = axes.size(); i-- > 0;) {
    if (axes[i] == axis) {
      return rank % sizes[i];
    }
    rank /= sizes[i];
  }
  return 0;
}

// Axis by axis from the outermost, each place so far goes on to all coordinates or to the rank's
// own.
std::vector<std::int64_t> Mesh::GroupOf(std::int64_t rank, const std::vector<Axis>& along) const {
  std::vector<std::int64_t> group = {0};
  std::int64_t below = WorldSize();  // ranks per coordinate of the axis
  for (std::size_t i = 0; i < axes.size(); ++i) {
    below /= sizes[i];
    const std::int64_t own = rank / below % sizes[i];
    const bool is_along = std::find(along.begin(), along.end(), axes[i]) != along.end();
    std::vector<std::int64_t> next;
    for (const std::int64_t place : group) {
      for (std::int64_t at = is_along ? 0 : own; at < (is_along ? sizes[i] : own + 1); ++at) {
        next.push_back(place * sizes[i] + at);
      }
    }
    group = std::move(next);
  }
  return group;
}

Meshes MakeMeshes(const Layout& layout) {
  return {.dense = {{Axis::kDpReplicate, Axis::kDpShard, Axis::kCp, Axis::kTp},
                    {layout.dp_replicate, layout.dp_shard, layout.cp, layout.tp}},
          .expert = {{Axis::kEdp, Axis::kEp, Axis::kEtp}, {layout.Edp(), layout.ep, layout.etp}}};
}

std::vector<std::int64_t> TokensOf(const Model& model, const Layout& layout, std::int64_t rank,
                                   bool split_over_tp) {
  const Mesh dense = MakeMeshes(layout).dense;
  const std::int64_t batch_rank = dense.Coordinate(rank, Axis::kDpReplicate) * layout.dp_shard +
                                  dense.Coordinate(rank, Axis::kDpShard);
  const std::int64_t sequences = layout.dp_replicate * layout.dp_shard * layout.local_batch;
  const std::int64_t length = model.tokens / sequences;
  const std::int64_t cp_chunk = length / layout.cp;
  const std::int64_t chunk = split_over_tp ? cp_chunk / layout.tp : cp_chunk;
  const std::int64_t start = dense.Coordinate(rank, Axis::kCp) * cp_chunk +
                             (split_over_tp ? dense.Coordinate(rank, Axis::kTp) * chunk : 0);
  std::vector<std::int64_t> tokens;
  for (std::int64_t sequence = 0; sequence < layout.local_batch; ++sequence) {
    const std::int64_t first = (batch_rank * layout.local_batch + sequence) * length + start;
    for (std::int64_t i = 0; i < chunk; ++i) {
      tokens.push_back(first + i);
    }
  }
  return tokens;
}

}  // namespace moe
