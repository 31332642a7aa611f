"""The commands of the README and of the guide, run one after the other as a reader would: they work as written."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from maira_jax.studies.readers import phantom
from tests.helpers import python_cells
from tests.helpers.readme_run import COMMAND, SMALL, WORKDIR, flags, shell
from tests.launch.demo_test import SMALL_OF_IMAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
SECTIONS = ("indication", "technique", "comparison", "prior_report")
# Why a command is not run here. Everything else that the README shows is.
NOT_RUN = {
    "make demo": "installs, then runs launch.demo, as the first command below does",
    "pip install -e '.[gpu]'": "installs",
    "python -m launch.convert --workdir=runs/maira2 --checkpoint=~/maira-2 --dtype=bfloat16": "needs MAIRA-2's weights",
    "python -m launch.demo --workdir=runs/maira2 --config=configs/maira2.py:~/maira-2,studies.jsonl": "likewise",
    "python -m launch.harvest --workdir=runs/maira2 --config=configs/maira2.py:~/maira-2,studies.jsonl": "likewise",
    "python -m launch.train --workdir=runs/maira2": "likewise",
    "python -m launch.interpret --workdir=runs/first --config.interpret.judge=llm --config.judge.model=NAME "
    "--config.judge.base_url=http://127.0.0.1:8000/v1": "needs a language model's server",
    "python -m launch.harvest --workdir=runs/encoder --config.harvest.encoder=medclip_resnet50 "
    "--config.harvest.weights=~/medclip": "needs MedCLIP's weights",
    "python -m launch.interpret --config=configs/medsae.py --workdir=runs/medsae --config.interpret.judge=llm "
    "--config.judge.model=google/medgemma-4b-it "
    "--config.judge.base_url=http://127.0.0.1:8000/v1": "needs a vision model's server",
    "python -m launch.demo --config=configs/medsae.py --workdir=runs/medsae": "tests/launch/demo_test.py does, smaller",
    "python -m launch.demo --config=configs/medsae.py:chexpert:~/CheXpert-v1.0-small --workdir=runs/chexpert "
    "--config.harvest.weights=~/medclip --config.train.steps=10000": "needs CheXpert and MedCLIP's weights",
    "python -m launch.harvest --config=configs/medsae.py:chexpert:~/CheXpert-v1.0-small --workdir=runs/chexpert_sweep "
    "--config.harvest.weights=~/medclip --config.train.steps=10000": "likewise",
    "python -m launch.sweep --workdir=runs/chexpert_sweep "
    "--config.sweep.l1s=0.03,0.1,0.3 --config.sweep.learning_rates=5e-4,1e-3 "
    "--config.sweep.expansions=8,16": "likewise",
    "python -m launch.similar --workdir=runs/medsae "
    "--study_id=phantom-1-000002": "tests/interp/medsae/similar_test.py does",
    "python -m launch.atlas --workdir=runs/medsae": "tests/launch/demo_test.py does, smaller",
    "python -m launch.convert --workdir=runs/released --config=configs/maira2.py:~/maira-2,studies.jsonl": "likewise",
    "python -m launch.harvest --workdir=runs/released": "likewise",
    "python -m launch.import_sae --workdir=runs/released --sae=~/maira-2-sae": "tests/launch/import_sae_test.py does",
    "python -m launch.import_sae --workdir=runs/released --set=released --interpretations=names.csv "
    "--columns=feature=latent,explanation=description,score=auroc": "likewise",
    "python -m launch.interpret --workdir=runs/released": "likewise",
    "python -m launch.interpret --workdir=runs/released --set=released": "likewise",
    "python -m launch.steer --workdir=runs/released --sweep=effusion "
    '--match="pleural effusion" --set=released': "likewise",
    "python -m launch.convert --workdir=runs/stepwise --config=configs/manifest.py:studies.jsonl": "as the demo",
    "python -m launch.harvest --workdir=runs/stepwise": "tests/launch/memory_test.py does, smaller",
    "python -m launch.train --workdir=runs/stepwise --config.train.steps=600": "likewise",
    "python -m launch.demo --config=configs/history.py --workdir=runs/history": "takes ten minutes; "
    "tests/steer/sweep_test.py and tests/steer/methods/learned/ do its parts",
    "python -m launch.pretrain --workdir=runs/pretrain": "takes 45 minutes",
}


# Runs that are shortened. All have the sizes of the first one, so that what one compiled the next ones read.
SHORTER = {
    "python -m launch.generate --workdir=runs/first --task=grounded --save_images --limit=4": "--limit=2",
    "python -m launch.generate --workdir=runs/first --limit=4 --task=grounded --save_images": "--limit=2",
    "python -m launch.generate --workdir=runs/first --limit=8": "--limit=3",  # more than the demo has
    "python -m launch.steer --workdir=runs/first --sweep=two --features=12,99 --strengths=-1,1 --limit=8": "--limit=2",
    "python -m launch.demo --workdir=runs/mine --config=configs/manifest.py:studies.jsonl": flags(
        {name: value for name, value in SMALL.items() if name not in ("studies.n", "steer.concepts")} | {"steer.top": 2}
    ),
    "python -m launch.demo --config=configs/medsae.py --workdir=runs/medsae_patches --config.harvest.rows=patches "
    "--config.harvest.block=0 --config.studies.n=2000 --config.sae.expansion=4": flags(
        SMALL_OF_IMAGES | {"studies.n": 300}
    ),
}


def commands():
    """Every line of the pages' shell blocks, without its comment; what several pages show is run once."""
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(" ".join(line.split("  #")[0].split()) for line in lines if line.strip()))


