// Steps that differ in one option of the model: what a framework computes that applies the score on
// the other side of the experts, or forgets to normalise it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "harness/explain/hypothesis.h"

namespace moe {

class FormulaCauses {
 public:
  // Must be outlived by what it is made of.
  FormulaCauses(const Manifest& manifest, const reference::Problem& problem,
                const reference::Routing& routing);

  // Forgets those under which a tensor that is right would be wrong.
  void Require(const Suspect& right);

  // As if one option of the model were another: what all ranks would hold.
  std::vector<Fit> Find(const Suspect& suspect) const;

 private:
  struct Variant {
    std::string option;  // "score_placement"
    std::string value;   // "before_experts"
    Manifest manifest;
    std::unique_ptr<Ledger> ledger;  // points to the manifest
  };

  std::vector<std::unique_ptr<Variant>> variants_;
};

}  // namespace moe
