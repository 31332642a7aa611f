"""The arithmetic from compiled programs to hours and dollars, on programs that are made up; no compiler is needed."""

import dataclasses
import json
import re

import numpy as np
import pytest

from configs import maira2
from launch.benches import absent_devices, fits, scaling
from launch.benches.optimised_program import OptimisedProgram
from launch.benches.scaling import CompiledRate
from launch.benches.stage_programs import Setting
from maira_jax.errors import UserError
from maira_jax.inputs.batches import reporting_request
from maira_jax.inputs.tokens import Tokenizer, token_filter_mask
from maira_jax.model.config import published
from maira_jax.phantom.pretraining import tokenizer_files
from maira_jax.studies.readers import iu_xray
from sae.training.config import CHUNK_STEPS
from tests.helpers.paths import ROOT

GIB = 2**30
# 10 studies of 100 tokens in a second, and 5,000 tokens in a second.
HARVEST = CompiledRate(4, (2, 2), 20, 2.0, GIB, 2 * GIB, 1e9, 0)
TRAIN = CompiledRate(4, (4, 1), 10_000, 2.0, GIB, 2 * GIB, 1e9, 10**6)


def test_a_store_is_filled_once_and_a_live_run_runs_the_model_for_every_token():
    cost = scaling.run_cost(HARVEST, TRAIN, tokens=9e6, kept=100, studies=36_000, nbytes=8192, price=3.0)
    assert cost.stored == 3.6e6 and cost.nbytes == 3.6e6 * 8192  # all tokens of the collection, 2.5 times
    assert cost.harvest == pytest.approx(1.0)  # 36,000 studies
    assert cost.train == pytest.approx(0.5)
    assert cost.live == pytest.approx(3.0)  # 90,000 studies, and the training
    assert cost.read == 5000 * 8192
    few = scaling.run_cost(HARVEST, TRAIN, tokens=3.6e5, kept=100, studies=36_000, nbytes=8192, price=3.0)
    assert few.stored == 3.6e5 and few.live == pytest.approx(few.harvest + few.train)


def program(flops_rows):
    """One matrix product of `flops_rows` rows, and an all-reduce over 4 devices."""
    return OptimisedProgram.parse(
        f"""HloModule jit_f, num_partitions=4

add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

ENTRY %main (x: f32[{flops_rows},8], w: f32[8,16]) -> f32[{flops_rows},16] {{
  %x = f32[{flops_rows},8] parameter(0)
  %w = f32[8,16] parameter(1)
  %y = f32[{flops_rows},16] dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %z = f32[{flops_rows},16] all-reduce(%y), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
}}
"""
    )


@dataclasses.dataclass
class Mesh:
    """What the rates need of a mesh."""

    devices: np.ndarray


def test_a_rate_is_that_of_all_hosts(monkeypatch):
    """The model runs on each host, here 4 of 4 devices; training on all, several steps a call."""
    setting = Setting(maira2.get_config(), None, Mesh(np.zeros((2, 2))), Mesh(np.zeros((16, 1))))
    facts = absent_devices.facts("v5e:4x4")
    monkeypatch.setattr(fits, "compile_stage", lambda stage, setting, batch: fits.CompiledStage(GIB, program(32)))
    harvest, train = (scaling.compiled_rate(name, setting, facts) for name in ("harvest", "train"))
    assert (harvest.devices, harvest.rows, train.devices, train.rows) == (16, 4 * 16, 16, 4096)
    flops = 2 * 32 * 8 * 16  # of each device
    assert harvest.flops == flops * 4 / 16 and train.flops == flops // CHUNK_STEPS * 16 / 4096
    assert harvest.payload == 32 * 16 * 4
    assert harvest.seconds > facts.latency and harvest.per_second == pytest.approx(64 / harvest.seconds)
    monkeypatch.setattr(fits, "compile_stage", lambda *_: fits.CompiledStage(20 * GIB, program(32)))
    with pytest.raises(UserError, match="harvest does not fit with harvest.batch_size = 16: python -m launch.bench"):
        scaling.compiled_rate("harvest", setting, facts)


def test_the_tables_have_a_row_for_each_program_and_each_run(monkeypatch, capsys):
    facts = absent_devices.facts("h100")
    setting = Setting(maira2.get_config(), published(), Mesh(np.zeros((1, 1))), Mesh(np.zeros((1, 1))))
    monkeypatch.setattr(fits, "setting_of", lambda device, config: (setting, facts))
    monkeypatch.setattr(
        scaling,
        "compiled_rate",
        lambda name, *_: dataclasses.replace(HARVEST if name == "harvest" else TRAIN, devices=2),
    )
    scaling.main(["--device=h100,8xh100", "--tokens=36e6", "--studies=100000", "--price=h100=1.5"])
    programs, runs = capsys.readouterr().out.split("\n\n")
    assert len(programs.splitlines()) == 2 + 4 and len(runs.splitlines()) == 2 + 4
    (line,) = (line for line in runs.splitlines() if line.startswith("| h100 | `all`"))
    hours = 36e6 / 2908 / 10 / 3600 + 36e6 / 5000 / 3600  # 2 devices of $1.50
    assert f"| 36 M | 0.29 TB | 0.0 GB/s | 0.34 h | 2.00 h | {hours:.2f} h, ${3 * hours:.2f} |" in line


@pytest.mark.parametrize("price", ("h100", "a100=2", "v5e=cheap", "v5e=-1"))
def test_a_price_that_cannot_be_read_is_refused(price):
    with pytest.raises(UserError, match=f"--price={price} is not KIND=DOLLARS"):
        scaling.main([f"--price={price}"])


def test_the_devices_and_their_configurations_exist():
    assert all((ROOT / config).is_file() for config, _ in scaling.SETUPS.values())
    assert {absent_devices.facts(device) for device in scaling.SETUPS} == {
        absent_devices.KINDS[kind] for kind in scaling.PRICES
    }


def test_the_prices_for_pods_are_these():
    rows = re.findall(r"^\|.*\| (\d+) x (\d+) \|.*\| \$([\d.]+) \|$", (ROOT / "launch/pod/README.md").read_text(), re.M)
    kinds = ("h100", "h100", "v5e", "v5p")
    assert [float(price) for *_, price in rows] == pytest.approx(
        [int(hosts) * int(chips) * scaling.PRICES[kind] for (hosts, chips, _), kind in zip(rows, kinds, strict=True)]
    )


def test_the_tokens_of_a_study_are_those_of_real_reports(shared_data, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"image_size": 518, "patch_size": 14}}))
    tokenizer_files.from_sentencepiece(shared_data / "llama-tokenizer" / "tokenizer.model", tmp_path)
    tokenizer, image = Tokenizer.from_dir(tmp_path), np.zeros((4, 4), np.uint8)
    studies = (
        dataclasses.replace(study, frontal=image, lateral=image)
        for study in iu_xray.read(shared_data / "iu-xray-reports")
    )
    kinds = [reporting_request(study, tokenizer, findings=study.findings).encoded.kinds for study in studies]
    assert len(kinds) == 3337
    for token_filter, expected in scaling.TOKENS_PER_STUDY.items():
        kept = np.mean([token_filter_mask(row, token_filter).sum() for row in kinds])
        assert round(kept) == expected
