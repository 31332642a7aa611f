"""The atlas: self-contained, safe against what stands in a study, complete, and bounded in size."""

import html.parser
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp import atlas, stage
from interp.atlas.data import AtlasConfig, gather
from interp.exemplars import selection
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stage import Stage
from tests.helpers.interp_run import EVERYWHERE, config, make_workdir

ATTACK = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)> & \u2028 é"


class Page(html.parser.HTMLParser):
    """Elements, attributes and the content of scripts, as a browser's parser separates them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.scripts and self.inside:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("atlas"), 160)
    stage.run(config(), workdir)
    return workdir


def page_of(workdir, **section):
    cfg = config()
    cfg.atlas.update(section)
    counts = atlas.run(cfg, workdir)
    return (workdir / "atlas" / "index.html").read_text(), counts


def data_of(page):
    (data,) = [s for s, (_, a) in zip(page.scripts, scripts(page), strict=True) if a.get("type") == "application/json"]
    return json.loads(data)


def scripts(page):
    return [(tag, attrs) for tag, attrs in page.elements if tag == "script"]


def add_steering(workdir, evaluated=True):
    """Finished steer and evaluation stages in the formats of the steer package, one steered feature."""
    lines, results = [], []
    for study in range(6):
        for strength in (0.0, -2.0, 2.0, 4.0):
            settings = {"method": "add" if strength else "none", "concept": "communication" if strength else ""}
            settings |= {"feature": 4 if strength else None, "unit": "max_activation"}
            original = f"The heart is normal. {ATTACK}" if study == 0 else "The heart is normal."
            steered = f"{original} A pacemaker is present." if strength > 0 else original
            lines.append({"study": f"s{study}", "direction": "feature:4", "strength": strength, "settings": settings})
            lines[-1] |= {"original": original, "steered": steered, "finished": True}
            intended = "added" if strength > 0 else "removed" if strength else ""
            eligible = strength > 0 and study != 3
            results.append({"line": len(lines) - 1, "intended": intended, "eligible": eligible, "on_target": eligible})
            results[-1] |= {"off_target": False, "no_change": not eligible, "degenerate": ""}
            results[-1] |= {"added": ["pacemaker"] if eligible else [], "removed": [], "changed": []}
    with Stage(workdir, "steer/concepts", {}, inputs=("interp",)) as stage:
        (stage.dir / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        stage.finish({"generations": len(lines)})
    if not evaluated:
        return
    rate = {"rate": 1.0, "low": 0.9, "high": 1.0, "n": 5}
    rates = dict.fromkeys(("on_target", "off_target", "no_change", "degenerate"), rate)
    entry = {"method": "add", "concept": "communication", "feature": 4, "intended": "added", "strength": 2.0}
    with Stage(workdir, "evaluation/concepts", {}, inputs=("steer/concepts",)) as stage:
        pq.write_table(pa.Table.from_pylist(results), stage.dir / "results.parquet")
        summary = {
            "studies": 6,
            "headline": {"add": rates},
            "best": [entry | rates],
            "rates": [
                {"method": "add", "strength": strength, "concept": concept} | rates
                for strength in (2.0, 4.0)
                for concept in ("all", "communication")
            ],
        }
        files.write_json(stage.dir / "summary.json", summary)
        stage.finish({})


def test_page_refers_to_nothing_outside_itself(run_dir):
    text, counts = page_of(run_dir)
    page = Page(text)
    assert counts["page"].endswith("atlas/index.html") and counts["bytes"] == len(text.encode())
    for tag, attrs in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attrs and attrs.get("href", "#").startswith("#") and "action" not in attrs
        assert not any(name.startswith("on") or name == "style" for name in attrs)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|innerHTML|insertAdjacent|eval\(", page.scripts[-1])
    # The one name that looks like an address is that of SVG, which nothing fetches.
    assert set(re.findall(r"(?:https?:)?//[\w./]+\w", text)) == {"http://www.w3.org/2000/svg"}


def test_policy_allows_only_the_pages_own_style_and_script(run_dir):
    text, _ = page_of(run_dir)
    page = Page(text)
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy
    assert f"script-src '{atlas._hash(page.scripts[-1])}'" in policy
    style = text[text.index("<style>") + 7 : text.index("</style>")]
    assert f"style-src '{atlas._hash(style)}'" in policy


def test_text_of_studies_cannot_leave_its_place(run_dir, tmp_path):
    data = gather(run_dir, AtlasConfig(4096, 6, 1, 3, 4, "concepts"))
    data["run"]["model"] = ATTACK
    data["exemplars"]["tokens"][0] = ATTACK
    data["features"]["explanation"][0] = ATTACK
    page = Page(atlas.render(data))
    assert len(scripts(page)) == 2
    assert not [tag for tag, _ in page.elements if tag == "img"]
    read = data_of(page)
    assert read["exemplars"]["tokens"][0] == read["features"]["explanation"][0] == read["run"]["model"] == ATTACK
    assert "<" not in atlas.to_script_json({"a": ATTACK}) and "\u2028" not in atlas.to_script_json({"a": ATTACK})


def test_page_holds_every_feature_and_the_judges_name(run_dir):
    data = data_of(Page(page_of(run_dir)[0]))
    table = pq.read_table(run_dir / "interp" / "features.parquet").to_pylist()
    assert data["features"]["name"] == [row["name"] for row in table]
    assert data["features"]["reason"][EVERYWHERE].startswith("silent")
    assert data["summary"]["judge"] == "offline judge (no language model)"
    assert {row["concept"] for row in data["concepts"]} >= {"communication", "pneumothorax"}
    assert data["steering"] is None and data["evaluation"] is None
    assert data["run"]["stages"] == {"export": False, "label": False, "steer": False, "evaluation": False}
    first, counts = data["features"]["histogram"][0]
    whole = table[0]["histogram"]
    assert sum(counts) == sum(whole) and counts == whole[first : first + len(counts)] and counts[0] and counts[-1]


def test_contexts_are_those_of_the_exemplars(run_dir):
    data = data_of(Page(page_of(run_dir)[0]))
    rows = pq.read_table(run_dir / "interp" / "exemplars.parquet").to_pylist()
    words = data["exemplars"]["tokens"]
    silent = selection.NON_ACTIVATING_KINDS
    known = {
        (row["feature"], row["kind"], row["study_id"], tuple(row["tokens"])): row
        for row in rows
        if row["split"] == "train"
    }
    for feature, contexts in data["exemplars"]["contexts"].items():
        kinds = [context[0] for context in contexts]
        assert kinds.count("top") <= 6 and all(kinds.count(kind) <= 3 for kind in silent)
        deciles = [context[1] for context in contexts if context[0] == "decile"]
        assert len(set(deciles)) == len(deciles) and (deciles == [] or max(deciles) <= 9)
        said = [(context[0], tuple(context[4])) for context in contexts]
        assert len(set(said)) == len(said)
        for kind, _, section, study, tokens, percents in contexts:
            row = known[int(feature), kind, study, tuple(words[t] for t in tokens)]
            assert row["section"] == section
            assert (percents == []) == (kind in silent)
            if percents:
                assert percents[row["peak"]] == max(percents)


def test_settings_bound_the_page(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir, ignore=shutil.ignore_patterns("atlas"))
    text, counts = page_of(workdir, n_features=2, n_top=1, n_decile=0, n_silent=0)
    contexts = data_of(Page(text))["exemplars"]["contexts"]
    assert len(contexts) <= 2 and all(len(rows) == 1 for rows in contexts.values())
    assert counts["features"] == 12
    with pytest.raises(UserError, match="atlas.n_top is -1"):
        page_of(workdir, n_top=-1)


def test_steering_appears_when_its_stages_have_run(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir)
    assert data_of(Page(page_of(workdir)[0]))["steering"] is None
    add_steering(workdir)
    text, _ = page_of(workdir)  # the old page is replaced, not refused
    data = data_of(Page(text))
    assert len(scripts(Page(text))) == 2
    (entry,) = data["steering"]["features"].values()
    added = [example for example in entry["examples"] if example["intended"] == "added"]
    # At the evaluated strength, the first eligible studies: the fourth is not eligible.
    assert [example["study"] for example in added] == ["s0", "s1", "s2", "s4"]
    assert all(example["strength"] == 2.0 and example["outcome"]["on_target"] for example in added)
    assert added[0]["original"].endswith(ATTACK) and added[0]["steered"].endswith("A pacemaker is present.")
    assert [row["strength"] for row in entry["rates"]] == [2.0, 4.0]
    assert data["evaluation"]["headline"]["add"]["on_target"]["rate"] == 1.0
    steered = {row["concept"]: row["steering"] for row in data["concepts"]}
    assert steered["communication"]["added"]["strength"] == 2.0 and steered["pneumothorax"] == {}


def test_steering_without_evaluation_shows_the_largest_strength(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir, ignore=shutil.ignore_patterns("atlas"))
    add_steering(workdir, evaluated=False)
    data = data_of(Page(page_of(workdir)[0]))
    examples = data["steering"]["features"]["4"]["examples"]
    assert {example["strength"] for example in examples} == {-2.0, 4.0}
    assert all(example["outcome"] is None for example in examples) and data["evaluation"] is None


def test_atlas_needs_the_interpretation(tmp_path):
    with pytest.raises(UserError, match="no finished stage wrote"):
        atlas.run(config(), tmp_path)
