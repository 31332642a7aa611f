"""A server process, a client's configuration, and tasks whose right answers are known."""

import contextlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from configs import phantom as phantom_config
from interp.explainers import llm
from interp.explainers.evidence import Example, ExplainTask
from interp.explainers.judge import DetectTask
from interp.llm.client import ClientConfig
from interp.scorers import detection
from tests.helpers.paths import ROOT

# Words that a feature's examples have in common; each feature has one, made of these.
SYLLABLES = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "za"]
TUBE = 'Text that mentions "tube".'


class Server:
    """The process of tests/helpers/judge_server.py."""

    def __init__(self, process):
        self.process = process
        self.port = int(process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def control(self, **settings):
        self._call("control", json.dumps(settings).encode())

    def record(self):
        return json.loads(self._call("record", None))

    def _call(self, name, data):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{name}", data)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
            return response.read()


@contextlib.contextmanager
def serve(**settings):
    """A server for as long as the context lasts."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "judge_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            server = Server(process)
            server.control(**settings)
            yield server
        finally:
            process.kill()


def judge_config(url, **judge):
    """The phantom's configuration with a language model as its judge."""
    config = phantom_config.get_config()
    config.interpret.judge = "llm"
    config.judge.update({"base_url": url, "model": "rule", "concurrency": 200, "timeout": 20.0} | judge)
    return config


def make_judge(url, workdir, **judge):
    return llm.from_config(judge_config(url, **judge), Path(workdir))


def client_config(url, **fields):
    section = judge_config(url, **fields).judge.to_dict()
    return ClientConfig(**{name: section[name] for name in ClientConfig.__dataclass_fields__})


def word(feature):
    """The feature's word; none is a part of another."""
    digits = [feature >> shift & 15 for shift in (12, 8, 4, 0)]
    return "q" + "".join(SYLLABLES[digit] for digit in digits)


def explain_task(feature, n=4):
    """A feature that is active on its word."""
    tokens = (" Small", f" {word(feature)}", " seen", ".")
    examples = [Example("findings", (*tokens[:3], f" {i}."), (0.0, 1.0, 0.0, 0.0)) for i in range(n)]
    return ExplainTask(feature, tuple(examples), ())


def rows(feature, n=10):
    """Held-out exemplars: `n` with the feature's word, as many without."""
    kept = []
    for i in range(2 * n):
        active = i < n
        tokens = [" On", " film", f" {i}", f" {word(feature) if active else 'clear'}", "."]
        kept.append(
            {
                "split": "held_out", "kind": "decile" if active else "random", "decile": i % 10 if active else None,
                "section": "findings", "study_id": f"s{i}", "position": 7, "tokens": tokens,
                "activations": [0.0, 0.0, 0.0, float(active), 0.0], "max_activation": float(active), "peak": 3,
            }
        )  # fmt: skip
    return kept


def study(url, workdir, n, **judge):
    """Explains `n` features and scores each on ten examples: three requests a feature.

    Returns:
      The scores, None for a feature without explanation.
    """
    asked = make_judge(url, workdir, **judge)
    asked.prepare("explain", lambda: ([explain_task(feature)] for feature in range(n)), n)
    texts = [answer.text for answer in asked.explain([explain_task(feature) for feature in range(n)])]
    sets = [detection.detection_set(feature, rows(feature, 5), 5, 0) for feature in range(n)]
    asked.prepare("score", lambda: (examples.tasks(texts[examples.feature], 5) for examples in sets), n)
    return [score for score, _ in detection.run(asked, sets, texts, 5, 100, 0)]


def detect_tasks(n, text="tube"):
    """Tasks that are told apart by their number; the server answers wrongly where `text` asks for it."""
    return [DetectTask(TUBE, (f"findings: A {text} {i}.", f"findings: Clear {i}.")) for i in range(n)]
