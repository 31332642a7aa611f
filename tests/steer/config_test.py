"""The `steer` section: which tokens are edited, what decides a sweep, and what is refused."""

import numpy as np
import pytest

from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from steer.config import SteerSection


def test_positions_of_a_prompt() -> None:
    B, I, L, N = Kind.BOILERPLATE, Kind.IMAGE, Kind.IMAGE_LAST, Kind.INDICATION  # noqa: E741
    kinds = np.array([[Kind.PAD, Kind.BOS, I, I, L, B, I, I, L, N, B], [Kind.BOS, I, I, L, N, B, B, B, B, B, B]])

    def edited(*positions: str) -> list[str]:
        section = SteerSection.parse({"positions": positions})
        assert section.edits_prompt and not section.edits_generated
        return ["".join("01"[int(here)] for here in row) for row in section.edited(kinds)]

    assert edited("image") == ["00111011100", "01110000000"]
    assert edited("frontal") == ["00111000000", "01110000000"]
    assert edited("indication", "frontal") == ["00111000010", "01111000000"]
    assert edited("prompt") == ["01111111111", "11111111111"]


def test_findings_stand_for_generated_tokens_in_the_store() -> None:
    kinds = np.array([Kind.BOS, Kind.IMAGE, Kind.IMAGE_LAST, Kind.FINDINGS, Kind.EOS])
    assert SteerSection.parse({}).measured(kinds).tolist() == [False, False, False, True, False]
    assert SteerSection.parse({"positions": ("image",)}).measured(kinds).tolist() == [False, True, True, False, False]


def test_sizes_of_batches_do_not_decide_a_sweep_nor_does_a_set_but_by_its_content() -> None:
    computing = {"batch_studies": 3, "batch_rows": 5, "workers": 1, "dry_run": True, "set": "released"}
    section = SteerSection.parse(computing)
    assert section.computing() == computing
    assert section.deciding() == SteerSection.parse({}).deciding()


def test_strengths_are_kept_once_and_without_0() -> None:
    assert SteerSection.parse({"strengths": (2, 0, -1.0, 2.0)}).nonzero_strengths == (2.0, -1.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strengths": (0.0,)}, "steer.strengths"),
        ({"strengths": (float("nan"),)}, "steer.strengths"),
        ({"unit": "metres"}, "steer.unit"),
        ({"methods": ("magic",)}, "steer.methods"),
        ({"methods": ()}, "steer.methods is empty"),
        ({"studies": 0}, "steer.studies"),
        ({"workers": 0}, "steer.workers"),
        ({"features": (-1,)}, "steer.features"),
        ({"features": (1,), "match": "effusion"}, "exclude each other"),
        ({"features": (1,), "concepts": ("edema", "mass")}, "names 2 concepts, but the features .* for one: name one"),
        ({"match": "effusion", "concepts": ("edema", "mass")}, "names 2 concepts"),
        ({"positions": ("findings",)}, "steer.positions"),
        ({"combinations": ("5*7",)}, "steer.combinations"),
        ({"name": "../x"}, "steer.name"),
        ({"sae": "nowhere"}, "steer.features"),
        ({"temperature": -1.0}, "steer.temperature"),
        ({"top_p": 0.0}, "steer.top_p"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SteerSection.parse(values)
