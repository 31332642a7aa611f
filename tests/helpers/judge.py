"""A server process, a client's configuration, and tasks whose right answers are known."""

import contextlib
import json
import subprocess
import sys
import urllib.request

from configs import phantom as phantom_config
from interp.explainers.chat_model import ChatModel
from interp.explainers.evidence import Example, ExplainTask
from interp.explainers.llm_explainer import LlmExplainer
from interp.llm.client import ChatClient
from interp.scorers.detection import DetectionScorer
from interp.scorers.judge import Question
from interp.scorers.llm_judge import LlmJudge
from interp.scorers.scorer import ScoreTask
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
    config.judge.update({"base_url": url, "model": "rule", "concurrency": 200} | judge)
    return config


def make_client(url, workdir, **judge):
    return ChatClient.open(judge_config(url, **judge), workdir)


def no_images(places):
    assert not places
    return []


def interpreters(client, n_images=0, read_images=no_images):
    """The explainer and the judge that ask a client."""
    model = ChatModel(client, n_images, read_images)
    return LlmExplainer(lambda: model), LlmJudge(lambda: model)


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


def exemplar_rows(split, n=20, n_random=None):
    """Exemplars of a feature: three of the strongest, `n` from all deciles, and as many random ones."""
    return [
        {
            "split": split, "kind": kind, "decile": i % 10 if kind == "decile" else None, "section": "findings",
            "tokens": [f" {split}", f" {kind}", f" {i}"], "activations": [0.0, 1.0 * (kind != "random"), 0.0],
            "study_id": f"s{i}", "position": i, "max_activation": 1.0 * (kind != "random"), "peak": 1,
        }
        for kind, count in (("top", 3), ("decile", n), ("random", n if n_random is None else n_random))
        for i in range(count)
    ]  # fmt: skip


def study(url, workdir, n, **judge):
    """Explains `n` features and scores each on ten examples: three requests for each feature.

    Returns:
      The scores, None for a feature without explanation.
    """
    client = make_client(url, workdir, **judge)
    explainer, llm_judge = interpreters(client)
    texts = [answer.text for answer in explainer.explain(explain_task(feature) for feature in range(n))]
    scorer = DetectionScorer(llm_judge, min_contexts=5, n_prompt=5, n_bootstrap=100, seed=0)
    tasks = (ScoreTask(feature, texts[feature], rows(feature, 5)) for feature in range(n))
    scores = [result.score for result in scorer.score(tasks)]
    client.close()
    return scores


def detect_questions(n, text="tube"):
    """Questions that differ by a number; the server answers wrongly where `text` asks for it."""
    return [Question(TUBE, (f"findings: A {text} {i}.", f"findings: Clear {i}.")) for i in range(n)]


def detect(client, questions):
    """The verdicts of the judge that asks a client."""
    return list(interpreters(client)[1].detect(questions))


def explain(client, tasks):
    """The explanations of the explainer that asks a client."""
    return list(interpreters(client)[0].explain(tasks))
