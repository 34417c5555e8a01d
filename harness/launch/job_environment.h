// Which rank this process is when torchrun, srun or mpirun started it, read from the environment.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace moe {

struct Job {
  std::int64_t rank = 0;
  std::int64_t world_size = 1;
  std::int64_t local_rank = 0;  // among the ranks of this machine; picks the GPU
  std::string master_addr;      // where the ranks meet: a host name or address of rank 0
  int master_port = 0;
  // torchrun's agent already serves a TCPStore there, so rank 0 must not start one.
  bool store_is_served = false;
};

// The value of an environment variable, where it is set.
using EnvironmentLookup = std::function<std::optional<std::string>(const std::string& name)>;

// The first of these that is there; nothing when this process was started by hand:
//   torchrun  RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; LOCAL_RANK (0 when not set: launchers
//   that
//             start one process per machine leave it out)
//   Open MPI  OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_RANK
//   PMI       PMI_RANK, PMI_SIZE, MPI_LOCALRANKID: MPICH, Intel MPI
//   Slurm     SLURM_PROCID, SLURM_STEP_NUM_TASKS (or SLURM_NTASKS), SLURM_LOCALID, inside a step of
//             srun; the shells of sbatch and salloc have some of these, but no step
// The MPIs come before Slurm, because an mpirun inside a Slurm job starts its daemons as tasks of a
// step, and the ranks inherit the daemons' Slurm variables. A world of one task counts as started
// by hand, except with torchrun: it is most often a shell ("srun --pty bash") in which someone
// wants to start ranks.
//
// MASTER_ADDR and MASTER_PORT are honoured everywhere. Without them the ranks meet on 127.0.0.1
// where the MPI has all ranks on this machine, else on the first host of the Slurm step or job (an
// Error where there is none), at a port in 20000-60000 that follows from the name of the job. An
// MPI that gives its job no name is known by the parent process: start its ranks without a shell in
// between.
//
// Throws Error("RANK", "8 is not below WORLD_SIZE 8; use 0 to 7"): the variable, and what would be
// right.
std::optional<Job> JobFromEnvironment(const EnvironmentLookup& lookup);
std::optional<Job> JobFromEnvironment();  // of this process

}  // namespace moe
