"""The scripts that start a run of several hosts, against programs that stand for gcloud, xpk, Slurm and Python."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

POD = ROOT / "launch" / "pod"
SCRIPTS = sorted(POD.glob("*.sh"))
STAGE = ["--", "train", "--workdir=/shared/my run", "--config=configs/maira2_pod.py:a,b"]
COMMAND = ["python", "-m", "launch.train", "--distributed=on", *STAGE[2:]]
SLICE = ["--name=n1", "--zone=z"]


@pytest.fixture
def programs(tmp_path):
    """A folder that comes first on the PATH; `add(name, script)` puts a program into it, which appends its words to
    `calls` as JSON and then runs the script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    calls.touch()

    def add(name: str, script: str = "") -> None:
        record = f"import json, sys; print(json.dumps([{name!r}, *sys.argv[1:]]), file=open({str(calls)!r}, 'a'))"
        path = folder / name
        path.write_text(f'#!/usr/bin/env bash\n{sys.executable} -c {shlex.quote(record)} "$@"\n{script}\n')
        path.chmod(0o755)

    add.folder = folder
    add.calls = lambda: [json.loads(line) for line in calls.read_text().splitlines()]
    return add


def run(script, *arguments, programs=None, cwd=None, **variables):
    path = f"{programs.folder}{os.pathsep}{os.environ['PATH']}" if programs else os.environ["PATH"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MAIRA_POD"))}
    command = ["bash", str(POD / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=env | variables | {"PATH": path}, timeout=60
    )


def printed(script, *arguments, **keywords):
    """The commands that --dry_run prints."""
    done = run(script, "--dry_run", *arguments, **keywords) if script != "tpu_vm.sh" else run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def tpu_vm(action, *arguments, **keywords):
    return printed("tpu_vm.sh", action, "--dry_run", *SLICE, *arguments, **keywords)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "accelerator, runtime",
    (("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-128", "v2-alpha-tpuv5"), ("v6e-16", "v2-alpha-tpuv6e")),
)
def test_a_slice_is_asked_for_with_the_runtime_of_its_kind(accelerator, runtime):
    create, describe = tpu_vm("create", f"--accelerator={accelerator}")
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "n1"]
    assert {"--node-id=n1", "--zone=z", f"--accelerator-type={accelerator}", f"--runtime-version={runtime}"} < {*create}
    assert "--spot" not in create and describe[4:6] == ["describe", "n1"]
    (create, _) = tpu_vm("create", f"--accelerator={accelerator}", "--spot", "--project=p", "--runtime=mine")
    assert {"--spot", "--project=p", "--runtime-version=mine"} < {*create}


def test_creating_waits_until_the_slice_is_there(programs):
    states = "touch $0.n; echo x >> $0.n; [[ $(wc -l < $0.n) -lt 3 ]] && echo PROVISIONING || echo ACTIVE"
    programs("gcloud", f"[[ $4 == describe ]] || exit 0; {states}")
    programs("sleep")
    arguments = [*SLICE, "--accelerator=v5litepod-16"]
    done = run("tpu_vm.sh", "create", *arguments, programs=programs)
    assert done.returncode == 0 and done.stdout.split() == ["PROVISIONING"] * 2
    assert ["sleep", "30"] in programs.calls()
    assert programs.calls()[0] == tpu_vm("create", "--accelerator=v5litepod-16")[0]
    programs("gcloud", "[[ $4 == describe ]] && echo SUSPENDED || true")
    done = run("tpu_vm.sh", "create", *arguments, programs=programs)
    assert done.returncode == 1 and done.stderr.startswith("error: the slice is SUSPENDED: run '")


def test_the_checkout_is_installed_on_all_hosts(tmp_path):
    archive, copy, install = tpu_vm("install")
    subprocess.run([*archive[:-1], f"--output={tmp_path / 'maira.tar.gz'}", "HEAD"], check=True)
    names = subprocess.run(["tar", "-tzf", tmp_path / "maira.tar.gz"], capture_output=True, text=True).stdout.split()
    assert "pyproject.toml" in names
    assert copy[3:5] == ["tpu-vm", "scp"] and "--worker=all" in copy and "n1:" in copy
    assert install[3:6] == ["tpu-vm", "ssh", "n1"] and "--worker=all" in install
    remote = install[-1].removeprefix("--command=")
    (extra,) = (word for word in shlex.split(remote) if word.startswith(".["))
    assert extra[2:-1] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert subprocess.run(["bash", "-n", "-c", remote]).returncode == 0


def test_a_stage_runs_on_every_host_with_its_words_unchanged(tmp_path, programs):
    (ssh,) = tpu_vm("run", *STAGE)
    assert ssh[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "n1"] and "--worker=all" in ssh
    programs("python", "exit 3")
    host = tmp_path / "maira"
    (host / ".venv").mkdir(parents=True)
    (host / ".venv" / "bin").symlink_to(programs.folder)
    (host / "launch").symlink_to(ROOT / "launch")
    subprocess.run(["bash", "-c", ssh[-1].removeprefix("--command=")], cwd=tmp_path, check=True)
    log, deadline = host / "run.log", time.monotonic() + 30
    while "ended" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.read_text() == "start 1 ended with exit code 3\n"
    assert programs.calls() == [COMMAND]


def test_each_host_has_a_log_of_its_own():
    mkdir, ssh = tpu_vm("logs", "--logs=here")
    assert mkdir == ["mkdir", "-p", "here"]
    assert {"--worker=all", "--output-directory=here", "--command=cat maira/run.log"} < {*ssh}