@pytest.fixture(scope="module")
def folder(first_run, tmp_path_factory):
    """A checkout as far as the commands can tell, with the files that the README's user has after the first command."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(first_run[0] / WORKDIR, folder / WORKDIR)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "images").mkdir()
    lines = []
    for study in phantom.studies(0, SMALL["studies.n"], seed=1, size=112):
        images = {}
        for view in ("frontal", "prior_frontal"):
            if (pixels := getattr(study, view)) is not None:
                images[view] = f"images/{study.study_id}_{view}.png"
                Image.fromarray(pixels).save(folder / images[view])
        texts = {"study_id": study.study_id, "patient_id": study.patient_id, "findings": study.findings}
        texts |= {name: text for name in SECTIONS if (text := getattr(study, name)) is not None}
        lines.append(texts | images | {"labels": dict(study.labels)})
    (folder / "studies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_every_command_not_run_is_shown():
    assert not (set(NOT_RUN) | set(SHORTER)) - set(commands())


def test_the_commands_run_as_written(folder):
    first, *others = (command for command in commands() if command not in NOT_RUN)
    assert first == COMMAND, "has been run, and made what the others begin with"
    for command in others:
        shell(folder, " ".join((command, SHORTER.get(command, ""))))


def test_the_makefile_demo_is_the_command():
    shown = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m launch.demo --workdir=runs/demo" in shown


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_the_examples_run(folder, example):
    """After the demo, whose model they read."""
    Image.fromarray(phantom.studies(0, 1, seed=4, size=112)[0].frontal).save(folder / "images" / "s1.png")
    shell(folder, f"{sys.executable} {example}")


def test_the_session_of_the_readme_is_short():
    lines = [line for line in python_cells.cells(ROOT / "README.md")[0].splitlines() if line]
    assert len(lines) <= 12 and sum("import" in line for line in lines) <= 2


def test_the_notebooks_and_the_python_of_the_pages_run(folder):
    """After the demo, in one process, whose compiled programs they share."""
    Image.fromarray(phantom.studies(0, 1, seed=4, size=112)[0].frontal).save(folder / "images" / "s1.png")
    pages = (ROOT / "README.md", ROOT / "docs" / "guide" / "session.md", *sorted((ROOT / "examples").glob("*.ipynb")))
    shell(folder, f"{sys.executable} -m tests.helpers.python_cells {' '.join(map(str, pages))}")
