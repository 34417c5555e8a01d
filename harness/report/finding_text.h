// A finding and its evidence in words.
#pragma once

#include <string>
#include <vector>

#include "harness/explain/judgement.h"

namespace moe {

// What is wrong, in one line: "missing sum over tp".
std::string TextOf(const Finding& finding);

// What, why and where: a sentence each, the first of a kind under its label.
std::vector<std::string> EvidenceOf(const Finding& finding);

// What is worth knowing of the dump and changes no verdict.
std::vector<std::string> NotesOf(const Judgement& judgement);

}  // namespace moe
