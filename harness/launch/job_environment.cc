// Sources: torch/distributed/rendezvous.py (_create_c10d_store) for torchrun's store; slurm.h for
// the reserved step ids; `mpirun env` of Open MPI 4.1 for the variables that all of its ranks
// share.
#include "harness/launch/job_environment.h"

#include <fmt/core.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <system_error>

#include "harness/base/error.h"

namespace moe {
namespace {

constexpr std::int64_t kMostRanks = std::numeric_limits<std::int32_t>::max();

// Where a rank stands, and the variables that said so.
struct Place {
  std::int64_t rank;
  std::int64_t world_size;
  std::int64_t local_rank;
};

std::string Required(const EnvironmentLookup& lookup, const std::string& name,
                     const std::string& because) {
  std::optional<std::string> value = lookup(name);
  if (!value || value->empty()) {
    throw Error(name, fmt::format("not set, although {} is; set both or neither", because));
  }
  return *value;
}

std::int64_t Number(const std::string& name, const std::string& text, std::int64_t least,
                    std::int64_t most) {
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) {
    throw Error(name, fmt::format("'{}' is not a whole number; use {} to {}", text, least, most));
  }
  if (value < least || value > most) {
    throw Error(name, fmt::format("{} is out of range; use {} to {}", value, least, most));
  }
  return value;
}

std::int64_t BelowWorld(const std::string& name, const std::string& text,
                        const std::string& world_name, std::int64_t world_size) {
  const std::int64_t value = Number(name, text, 0, kMostRanks);
  if (value >= world_size) {
    throw Error(name, fmt::format("{} is not below {} {}; use 0 to {}", value, world_name,
                                  world_size, world_size - 1));
  }
  return value;
}

// Reads the three variables of one launcher; `rank_name` is known to be set.
Place ReadPlace(const EnvironmentLookup& lookup, const std::string& rank_name,
                const std::string& world_name, const std::string& local_name) {
  const std::int64_t world_size =
      Number(world_name, Required(lookup, world_name, rank_name), 1, kMostRanks);
  const std::int64_t rank =
      BelowWorld(rank_name, Required(lookup, rank_name, world_name), world_name, world_size);
  const std::string local = Required(lookup, local_name, rank_name);
  return {rank, world_size, BelowWorld(local_name, local, world_name, world_size)};
}

std::optional<Place> MoreThanOne(const Place& place) {
  return place.world_size > 1 ? std::optional(place) : std::nullopt;
}

bool InSlurmStep(const EnvironmentLookup& lookup) {
  const std::optional<std::string> step = lookup("SLURM_STEP_ID");
  if (!step || !lookup("SLURM_PROCID")) {
    return false;
  }
  // Step ids from here up are reserved: the shells of sbatch and salloc, and the step that an
  // allocation itself is (slurm.h, SLURM_MAX_NORMAL_STEP_ID).
  constexpr std::int64_t kFirstReserved = 0xfffffff0;
  return Number("SLURM_STEP_ID", *step, 0, std::numeric_limits<std::uint32_t>::max()) <
         kFirstReserved;
}

std::optional<Place> SlurmPlace(const EnvironmentLookup& lookup) {
  if (!InSlurmStep(lookup)) {
    return std::nullopt;
  }
  // SLURM_NTASKS may still be that of the allocation.
  const char* world_name = lookup("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  return MoreThanOne(ReadPlace(lookup, "SLURM_PROCID", world_name, "SLURM_LOCALID"));
}

std::optional<Place> OpenMpiPlace(const EnvironmentLookup& lookup) {
  if (!lookup("OMPI_COMM_WORLD_RANK")) {
    return std::nullopt;
  }
  return MoreThanOne(ReadPlace(lookup, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                               "OMPI_COMM_WORLD_LOCAL_RANK"));
}

std::optional<Place> PmiPlace(const EnvironmentLookup& lookup) {
  // srun --mpi=pmi2 sets PMI_RANK too, but no MPI_LOCALRANKID; then Slurm's own variables are
  // complete.
  if (!lookup("PMI_RANK") || (!lookup("MPI_LOCALRANKID") && InSlurmStep(lookup))) {
    return std::nullopt;
  }
  return MoreThanOne(ReadPlace(lookup, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"));
}

// "node[01-04,7],other" -> "node01".
std::string FirstHost(const std::string& name, const std::string& hosts) {
  std::string first;
  for (std::size_t i = 0; i < hosts.size() && hosts[i] != ','; ++i) {
    if (hosts[i] != '[') {
      first += hosts[i];
      continue;
    }
    const std::size_t close = hosts.find(']', i);
    const std::size_t end = hosts.find_first_of(",-]", i);
    if (close == std::string::npos || end == i + 1) {
      throw Error(
          name, fmt::format("'{}' is not a list of hosts; it must look like node[01-04,7]", hosts));
    }
    first += hosts.substr(i + 1, end - i - 1);
    i = close;
  }
  if (first.empty()) {
    throw Error(name, fmt::format("'{}' names no host; it must look like node[01-04,7]", hosts));
  }
  return first;
}

// The same for all ranks of a job and, most likely, for no other job on the machine.
int PortFrom(std::string_view job_name) {
  std::uint64_t hash =
      14695981039346656037ULL;  // FNV-1a, because std::hash may differ between builds
  for (const char c : job_name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  }
  constexpr std::uint64_t kFirst = 20'000;
  constexpr std::uint64_t kLast = 60'000;
  return static_cast<int>(kFirst + hash % (kLast - kFirst + 1));
}

std::optional<std::string> SlurmHost(const EnvironmentLookup& lookup) {
  for (const char* name : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"}) {
    if (const std::optional<std::string> hosts = lookup(name)) {
      return FirstHost(name, *hosts);
    }
  }
  return std::nullopt;
}

// How many ranks are on this machine, where the MPI says so.
std::optional<std::int64_t> MpiLocalSize(const EnvironmentLookup& lookup) {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}) {
    if (const std::optional<std::string> size = lookup(name)) {
      return Number(name, *size, 1, kMostRanks);
    }
  }
  return std::nullopt;
}

Error SpreadError(const std::string& name, std::int64_t local_size, std::int64_t world_size,
                  const std::string& remedy) {
  return Error(name, fmt::format("not set, and only {} of the {} ranks are on this machine; {} and "
                                 "pass it on to all ranks",
                                 local_size, world_size, remedy));
}

std::string MpiHost(const EnvironmentLookup& lookup, const Place& place) {
  const std::int64_t local_size = MpiLocalSize(lookup).value_or(place.world_size);
  if (local_size >= place.world_size) {
    return "127.0.0.1";
  }
  if (const std::optional<std::string> host = SlurmHost(lookup)) {
    return *host;
  }
  throw SpreadError("MASTER_ADDR", local_size, place.world_size, "set it to the host of rank 0");
}

std::string SlurmJobName(const EnvironmentLookup& lookup) {
  return "slurm " + lookup("SLURM_JOB_ID").value_or("") + "." +
         lookup("SLURM_STEP_ID").value_or("");
}

std::string MpiJobName(const EnvironmentLookup& lookup, const Place& place) {
  for (const char* name : {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID"}) {
    if (const std::optional<std::string> value = lookup(name)) {
      return std::string(name) + " " + *value;
    }
  }
  const std::int64_t local_size = MpiLocalSize(lookup).value_or(place.world_size);
  if (local_size < place.world_size) {
    throw SpreadError("MASTER_PORT", local_size, place.world_size, "choose a free port there");
  }
  return fmt::format("parent {}", getppid());
}

// A variable that is set to nothing counts as not set.
std::optional<std::string> NotEmpty(const EnvironmentLookup& lookup, const std::string& name) {
  const std::optional<std::string> value = lookup(name);
  return value && !value->empty() ? value : std::nullopt;
}

int PortNumber(const std::string& text) {
  return static_cast<int>(Number("MASTER_PORT", text, 1, 65'535));
}

std::optional<Job> TorchrunJob(const EnvironmentLookup& lookup) {
  if (!lookup("RANK")) {
    return std::nullopt;
  }
  Job job;
  job.world_size = Number("WORLD_SIZE", Required(lookup, "WORLD_SIZE", "RANK"), 1, kMostRanks);
  job.rank =
      BelowWorld("RANK", Required(lookup, "RANK", "WORLD_SIZE"), "WORLD_SIZE", job.world_size);
  job.local_rank =
      BelowWorld("LOCAL_RANK", lookup("LOCAL_RANK").value_or("0"), "WORLD_SIZE", job.world_size);
  job.master_addr = Required(lookup, "MASTER_ADDR", "RANK");
  job.master_port = PortNumber(Required(lookup, "MASTER_PORT", "RANK"));
  job.store_is_served = lookup("TORCHELASTIC_USE_AGENT_STORE").value_or("") == "True";
  return job;
}

Job JobAt(const Place& place) {
  Job job;
  job.rank = place.rank;
  job.world_size = place.world_size;
  job.local_rank = place.local_rank;
  return job;
}

Job SlurmJob(const EnvironmentLookup& lookup, const Place& place) {
  Job job = JobAt(place);
  std::optional<std::string> host = NotEmpty(lookup, "MASTER_ADDR");
  host = host ? host : SlurmHost(lookup);
  if (!host) {
    throw Error("MASTER_ADDR",
                "not set, and neither is SLURM_JOB_NODELIST; set it to the host of rank 0");
  }
  const std::optional<std::string> port = NotEmpty(lookup, "MASTER_PORT");
  job.master_addr = *host;
  job.master_port = port ? PortNumber(*port) : PortFrom(SlurmJobName(lookup));
  return job;
}

Job MpiJob(const EnvironmentLookup& lookup, const Place& place) {
  Job job = JobAt(place);
  const std::optional<std::string> host = NotEmpty(lookup, "MASTER_ADDR");
  const std::optional<std::string> port = NotEmpty(lookup, "MASTER_PORT");
  job.master_addr = host ? *host : MpiHost(lookup, place);
  job.master_port = port ? PortNumber(*port) : PortFrom(MpiJobName(lookup, place));
  return job;
}

}  // namespace

std::optional<Job> JobFromEnvironment(const EnvironmentLookup& lookup) {
  if (std::optional<Job> job = TorchrunJob(lookup)) {
    return job;
  }
  // The MPIs first: under Slurm their daemons are tasks of a step, on some machines of the job and
  // not on others, and the ranks inherit the daemons' variables.
  std::optional<Place> mpi = OpenMpiPlace(lookup);
  mpi = mpi ? mpi : PmiPlace(lookup);
  if (mpi) {
    return MpiJob(lookup, *mpi);
  }
  const std::optional<Place> slurm = SlurmPlace(lookup);
  return slurm ? std::optional(SlurmJob(lookup, *slurm)) : std::nullopt;
}

std::optional<Job> JobFromEnvironment() {
  return JobFromEnvironment([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  });
}

}  // namespace moe
