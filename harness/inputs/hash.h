// Values from indices: one well-mixed word per seed, tensor name and index, no state.
#pragma once

#include <cstdint>
#include <string>

namespace moe {

// splitmix64 (Steele, Lea and Flood 2014).
inline std::uint64_t Mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31U);
}

inline std::uint64_t KeyOf(std::uint64_t seed, const std::string& name) {
  std::uint64_t key = Mix(seed);
  for (const char c : name) {
    key = Mix(key ^ static_cast<unsigned char>(c));
  }
  return key;
}

}  // namespace moe
