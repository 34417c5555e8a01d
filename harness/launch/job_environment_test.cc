// Environments as torchrun, srun and mpirun set them, without any of these being there.
#include "harness/launch/job_environment.h"

#include <gtest/gtest.h>

#include <map>

#include "harness/base/error.h"

namespace moe {
namespace {

using Variables = std::map<std::string, std::string>;

std::optional<Job> Read(const Variables& variables) {
  return JobFromEnvironment([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}

std::string Complaint(const Variables& variables) {
  try {
    Read(variables);
  } catch (const Error& error) {
    return error.what();
  }
  return "no complaint";
}

Variables With(Variables variables, const Variables& changes) {
  for (const auto& [name, value] : changes) {
    variables[name] = value;
  }
  return variables;
}

Variables Without(Variables variables, const std::string& name) {
  variables.erase(name);
  return variables;
}

const Variables kTorchrun = {{"RANK", "5"},
                             {"WORLD_SIZE", "8"},
                             {"LOCAL_RANK", "1"},
                             {"MASTER_ADDR", "node1"},
                             {"MASTER_PORT", "29500"}};
const Variables kSlurm = {{"SLURM_JOB_ID", "4711"},
                          {"SLURM_STEP_ID", "0"},
                          {"SLURM_PROCID", "3"},
                          {"SLURM_NTASKS", "4"},
                          {"SLURM_STEP_NUM_TASKS", "4"},
                          {"SLURM_LOCALID", "1"},
                          {"SLURM_JOB_NODELIST", "node[01-04,7]"}};
const Variables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                            {"OMPI_COMM_WORLD_SIZE", "2"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                            {"PMIX_NAMESPACE", "2090795009"}};
const Variables kMpich = {
    {"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};

TEST(JobEnvironment, IsNothingWhenStartedByHand) {
  EXPECT_FALSE(Read({{"PATH", "/bin"}}));
}

TEST(JobEnvironment, ReadsTorchrun) {
  const Job job = Read(kTorchrun).value();
  EXPECT_EQ(job.rank, 5);
  EXPECT_EQ(job.world_size, 8);
  EXPECT_EQ(job.local_rank, 1);
  EXPECT_EQ(job.master_addr, "node1");
  EXPECT_EQ(job.master_port, 29500);
  EXPECT_FALSE(job.store_is_served);
  EXPECT_TRUE(Read(With(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}}))->store_is_served);
  EXPECT_EQ(Read(Without(kTorchrun, "LOCAL_RANK"))->local_rank, 0);
}

TEST(JobEnvironment, PrefersTorchrunInsideSlurm) {
  EXPECT_EQ(Read(With(kSlurm, kTorchrun))->rank, 5);
}

TEST(JobEnvironment, ReadsSlurm) {
  const Job job = Read(kSlurm).value();
  EXPECT_EQ(job.rank, 3);
  EXPECT_EQ(job.world_size, 4);
  EXPECT_EQ(job.local_rank, 1);
  EXPECT_EQ(job.master_addr, "node01");
  EXPECT_GE(job.master_port, 20'000);
  EXPECT_LE(job.master_port, 60'000);
}

TEST(JobEnvironment, GivesAllRanksOfAJobTheSamePort) {
  EXPECT_EQ(Read(kSlurm)->master_port, Read(With(kSlurm, {{"SLURM_PROCID", "0"}}))->master_port);
  EXPECT_NE(Read(kSlurm)->master_port, Read(With(kSlurm, {{"SLURM_STEP_ID", "1"}}))->master_port);
  EXPECT_EQ(Read(kOpenMpi)->master_port,
            Read(With(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "0"}}))->master_port);
  EXPECT_EQ(Read(kMpich)->master_port, Read(With(kMpich, {{"PMI_RANK", "0"}}))->master_port);
}

TEST(JobEnvironment, TakesNoSlurmShellForARank) {
  EXPECT_FALSE(Read(Without(kSlurm, "SLURM_STEP_ID"))) << "sbatch";
  EXPECT_FALSE(Read(With(kSlurm, {{"SLURM_STEP_ID", "4294967291"}}))) << "sbatch, as a step";
  EXPECT_FALSE(Read(With(kSlurm, {{"SLURM_STEP_ID", "4294967290"}}))) << "salloc";
  EXPECT_FALSE(Read(
      With(kSlurm, {{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}})))
      << "srun --pty bash";
}

TEST(JobEnvironment, FindsTheFirstHost) {
  const auto host = [](const std::string& hosts) {
    return Read(With(kSlurm, {{"SLURM_JOB_NODELIST", hosts}}))->master_addr;
  };
  EXPECT_EQ(host("a,b"), "a");
  EXPECT_EQ(host("gpu-7"), "gpu-7");
  EXPECT_EQ(host("n[7,9-11]"), "n7");
  EXPECT_EQ(host("rack[2-3]n[08-09].x,other"), "rack2n08.x");
}

TEST(JobEnvironment, RefusesABrokenHostList) {
  for (const char* hosts : {"", "n[1-2", "n[]", ",a"}) {
    EXPECT_NE(Complaint(With(kSlurm, {{"SLURM_JOB_NODELIST", hosts}})).find("node[01-04,7]"),
              std::string::npos)
        << hosts;
  }
}

TEST(JobEnvironment, PrefersTheHostsOfTheStep) {
  EXPECT_EQ(Read(With(kSlurm, {{"SLURM_STEP_NODELIST", "node03"}}))->master_addr, "node03");
}

TEST(JobEnvironment, HonoursMasterAddressAndPort) {
  for (const Variables& variables : {kSlurm, kOpenMpi, kMpich}) {
    const Job job =
        Read(With(variables, {{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "1234"}})).value();
    EXPECT_EQ(job.master_addr, "10.0.0.1");
    EXPECT_EQ(job.master_port, 1234);
  }
}

TEST(JobEnvironment, ReadsOpenMpi) {
  const Job job = Read(kOpenMpi).value();
  EXPECT_EQ(job.rank, 1);
  EXPECT_EQ(job.world_size, 2);
  EXPECT_EQ(job.local_rank, 1);
  EXPECT_EQ(job.master_addr, "127.0.0.1");
}

TEST(JobEnvironment, ReadsPmi) {
  const Job job = Read(kMpich).value();
  EXPECT_EQ(job.rank, 1);
  EXPECT_EQ(job.world_size, 2);
  EXPECT_EQ(job.local_rank, 1);
  EXPECT_EQ(job.master_addr, "127.0.0.1");
}

TEST(JobEnvironment, ReadsMpirunInsideAStepOfItsDaemons) {
  const Job job = Read(With(kSlurm, kOpenMpi)).value();
  EXPECT_EQ(job.rank, 1);
  EXPECT_EQ(job.world_size, 2);
}

// What mpirun has of Slurm differs from machine to machine; where the ranks meet must not.
TEST(JobEnvironment, MeetsAtOnePlaceWhereverTheDaemonRuns) {
  const Variables spread = With(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}});
  const Job with_step = Read(With(kSlurm, spread)).value();
  const Job without = Read(With(Without(kSlurm, "SLURM_STEP_ID"), spread)).value();
  EXPECT_EQ(with_step.master_addr, "node01");
  EXPECT_EQ(with_step.master_addr, without.master_addr);
  EXPECT_EQ(with_step.master_port, without.master_port);
}

TEST(JobEnvironment, LeavesSrunWithPmi2ToSlurm) {
  const Job job = Read(With(kSlurm, {{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}})).value();
  EXPECT_EQ(job.rank, 3);
  EXPECT_EQ(job.local_rank, 1);
}

TEST(JobEnvironment, AsksWhereToMeetOnSeveralMachines) {
  EXPECT_EQ(
      Complaint(With(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}})),
      "MASTER_ADDR: not set, and only 1 of the 2 ranks are on this machine; set it to the host "
      "of rank 0 and pass it on to all ranks");
  EXPECT_EQ(
      Complaint(With(kMpich, {{"MPI_LOCALNRANKS", "1"}, {"MASTER_ADDR", "a"}})),
      "MASTER_PORT: not set, and only 1 of the 2 ranks are on this machine; choose a free port "
      "there and pass it on to all ranks");
}

TEST(JobEnvironment, NamesTheVariableAtFault) {
  const auto torchrun = [](const std::string& name, const std::string& value) {
    return Complaint(With(kTorchrun, {{name, value}}));
  };
  EXPECT_EQ(torchrun("RANK", "abc"), "RANK: 'abc' is not a whole number; use 0 to 2147483647");
  EXPECT_EQ(torchrun("RANK", "1x"), "RANK: '1x' is not a whole number; use 0 to 2147483647");
  EXPECT_EQ(torchrun("RANK", "-1"), "RANK: -1 is out of range; use 0 to 2147483647");
  EXPECT_EQ(torchrun("RANK", "8"), "RANK: 8 is not below WORLD_SIZE 8; use 0 to 7");
  EXPECT_EQ(torchrun("WORLD_SIZE", "0"), "WORLD_SIZE: 0 is out of range; use 1 to 2147483647");
  EXPECT_EQ(torchrun("LOCAL_RANK", "9"), "LOCAL_RANK: 9 is not below WORLD_SIZE 8; use 0 to 7");
  EXPECT_EQ(torchrun("MASTER_PORT", "65536"), "MASTER_PORT: 65536 is out of range; use 1 to 65535");
  EXPECT_EQ(Complaint(Without(kTorchrun, "MASTER_ADDR")),
            "MASTER_ADDR: not set, although RANK is; set both or neither");
  EXPECT_EQ(Complaint(Without(kOpenMpi, "OMPI_COMM_WORLD_SIZE")),
            "OMPI_COMM_WORLD_SIZE: not set, although OMPI_COMM_WORLD_RANK is; set both or neither");
  EXPECT_EQ(Complaint(With(kSlurm, {{"SLURM_PROCID", "4"}})),
            "SLURM_PROCID: 4 is not below SLURM_STEP_NUM_TASKS 4; use 0 to 3");
}

}  // namespace
}  // namespace moe
