"""Which process this is, by the variables that schedulers set."""

import pytest

from maira_jax.errors import UserError
from maira_jax.run import coordinator, processes

SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (*SLURM, "SLURM_NTASKS", "JAX_COORDINATOR_ADDRESS", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)


def test_slurm_says_it_and_the_port_is_the_one_that_is_open(monkeypatch):
    for name, value in (SLURM | {"SLURM_NTASKS": "2"}).items():
        monkeypatch.setenv(name, value)
    assert coordinator.detect() == ("node3:8476", 2, 1)


def test_a_job_on_one_host_is_a_run_of_one_process(monkeypatch):
    for name, value in (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}).items():
        monkeypatch.setenv(name, value)
    processes.start("on", None, True, lambda sentence, code: None)
    assert processes.count() == 1


def test_without_a_cluster_the_flags_must_say_it():
    processes.start("auto", None, True, lambda sentence, code: None)
    assert processes.count() == 1
    with pytest.raises(UserError, match="no cluster was found .*: give --coordinator=HOST:PORT"):
        processes.start("on", None, True, lambda sentence, code: None)
