// The "model" object of case files and manifests.
#pragma once

#include "harness/base/model.h"
#include "harness/json/json_reader.h"

namespace moe {

// Reads the keys of struct Model; tokens, d_model, d_expert, experts and top_k are required, the
// others default as there. Throws Error at the key's pointer for an unknown key, a wrong type, or
// what FindFault finds.
Model ParseModel(const JsonNode& node);

// Required keys always, the others where they differ from their default.
Json ToJson(const Model& model);

}  // namespace moe
