"""The image: its steps are read here, and done in a fresh virtual environment by `make drill`."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STEPS = [
    line.split(maxsplit=1)
    for line in (ROOT / "launch" / "pod" / "Dockerfile").read_text().splitlines()
    if line and not line.startswith("#")
]


def steps(name):
    return [words for step, words in STEPS if step == name]


def copies():
    """What goes where, from the root of the checkout to the working folder of the image."""
    for words in steps("COPY"):
        *sources, target = words.split()
        yield from ((ROOT / source, target) for source in sources)


def test_it_holds_every_package_and_nothing_that_is_not_there():
    assert all(source.exists() for source, _ in copies())
    found = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert found == {source.name for source, _ in copies() if source.is_dir()}
    metadata = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"}
    assert metadata == {source.name for source, _ in copies() if source.is_file()}


def test_its_python_and_its_extras_are_ours():
    (image,) = steps("FROM")
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim", image)
    assert tuple(map(int, version.groups())) >= (3, 11)
    assert steps("ARG") == ["ACCELERATOR=tpu"] and {"tpu", "gpu"} <= PROJECT["project"]["optional-dependencies"].keys()
    (command,) = steps("RUN")
    assert shlex.split(command) == ["pip", "install", "--no-cache-dir", ".[${ACCELERATOR}]"]


@pytest.mark.drill
def test_its_steps_install_what_the_commands_need(tmp_path):
    """With the wheels for CPUs: the extras are resolved and not downloaded."""
    (tmp_path / "image").mkdir()
    for source, target in copies():
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / "image" / target / ("" if source.is_dir() else source.name))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    env = os.environ | {"PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
    (command,) = steps("RUN")
    for extra in ("tpu", "gpu"):
        resolve = command.replace("install", "install --dry-run --quiet")
        done(resolve, tmp_path / "image", env | {"ACCELERATOR": extra})
    done(command.replace("[${ACCELERATOR}]", ""), tmp_path / "image", env)
    (first,) = steps("CMD")
    assert "Usage: python -m launch.train" in done(shlex.join(eval(first)), tmp_path / "image", env)
    flags = "--workdir=/nowhere --config=configs/maira2_pod.py:a,b"
    failed = subprocess.run(
        f"python -m launch.train {flags}", shell=True, cwd=tmp_path / "image", env=env, capture_output=True, text=True
    )
    assert failed.returncode == 1 and failed.stderr.startswith("error: ")


def done(command, folder, env):
    result = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout
