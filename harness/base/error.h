// The one exception of moegate: a place and a sentence that says what is wrong there and what
// would be right. A mismatch between numbers is never an Error; it is a verdict.
#pragma once

#include <stdexcept>
#include <string>

#include "harness/base/text.h"

namespace moe {

class Error : public std::runtime_error {
 public:
  // `where` names a file, an option or a JSON pointer ("cases/a.json#/model/top_k"); `what` is one
  // sentence without a full stop. what() returns "where: what", made Printable, since both often
  // quote files of strangers and end on a terminal. Only the words of a rank may keep their
  // newlines.
  Error(const std::string& where, const std::string& what, Newlines newlines = Newlines::kEscape)
      : std::runtime_error((where.empty() ? "" : Printable(where) + ": ") +
                           Printable(what, newlines)) {}
};

}  // namespace moe
