"""The atlas of a small run, read as its page reads it, and the stages that it shows."""

import html.parser
import json

import pyarrow as pa
import pyarrow.parquet as pq

from interp import sets
from interp.atlas import stage
from interp.atlas.chunks import read_chunk
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from tests.helpers import rewritten
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


class Atlas:
    """A finished atlas as its page reads it.

    Attributes:
      page: the parsed page.
      head: what the first view shows.
    """

    def __init__(self, folder):
        self.folder = folder
        self.page = Page((folder / "index.html").read_text())
        (data,) = [text for text, (_, a) in zip(self.page.scripts, scripts(self.page), strict=True) if "type" in a]
        self.head = json.loads(data)

    def chunk(self, name):
        return read_chunk(self.folder / "data" / f"{name}.js")

    def details(self, feature):
        found = self.chunk(f"feature-{feature // self.head['per_chunk']}")
        return found["features"][feature % self.head["per_chunk"]] | {"texts": found["tokens"]}

    def study(self, name):
        return self.chunk(f"study-{[row[0] for row in self.chunk('studies')].index(name)}")

    def text(self):
        """The page and all chunks, unpacked."""
        parts = [json.dumps(read_chunk(path)) for path in sorted((self.folder / "data").glob("*.js"))]
        return "\n".join([(self.folder / "index.html").read_text(), *parts])


def atlas_of(workdir, cfg=None):
    stage.run(cfg or atlas_config(), workdir)
    return Atlas(workdir / "atlas")


def atlas_config(**fields):
    cfg = config()
    cfg.studies.update({"n": 160, "size": 8})
    cfg.atlas.update(fields)
    return cfg


def add_hostile_texts(workdir):
    """Writes `ATTACK` into the name and the explanation of feature 4, and into a strong context of it."""
    features, exemplars = workdir / "interp" / "features.parquet", workdir / "interp" / "exemplars.parquet"
    table = pq.read_table(features)
    for column, text in (("explanation", ATTACK), ("name", f"telephone {ATTACK}")):
        values = table[column].to_pylist()
        values[4] = text
        table = table.set_column(table.column_names.index(column), table.schema.field(column), pa.array(values))
    pq.write_table(table, features)
    table = pq.read_table(exemplars)
    rows = table["tokens"].to_pylist()
    chosen = [
        i
        for i, (feature, kind, split) in enumerate(
            zip(*(table[name].to_pylist() for name in ("feature", "kind", "split")), strict=True)
        )
        if (feature, kind, split) == (4, "top", "train")
    ]
    rows[chosen[0]][0] = ATTACK
    where = table.column_names.index("tokens")
    pq.write_table(
        table.set_column(where, table.schema.field("tokens"), pa.array(rows, table.schema.types[where])), exemplars
    )
    rewritten.accept(workdir / "interp")


def add_set(workdir, name="published"):
    """A set of interpretations of two features, one of them scored."""
    with Stage(workdir, f"interpretations/{name}", {}, inputs=("sae",)) as finished:
        rows = [
            {"feature": 0, "name": "effusions", "explanation": "Pleural effusions.", "score": 8.0},
            {"feature": 4, "name": "phone calls", "explanation": f"Calls {ATTACK}.", "score": 6.5},
        ]
        pq.write_table(pa.Table.from_pylist(rows, sets.SCHEMA), finished.dir / "features.parquet")
        finished.finish({"features": 2})


def scripts(page):
    return [(tag, attrs) for tag, attrs in page.elements if tag == "script"]


# What two rules of selection made of two candidates for a concept.
SCORES = [
    {"concept": "communication", "feature": feature, "rule": rule, "score": score, "rank": rank, "chosen": rank == 1}
    for rule, ranked in {"concept": ((4, 0.9), (5, 0.8)), "pilot": ((4, 0.6),)}.items()
    for rank, (feature, score) in enumerate(ranked, start=1)
]


# The features that two methods set.
SETS = [
    {"method": method, "concept": "communication", "intended": "added", "rank": rank, "feature": feature, "value": 1.5}
    for method, features in {"class_means": (0, 1, 2), "smallest_set": (5, 4)}.items()
    for rank, feature in enumerate(features, start=1)
]


def add_steering(workdir, evaluated=True, name="concepts"):
    """Finished steer and evaluation stages in the formats of the steer package, one steered feature."""
    lines, results = [], []
    for study in range(6):
        for strength in (0.0, -2.0, 2.0, 4.0):
            settings = {"method": "add" if strength else "none", "concept": "communication" if strength else ""}
            settings |= {"feature": 4 if strength else None, "unit": "max_activation"}
            original = f"The heart is normal. {ATTACK}" if study == 0 else "The heart is normal."
            steered = f"{original} A pacemaker is present." if strength > 0 else original
            lines.append({"study_id": f"phantom-0-{study:06d}", "direction": "feature:4", "strength": strength})
            lines[-1]["settings"] = settings
            lines[-1] |= {"original": original, "steered": steered, "finished": True}
            intended = "added" if strength > 0 else "removed" if strength else ""
            eligible = strength > 0 and study != 3
            results.append({"line": len(lines) - 1, "intended": intended, "eligible": eligible, "on_target": eligible})
            results[-1] |= {"off_target": False, "no_change": not eligible, "degenerate": ""}
            results[-1] |= {"added": ["pacemaker"] if eligible else [], "removed": [], "changed": []}
    with Stage(workdir, f"steer/{name}", {}, inputs=("interp",)) as finished:
        (finished.dir / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        pq.write_table(pa.Table.from_pylist(SCORES), finished.dir / "selection.parquet")
        pq.write_table(pa.Table.from_pylist(SETS), finished.dir / "sets.parquet")
        finished.finish({"generations": len(lines)})
    if not evaluated:
        return
    rate = {"rate": 1.0, "low": 0.9, "high": 1.0, "n": 5}
    rates = dict.fromkeys(("on_target", "off_target", "no_change", "degenerate", "length"), rate)
    entry = {"method": "add", "concept": "communication", "feature": 4, "intended": "added", "strength": 2.0}
    with Stage(workdir, f"evaluation/{name}", {}, inputs=(f"steer/{name}",)) as finished:
        pq.write_table(pa.Table.from_pylist(results), finished.dir / "results.parquet")
        summary = {
            "studies": 6,
            "headline": {"add": rates},
            "selection": {"pilot": {"methods": {}, "spearman": 0.7, "low": 0.5, "high": 0.8, "n": 12}},
            "best": [entry | rates, entry | rates | {"method": "smallest_set", "strength": 1.0}],
            "rates": [
                {"method": "add", "strength": strength, "concept": concept} | rates
                for strength in (2.0, 4.0)
                for concept in ("all", "communication")
            ],
        }
        files.write_json(finished.dir / "summary.json", summary)
        finished.finish({})


def add_localize(workdir):
    """A finished localize stage, in the format of the steer package."""
    measures = {"read_auroc": 0.99, "write_on_target": 0.95, "write_off_target": 0.1, "write_no_change": 0.0}
    point = {"site": "language.0.resid_post", "depth": 1, "section": "frontal", "n": 40} | measures
    point |= {"ablate_lost": 0.9, "ablate_patches_lost": None}
    with Stage(workdir, "localize", {}) as finished:
        summary = {"recommendation": f"Steer at block 0. {ATTACK}", "concepts": ["cardiomegaly"], "points": [point]}
        files.write_json(finished.dir / "summary.json", summary | {name: point[name] for name in ("site", "section")})
        finished.finish({})
