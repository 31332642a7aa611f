"""The JobSet: what GKE must be told for a run of several hosts that restarts when it was preempted, and only then."""

import re

import pytest
import yaml

from maira_jax.run import coordinator
from maira_jax.run.processes import BAD_FLAGS, BAD_INPUT, HUNG_UP, INTERRUPTED, TERMINATED
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((ROOT / "launch" / "pod" / "jobset.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def pod(job):
    return job["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (container,) = pod["containers"]
    return container


def test_it_is_a_jobset_alone_on_its_slice(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    annotations = jobset["metadata"]["annotations"]
    assert annotations == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}


def test_bad_input_and_bad_flags_end_the_run_and_anything_else_restarts_it(jobset, job, container):
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] >= 50
    (rule,) = policy["rules"]
    assert rule == {"name": rule["name"], "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [BAD_INPUT, BAD_FLAGS],
    }
    assert job["backoffLimit"] == 0  # a lost host is the run's failure, which restarts all hosts together


def test_one_process_per_host_of_four_chips(job, pod, container):
    sides = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    hosts = next(sides) * next(sides) // chips
    assert chips == 4 and job["parallelism"] == job["completions"] == hosts
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    assert {"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_hosts_reach_each_other_and_have_time_to_save(pod, container):
    assert pod["hostNetwork"] is True and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert container["ports"] == [{"containerPort": coordinator.PORT}]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 300
    assert container["securityContext"] == {"privileged": True}


def test_the_command_is_a_stage_on_a_folder_that_all_hosts_see(pod, container):
    python, flag, module, *flags = container["command"]
    assert (python, flag) == ("python", "-m")  # no shell, which would not pass SIGTERM on
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file() and "--distributed=on" in flags
    given = dict(word.split("=", 1) for word in flags)
    assert (ROOT / given["--config"].partition(":")[0]).is_file()
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert given["--workdir"].startswith(f"{mount['mountPath']}/")
    assert given["--compilation_cache"].startswith(f"{mount['mountPath']}/")
    assert mount["name"] == volume["name"] and "persistentVolumeClaim" in volume


def test_the_exit_codes_and_the_port_that_the_page_names_are_those_of_the_commands():
    page = (ROOT / "launch" / "pod" / "README.md").read_text()
    table = {int(code): again for code, again in re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", page, re.M)}
    assert set(table) == {0, BAD_INPUT, BAD_FLAGS, HUNG_UP, INTERRUPTED, TERMINATED}
    assert [code for code, again in table.items() if again.startswith("yes")] == [TERMINATED]
    assert f"Port {coordinator.PORT} open" in page