def test_stopping_gives_the_slice_back():
    (delete,) = tpu_vm("stop")
    assert delete[3:6] == ["queued-resources", "delete", "n1"] and delete[-2:] == ["--force", "--async"]


def test_xpk_restarts_what_was_preempted_and_gives_it_time():
    (create,) = printed("xpk.sh", "--cluster=c", *SLICE, "--tpu=v5litepod-16", "--image=i", *STAGE)
    assert create[:3] == ["xpk", "workload", "create"]
    assert shlex.split(create.pop().removeprefix("--command=")) == COMMAND
    assert {"--cluster=c", "--workload=n1", "--zone=z", "--tpu-type=v5litepod-16", "--docker-image=i"} < {*create}
    assert {"--restart-on-exit-codes=143", "--termination-grace-period-seconds=300"} < {*create}
    assert any(word.startswith("--max-restarts=") and int(word.partition("=")[2]) > 0 for word in create)


@pytest.mark.parametrize("code, requeued", ((0, False), (1, False), (143, True)))
def test_slurm_runs_one_process_per_host_and_requeues_what_was_preempted(tmp_path, programs, code, requeued):
    """sbatch runs a copy of the script on the first host, as Slurm does, and srun the command once per host."""
    programs("sbatch")
    submitted = run("slurm.sh", "--nodes=2", "--time=1:00:00", *STAGE, programs=programs)
    assert submitted.returncode == 0, submitted.stderr
    (sbatch,) = programs.calls()
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue", "--signal=TERM@300"} < {*sbatch}
    number = next(i for i, word in enumerate(sbatch) if word.endswith("slurm.sh"))
    (exported,) = (word for word in sbatch if word.startswith("--export=ALL,"))
    pod = exported.partition("MAIRA_POD=")[2]
    checkout = tmp_path / "checkout"  # with programs that stand for its environment
    shutil.copytree(pod, checkout / "launch" / "pod")
    shutil.copy(ROOT / "launch" / "train.py", checkout / "launch")
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "bin").symlink_to(programs.folder)
    programs("scontrol")
    programs("python", f"exit {code}")
    programs(
        "srun", 'while [[ $1 == --* ]]; do shift; done; code=0; for host in 1 2; do "$@" || code=$?; done; exit $code'
    )
    spooled = shutil.copy(sbatch[number], tmp_path / "slurm_script")
    job = {"SLURM_JOB_ID": "77", "MAIRA_POD": str(checkout / "launch" / "pod")}
    done = run(spooled, *sbatch[number + 1 :], programs=programs, cwd=tmp_path, **job)
    assert done.returncode == code, done.stderr
    assert [call for call in programs.calls() if call[0] == "python"] == [COMMAND] * 2
    assert (["scontrol", "requeue", "77"] in programs.calls()) == requeued


def test_a_run_is_started_again_while_it_was_preempted(programs):
    programs("python", 'echo x >> "$0.n"; [[ $(wc -l < "$0.n") -lt 3 ]] && exit 143 || exit 1')
    done = run("restart.sh", *COMMAND, programs=programs)
    assert done.returncode == 1 and programs.calls() == [COMMAND] * 3
    assert done.stderr.splitlines()[-1] == "start 3 ended with exit code 1"
    assert run("restart.sh", "true").returncode == 0 and run("restart.sh").returncode == 2


@pytest.mark.parametrize(
    "script, arguments, sentence",
    (
        ("tpu_vm.sh", [], "'' is not an action: give create, install, run, logs or stop"),
        ("tpu_vm.sh", ["create", "--name=n1"], "--zone=... is missing"),
        ("tpu_vm.sh", ["create", *SLICE], "--accelerator=... is missing"),
        ("tpu_vm.sh", ["create", *SLICE, "--accelerator=v9-8"], "--accelerator=v9-8 has no runtime known here"),
        ("tpu_vm.sh", ["logs", *SLICE, "--spott"], "--spott is not a flag: give --name=..."),
        ("tpu_vm.sh", ["run", *SLICE], "no stage is given: end with -- STAGE"),
        ("tpu_vm.sh", ["run", *SLICE, "--", "trian", "--workdir=a"], "trian is not a stage"),
        ("tpu_vm.sh", ["run", *SLICE, "--", "train"], "--workdir=DIR is missing after -- train"),
        ("xpk.sh", STAGE, "--cluster=... is missing"),
        ("xpk.sh", ["--cluster=c", f"--name={'n' * 29}", "--zone=z", "--tpu=t", "--image=i", *STAGE], "at most 28"),
        ("slurm.sh", STAGE, "--nodes=... is missing"),
        ("slurm.sh", ["--gpus=all", *STAGE], "--gpus=all is not a number"),
    ),
)
def test_what_is_missing_or_wrong_is_said_in_a_sentence(programs, script, arguments, sentence):
    for name in ("gcloud", "xpk", "sbatch"):
        programs(name)
    done = run(script, *arguments, programs=programs)
    assert done.returncode == 2 and not programs.calls()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and sentence in line


@pytest.mark.parametrize("script", ("tpu_vm.sh", "xpk.sh", "slurm.sh"))
def test_a_dry_run_runs_nothing(programs, script):
    for name in ("gcloud", "xpk", "sbatch", "git"):
        programs(name)
    if script == "tpu_vm.sh":
        for action in ("create", "install", "run", "logs", "stop"):
            assert tpu_vm(action, "--accelerator=v6e-8", *STAGE, programs=programs)
    elif script == "xpk.sh":
        assert printed(script, "--cluster=c", *SLICE, "--tpu=t", "--image=i", *STAGE, programs=programs)
    else:
        assert printed(script, "--nodes=2", "--time=1:00:00", *STAGE, programs=programs)
    assert not programs.calls()
