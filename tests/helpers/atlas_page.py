"""The atlas of a small run: its page as a browser's parser reads it, and steering stages for it."""

import html.parser
import json

import pyarrow as pa
import pyarrow.parquet as pq

from interp.atlas import stage
from maira_jax.run import files
from maira_jax.run.stage import Stage
from tests.helpers.interp_run import config

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


def page_of(workdir):
    counts = stage.run(config(), workdir)
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
            lines.append(
                {"study_id": f"s{study}", "direction": "feature:4", "strength": strength, "settings": settings}
            )
            lines[-1] |= {"original": original, "steered": steered, "finished": True}
            intended = "added" if strength > 0 else "removed" if strength else ""
            eligible = strength > 0 and study != 3
            results.append({"line": len(lines) - 1, "intended": intended, "eligible": eligible, "on_target": eligible})
            results[-1] |= {"off_target": False, "no_change": not eligible, "degenerate": ""}
            results[-1] |= {"added": ["pacemaker"] if eligible else [], "removed": [], "changed": []}
    with Stage(workdir, "steer/concepts", {}, inputs=("interp",)) as finished:
        (finished.dir / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        finished.finish({"generations": len(lines)})
    if not evaluated:
        return
    rate = {"rate": 1.0, "low": 0.9, "high": 1.0, "n": 5}
    rates = dict.fromkeys(("on_target", "off_target", "no_change", "degenerate"), rate)
    entry = {"method": "add", "concept": "communication", "feature": 4, "intended": "added", "strength": 2.0}
    with Stage(workdir, "evaluation/concepts", {}, inputs=("steer/concepts",)) as finished:
        pq.write_table(pa.Table.from_pylist(results), finished.dir / "results.parquet")
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
        files.write_json(finished.dir / "summary.json", summary)
        finished.finish({})
