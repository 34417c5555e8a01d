// Ranks as threads, for tests of what ranks do together.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "harness/parallel/communicator.h"
#include "harness/parallel/thread_group.h"

namespace moe::parallel {

// Runs body(rank, world) on a thread for each of `size` ranks; returns what each of them threw, or
// "". Who throws ends the waits of the others.
inline std::vector<std::string> OnRanks(
    std::int64_t size, std::chrono::milliseconds deadline,
    const std::function<void(std::int64_t rank, ThreadWorld& world)>& body) {
  ThreadWorld world(deadline);
  std::vector<std::string> words(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (std::int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank, world);
      } catch (const std::exception& error) {
        words[static_cast<std::size_t>(rank)] = error.what();
        world.Poison(error.what());
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return words;
}

// Runs body(communicator) on every rank of the contract's meshes; returns the first words that one
// of them threw, or "".
inline std::string OnMesh(const StepContract& contract,
                          const std::function<void(MeshCommunicator& comm)>& body) {
  const auto words =
      OnRanks(contract.meshes.dense.WorldSize(), std::chrono::seconds(10),
              [&](std::int64_t rank, ThreadWorld& world) {
                MeshCommunicator comm(contract, rank,
                                      [&](const std::vector<std::int64_t>& ranks,
                                          const std::string&) { return world.Join(ranks, rank); });
                body(comm);
              });
  for (const std::string& of_rank : words) {
    if (!of_rank.empty()) {
      return of_rank;
    }
  }
  return "";
}

}  // namespace moe::parallel
