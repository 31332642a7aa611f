"""The stage of launch.generate on a small random model, and on texts that such a model would never write."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from maira_jax.errors import UserError
from maira_jax.generation import stage
from maira_jax.generation.decode import generate
from maira_jax.generation.grounding import parse
from maira_jax.generation.report_writer import GeneratedText, ReportWriter
from maira_jax.inputs import batches, image
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from tests.helpers.dicom_file import write_dicom
from tests.helpers.imported_commands import launch
from tests.helpers.phantom_model import write_model
from tests.helpers.traces import names_in

# The second is as wide as high times two, the third the other way round, the last is 16-bit.
SHAPES = ((40, 40), (40, 80), (90, 30), (56, 56), (64, 48))
IDS = ("s1", "../s 2/<b>\n", "s3", "ß4", "s5")
WHOLE = "<obj>Left effusion.<box><x0><y0><x49><y49></box></obj><obj>No pneumothorax.</obj>"
CUT = "<obj>A nodule.<box><x80><y20><x90><y30></box><box><x1><y2></box></obj><obj>The hea"


def write_studies(folder: Path) -> Path:
    """A manifest of five studies: the second and fourth have two images, the third has a phrase."""
    rng = np.random.default_rng(0)
    lines = []
    for i, (height, width) in enumerate(SHAPES):
        deep = i == len(SHAPES) - 1
        grey = rng.integers(0, 60000 if deep else 255, (height, width)).astype(np.uint16 if deep else np.uint8)
        Image.fromarray(grey).save(folder / f"{i}.png")
        line = {"study_id": IDS[i], "patient_id": "p", "frontal": f"{i}.png", "indication": "Cough. " * i}
        if i % 2:
            line["lateral"] = "0.png"
        if i == 2:
            line["phrase"] = "Nodule."
        lines.append(json.dumps(line))
    (folder / "studies.jsonl").write_text("\n".join(lines))
    return folder / "studies.jsonl"


def make_config(manifest: Path, **fields) -> ConfigDict:
    settings = {
        "task": "report",
        "phrase": "",
        "studies": None,
        "batch_size": 2,
        "max_new_tokens": 12,
        "temperature": 1.0,
        "top_p": 0.95,
        "save_images": False,
    }
    studies = {"source": "manifest", "path": str(manifest), "n": None}
    return ConfigDict({"seed": 0, "studies": studies, "generate": settings | fields})


@pytest.fixture(scope="module", autouse=True)
def one_length():
    """All prompts of these tests are padded to one length, so that batches are of the studies in their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_N_LENGTHS", 1)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """A run directory with a model, and a manifest."""
    workdir = tmp_path_factory.mktemp("run")
    manifest = write_studies(tmp_path_factory.mktemp("data"))
    phantom = ConfigDict({"source": "phantom", "n": 12, "seed": 2, "size": 28})
    with Stage(workdir, "model", {"test": "model"}) as stage:
        write_model(stage.dir, list(load_studies(phantom)))
        stage.finish({})
    return workdir, manifest


@pytest.fixture
def workdir(inputs, tmp_path) -> Path:
    (tmp_path / "model").symlink_to(inputs[0] / "model")
    return tmp_path


@pytest.fixture(scope="module")
def written(inputs) -> tuple[dict, list[dict], int]:
    """Sampled reports, what was counted, and how many programs were compiled."""
    before = generate._cache_size()
    config = make_config(inputs[1])
    config.profile = 1
    counts = stage.run(config, inputs[0])
    return counts, lines_of(inputs[0] / "reports"), generate._cache_size() - before


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / stage.RESULT).read_text().splitlines()]


def test_a_line_a_study_in_their_order(inputs, written):
    counts, lines, _ = written
    assert tuple(line["study_id"] for line in lines) == IDS
    assert counts["studies"] == 5 and counts["tokens"] == sum(line["n_tokens"] for line in lines)
    assert all(line.keys() == {"study_id", "prompt", "findings", "n_tokens", "finished"} for line in lines)
    assert len({line["findings"] for line in lines}) == 5
    assert sorted(path.name for path in (inputs[0] / "reports").iterdir()) == ["generations.jsonl", "manifest.json"]


def test_dicom_is_read_as_the_equal_image(inputs, written, workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    manifest = write_studies(folder)
    for name in ("0.png", "4.png"):  # which is lateral too, and 16-bit
        grey = np.asarray(Image.open(folder / name)).astype(np.uint16)
        inverted = {"PhotometricInterpretation": "MONOCHROME1"} if name == "4.png" else {}
        write_dicom(folder / f"{name}.dcm", grey.max() - grey if inverted else grey, bits=16, **inverted)
    manifest.write_text(manifest.read_text().replace('0.png"', '0.png.dcm"').replace('4.png"', '4.png.dcm"'))
    stage.run(make_config(manifest), workdir)
    assert lines_of(workdir / "reports") == written[1]


def test_image_files_are_decoded_by_other_processes(inputs, written, workdir, monkeypatch):
    monkeypatch.setattr(image, "read_grey", None)  # in this process alone
    stage.run(make_config(inputs[1]), workdir)
    assert lines_of(workdir / "reports") == written[1]


def test_a_batch_is_traced(inputs, written):
    names = names_in(inputs[0] / "profile")
    assert names["generate"] == names["feed"] == 1 and names["assemble"]


def test_a_program_a_shape_whatever_the_temperature(inputs, written, workdir):
    assert written[2] == 1  # of three batches
    before = generate._cache_size()
    stage.run(make_config(inputs[1], temperature=0.0, top_p=1.0), workdir)
    assert generate._cache_size() == before
    assert lines_of(workdir / "reports") != written[1]


def test_samples_do_not_depend_on_the_batches(inputs, written, workdir):
    """Three rows in one batch, in reverse, where there were two batches."""
    one_image = inputs[1].read_text().splitlines()[::-2]
    (inputs[1].parent / "reverse.jsonl").write_text("\n".join(one_image))
    stage.run(make_config(inputs[1].parent / "reverse.jsonl", batch_size=3), workdir)
    assert lines_of(workdir / "reports") == written[1][::-2]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
def test_killed_it_ends_with_the_same_file(inputs, written, workdir, monkeypatch, batches):
    """Killed after some batches."""
    write = ReportWriter.write

    def failing(self, requests, names, plans, *trace):
        yield from write(self, requests, names, itertools.islice(plans, batches))
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ReportWriter, "write", failing)
        stage.run(make_config(inputs[1]), workdir)
    assert len(list((workdir / "reports").glob("parts/*"))) == batches
    done = []

    def counted(self, requests, names, plans, *trace):
        done.extend(plans)
        return write(self, requests, names, done)

    monkeypatch.setattr(ReportWriter, "write", counted)
    stage.run(make_config(inputs[1]), workdir)
    assert (workdir / "reports" / stage.RESULT).read_bytes() == (inputs[0] / "reports" / stage.RESULT).read_bytes()
    assert len(done) == 3 - batches and not (workdir / "reports" / "parts").exists()


def test_an_attempt_on_other_studies_is_not_continued(inputs, workdir, monkeypatch):
    write = ReportWriter.write
    manifest = inputs[1].parent / "changed.jsonl"
    manifest.write_text(inputs[1].read_text())

    def failing(*args):
        yield from write(*args)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ReportWriter, "write", failing)
        stage.run(make_config(manifest), workdir)
    manifest.write_text(inputs[1].read_text().replace("Cough.", "Fever."))
    with pytest.raises(UserError, match="is damaged or of another run"):
        stage.run(make_config(manifest), workdir)
    manifest.write_text(inputs[1].read_text())
    part = workdir / "reports" / "parts" / "000001.jsonl"
    part.write_bytes(part.read_bytes().replace(b"{", b"", 1))
    with pytest.raises(UserError, match="is damaged or of another run"):
        stage.run(make_config(manifest), workdir)


def say(monkeypatch, texts: dict[str, str]) -> list:
    """Lets the model write these texts by study; the requests it gets are returned, once it ran."""
    seen = []

    def write(self, requests, names, plans, *trace):
        seen.extend(requests)
        for batch in plans:
            yield [(row, GeneratedText(texts[names[row]], 9, True)) for row in batch.rows]

    monkeypatch.setattr(ReportWriter, "write", write)
    return seen


def test_grounded_reports_and_their_pictures(inputs, workdir, monkeypatch):
    say(monkeypatch, dict.fromkeys(IDS, WHOLE) | {"s3": CUT, "s5": "Plain."})
    config = make_config(inputs[1], task="grounded", save_images=True)
    counts = stage.run(config, workdir)
    assert {name: counts[name] for name in ("phrases", "boxes", "with_unparsed_text")} == {
        "phrases": 8,
        "boxes": 4,
        "with_unparsed_text": 1,
    }
    lines = lines_of(workdir / "grounded")
    assert lines[0]["findings"] == "Left effusion. No pneumothorax." and lines[0]["text"] == WHOLE
    assert lines[0]["phrases"][1] == {"text": "No pneumothorax.", "boxes": None, "square_boxes": None}
    # 80 wide, 40 high: the square is columns 20 to 59; bin 49 ends at 0.495 of it, cut to a whole pixel.
    assert (lines[1]["width"], lines[1]["height"]) == (80, 40)
    (box,), (square,) = lines[1]["phrases"][0]["boxes"], lines[1]["phrases"][0]["square_boxes"]
    assert square == [0.005, 0.005, 0.495, 0.495] and box == [20 / 80, 0, 39 / 80, 19 / 40]
    assert lines[2]["phrases"][0]["boxes"] == [[24 / 30, 36 / 90, 27 / 30, 39 / 90]]
    assert lines[2]["unparsed"] == ["<box><x1><y2></box>", "<obj>The hea"]
    assert lines[4]["findings"] == "Plain." and lines[4]["unparsed"] == []

    pictures = sorted((workdir / "grounded" / "images").iterdir())
    assert [path.name for path in pictures] == [
        "00000-s1.png", "00001-___s_2__b__.png", "00002-s3.png", "00003-_4.png", "00004-s5.png",
    ]  # fmt: skip
    drawn = np.asarray(Image.open(pictures[1]).convert("RGB"))[:512]  # the X-ray, 80 x 40 as 1024 x 512
    rows, columns = np.nonzero((drawn == (0x56, 0xB4, 0xE9)).all(axis=-1))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (256, 499, 0, 243)

    before = {path: path.read_bytes() for path in pictures}
    pictures[3].unlink()
    (pictures[0].parent / ".00003-_4.png.1.tmp").write_bytes(b"half")
    monkeypatch.setattr(ReportWriter, "write", None)  # nothing is generated again
    stage.run(config, workdir)
    assert {path: path.read_bytes() for path in pictures[0].parent.iterdir()} == before


def test_more_studies_continue_from_those_that_are_there(inputs, workdir, monkeypatch):
    manifest = workdir / "studies.jsonl"
    rows = [json.loads(line) | {"frontal": None, "lateral": None} for line in inputs[1].read_text().splitlines()]

    def run(n, **fields):
        seen = say(monkeypatch, {name: f"{name} of {n}" for name in IDS})
        manifest.write_text("\n".join(json.dumps(row | {"findings": "x"}) for row in rows[: n or 5]))
        counts = stage.run(make_config(manifest, **fields), workdir)
        return len(seen), counts["studies"], [line["findings"] for line in lines_of(workdir / "reports")]

    two = [f"{name} of 2" for name in IDS[:2]]
    assert run(2, studies=2) == (2, 2, two)
    assert run(5, studies=1) == (0, 2, two)  # no more than is there
    assert run(3, studies=None) == (1, 3, [*two, "s3 of 3"])  # the manifest has grown
    assert run(5, studies=4, batch_size=1) == (1, 4, [*two, "s3 of 3", f"{IDS[3]} of 5"])
    assert sorted(path.name for path in (workdir / "reports").iterdir()) == ["generations.jsonl", "manifest.json"]
    with pytest.raises(UserError, match=r"generate\.temperature \(now 0.5, there 1.0\)"):
        run(5, temperature=0.5)


def test_a_killed_attempt_at_more_studies_is_continued_by_one_at_still_more(inputs, workdir, monkeypatch):
    texts = dict.fromkeys(IDS, "Text.")
    say(monkeypatch, texts)
    stage.run(make_config(inputs[1], studies=1), workdir)
    say(monkeypatch, texts)
    write = ReportWriter.write

    def failing(*args):
        yield next(write(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(ReportWriter, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        stage.run(make_config(inputs[1], studies=4), workdir)
    assert len(lines_of(workdir / "reports")) == 1
    seen = say(monkeypatch, texts)
    assert stage.run(make_config(inputs[1], batch_size=3), workdir)["studies"] == 5
    assert len(seen) == 2 and [line["study_id"] for line in lines_of(workdir / "reports")] == list(IDS)


def test_phrases_of_the_manifest_or_one_for_all(inputs, workdir, monkeypatch):
    with pytest.raises(UserError, match="study s1 has no phrase to locate"):
        stage.run(make_config(inputs[1], task="phrase"), workdir)
    seen = say(monkeypatch, dict.fromkeys(IDS, WHOLE))
    stage.run(make_config(inputs[1], task="phrase", phrase="Effusion."), workdir)
    assert all(len(request.images) == 1 for request in seen)  # the frontal one alone
    assert {line["phrase"] for line in lines_of(workdir / "phrases")} == {"Effusion."}


def test_a_models_own_grounded_text_is_taken_apart(inputs, workdir):
    """Random tokens, coordinates among them, which decoding must not drop."""
    stage.run(make_config(inputs[1], task="grounded", studies=1, max_new_tokens=60, temperature=3.0), workdir)
    (line,) = lines_of(workdir / "grounded")
    report = parse(line["text"])
    assert "<x" in line["text"] and line["findings"] == report.plain and line["unparsed"] == list(report.unparsed)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("task", "impression", "generate.task is 'impression': choose from report, grounded or phrase"),
        ("phrase", "Effusion.", "generate.phrase is for"),
        ("save_images", True, "generate.save_images draws boxes"),
        ("batch_size", 0, "generate.batch_size is 0"),
        ("studies", 0, "generate.studies is 0"),
        ("temperature", -0.1, "generate.temperature"),
        ("temperature", float("nan"), "generate.temperature"),
        ("top_p", 0.0, "generate.top_p"),
    ],
)
def test_wrong_settings_are_refused(inputs, workdir, field, value, words):
    with pytest.raises(UserError, match=words):
        stage.run(make_config(inputs[1], **{field: value}), workdir)
    assert not (workdir / "reports").exists()


def test_a_switch_needs_no_value(tmp_path):
    result = launch("generate", f"--workdir={tmp_path}", "--save_images")
    assert result.returncode == 1 and "generate.save_images draws boxes" in result.stderr
    result = launch("generate", f"--workdir={tmp_path}", "--phrase=Effusion.", "--nosave_images")
    assert result.returncode == 1 and f"run `python -m launch.convert --workdir={tmp_path}` first" in result.stderr
