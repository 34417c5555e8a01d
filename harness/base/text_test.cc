#include "harness/base/text.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "harness/base/error.h"

namespace moe {
namespace {

TEST(Printable, LeavesOrdinaryTextAlone) {
  EXPECT_EQ(Printable("d_gate_ED@tp is 3×10⁻⁵ off 🙂"),
            "d_gate_ED@tp is 3×10⁻⁵ off 🙂");
}

TEST(Printable, EscapesControlCharacters) {
  EXPECT_EQ(Printable("a\x1b[2Jb\tc\x7f\n"), "a\\x1b[2Jb\\x09c\\x7f\\x0a");
  EXPECT_EQ(Printable(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b2J");                     // U+009B is ESC [ in one character
  EXPECT_EQ(Printable("\xc2\xa0"), "\xc2\xa0");  // the first one after them
}

TEST(Printable, EscapesBytesThatAreNotUtf8) {
  EXPECT_EQ(Printable("\xff\x80"), "\\xff\\x80");
  EXPECT_EQ(Printable("caf\xc3"), "caf\\xc3");                       // cut short
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");                    // overlong
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // above U+10FFFF
}

TEST(Printable, KeepsNewlinesOnRequest) {
  EXPECT_EQ(Printable("a\nb\r\n", Newlines::kKeep), "a\nb\\x0d\n");
}

TEST(Error, CarriesNoControlCharactersOfAStranger) {
  EXPECT_STREQ(Error("evil\x1b[31m.json", "key \"\x07\" stands twice").what(),
               "evil\\x1b[31m.json: key \"\\x07\" stands twice");
}

TEST(Text, FindsTheNearestOfSomeNames) {
  const std::vector<std::string_view> names = {"d_w1_EFD", "d_gate_ED", "y_TD"};
  EXPECT_EQ(NearestOf("d_gate_E", names), "d_gate_ED");
  EXPECT_EQ(NearestOf("dw1_EFD", names), "d_w1_EFD");
  EXPECT_EQ(NearestOf("", names), "y_TD");
  EXPECT_EQ(NearestOf("y_TD", {}), "");
  EXPECT_EQ(NearestOf(std::string(1'000'000, 'x'), names), "d_w1_EFD");
}

}  // namespace
}  // namespace moe
