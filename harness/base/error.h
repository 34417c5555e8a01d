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
  // quote files of strangers and end on a terminal.
  Error(const std::string& where, const std::string& what)
      : std::runtime_error(Printable(where.empty() ? what : where + ": " + what)) {}
};

}  // namespace moe
