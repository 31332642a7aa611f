"""Token ids against transformers and sentencepiece, and the kind of every token."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maira_jax.errors import UserError
from maira_jax.inputs.prompt import phrase_grounding_prompt, reporting_prompt
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.phantom.pretraining import tokenizer_files
from maira_jax.studies.study import Study

IMAGE = np.arange(16, dtype=np.uint8).reshape(4, 4)
CARD = {"indication": "Dyspnea.", "technique": "PA and lateral views of the chest.", "comparison": "None."}
BOTH = {"frontal": IMAGE, "lateral": IMAGE}
CORPUS = (
    "There is a small left pleural effusion. The heart is normal in size. No pneumothorax.",
    "Given the current frontal image only. INDICATION: Cough and fever. TECHNIQUE: AP. COMPARISON: N/A",
)


def study(**fields) -> Study:
    return Study(**({"study_id": "s", "patient_id": "p", "frontal": IMAGE} | fields))


def with_config(directory, image_size):
    (directory / "config.json").write_text(json.dumps({"vision_config": {"image_size": image_size, "patch_size": 14}}))
    return directory


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory):
    directory = with_config(tmp_path_factory.mktemp("small"), 28)
    tokenizer_files.from_corpus(CORPUS, 330, directory)
    return directory


@pytest.fixture(scope="module")
def small(small_dir) -> Tokenizer:
    return Tokenizer.from_dir(small_dir)


@pytest.fixture(scope="module")
def llama_dir(shared_data, tmp_path_factory):
    directory = with_config(tmp_path_factory.mktemp("llama"), 518)
    tokenizer_files.from_sentencepiece(shared_data / "llama-tokenizer" / "tokenizer.model", directory)
    return directory


@pytest.fixture(scope="module")
def llama(llama_dir) -> Tokenizer:
    return Tokenizer.from_dir(llama_dir)


@pytest.mark.parametrize(
    ("make", "length"),
    [
        (lambda: reporting_prompt(study()), 1455),
        (lambda: reporting_prompt(study(**BOTH, **CARD)), 2837),
        (lambda: reporting_prompt(study(**BOTH, **CARD), grounded=True), 2908),
        (lambda: reporting_prompt(study(**BOTH, prior_frontal=IMAGE), grounded=True), 4284),
        (lambda: phrase_grounding_prompt("Pleural effusion."), 1448),
    ],
    ids=["frontal", "card", "card grounded", "three images", "phrase"],
)
def test_llama_prompts_have_maira2s_lengths_and_transformers_ids(llama, llama_dir, make, length):
    from transformers import AutoTokenizer

    prompt = make()
    encoded = llama.encode(prompt)
    assert len(encoded) == encoded.n_prompt == length
    assert encoded.ids[-1] == 29871  # the prompt's last space, alone
    text = llama.text(prompt).replace("<image>", "<image>" * 1369)  # what the reference processor does
    theirs = AutoTokenizer.from_pretrained(llama_dir, local_files_only=True)
    assert encoded.ids.tolist() == theirs(text).input_ids


REPORTING = [
    {"lateral": lateral, "prior_frontal": prior, "grounded": grounded}
    for lateral in (None, IMAGE)
    for prior in (None, IMAGE)
    for grounded in (False, True)
]


def messages(study: Study, grounded: bool, phrase: str) -> list[dict]:
    """The turn that MAIRA-2's processor hands to the chat template, written out as it is there."""
    if phrase:
        texts = [
            "Given the current frontal image",
            " Repeat the following finding as a grounded phrase with bounding boxes indicating all locations where it"
            f" can be seen in the given chest X-ray image. Finding: {phrase}",
        ]
    else:
        texts = ["Given the current frontal image"]
        if study.lateral is not None and study.prior_frontal is not None:
            texts += [" the current lateral image", " and the prior frontal image"]
        elif study.lateral is not None:
            texts += [" and the current lateral image"]
        elif study.prior_frontal is not None:
            texts += [" and the prior frontal image"]
        else:
            texts = ["Given the current frontal image only"]
        prior = f" PRIOR_REPORT: {study.prior_report or 'N/A'}" if study.prior_frontal is not None else ""
        boxes = (
            " Each finding should be described as a self-contained plain-text sentence. If the finding is groundable,"
            " locate the finding in the current frontal chest X-ray image, with bounding boxes indicating all locations"
            " where it can be seen in the current frontal image. Otherwise, generate just the ungrounded finding"
            " without bounding boxes."
        )
        texts.append(
            f"{prior} Provide a description of the findings in the radiology study in comparison to the prior frontal"
            f" image.{boxes if grounded else ''} INDICATION: {study.indication or 'N/A'} TECHNIQUE:"
            f" {study.technique or 'N/A'} COMPARISON: {study.comparison or 'N/A'}"
        )
    parts = [{"index": None, "text": text, "type": "text"} for text in texts]
    for i in range(len(texts) - 1):
        parts.insert(2 * i + 1, {"index": i, "text": None, "type": "image"})
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def reports(shared_data) -> list[dict]:
    """Real reports with everything in them."""
    with (shared_data / "iu-xray-reports" / "indiana_reports.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["findings"].strip() and row["indication"].strip()]


@pytest.mark.parametrize("kind", [*range(len(REPORTING)), "phrase"])
def test_every_kind_of_prompt_has_transformers_and_sentencepieces_ids(llama, llama_dir, shared_data, reports, kind):
    """Ids of real texts: by transformers, template and all; and by sentencepiece between the image tokens."""
    import sentencepiece
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(llama_dir, local_files_only=True)
    model = str(shared_data / "llama-tokenizer" / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model)
    for number, row in enumerate(reports[::150]):
        fields = {} if kind == "phrase" else dict(REPORTING[kind])
        grounded = fields.pop("grounded", False)
        prior = reports[number]["findings"]
        technique = "PA and lateral." if number % 2 else None
        texts = {"indication": row["indication"], "comparison": row["comparison"], "technique": technique}
        of = study(**fields, **texts, prior_report=prior)
        phrase = row["findings"].split(".")[0] if kind == "phrase" else ""
        ours = llama.encode(phrase_grounding_prompt(phrase) if phrase else reporting_prompt(of, grounded)).ids.tolist()
        turn = theirs.apply_chat_template(messages(of, grounded, phrase), tokenize=False, add_generation_prompt=True)
        assert ours == theirs(turn.replace("<image>", "<image>" * 1369)).input_ids
        first, *rest = turn.split("<image>")
        wanted = [1, *pieces.encode(first)]
        for text in rest:
            # Only the first piece of a text gets the word-boundary mark: sentencepiece adds one, so it is removed
            # from a token that precedes the text.
            wanted += [32204] * 1369 + pieces.encode(f"<unk>{text}")[len(pieces.encode("<unk>")) :]
        assert ours == wanted


def test_llama_ids_are_sentencepieces_on_real_reports(llama, shared_data):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(str(shared_data / "llama-tokenizer" / "tokenizer.model"))
    with (shared_data / "iu-xray-reports" / "indiana_reports.csv").open() as file:
        reports = [row["findings"].strip() for row in csv.DictReader(file) if row["findings"].strip()][:500]
    prompt = reporting_prompt(study(frontal=None))
    n = len(llama.encode(prompt))
    for report in reports:
        encoded = llama.encode(prompt, report)
        assert encoded.ids[n:-1].tolist() == reference.encode(report)
        assert llama.decode(encoded.ids[n:]) == report


def test_trained_tokenizer_agrees_with_transformers(small, small_dir):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(small_dir, local_files_only=True)
    assert theirs.padding_side == "left" and len(theirs) == small.vocab_size
    prompt = reporting_prompt(study(indication="Ünknown  words →\n<x3>", technique=" two  spaces "))
    text = small.text(prompt).replace("<image>", "<image>" * 4)
    assert small.encode(prompt).ids.tolist() == theirs(text).input_ids


def test_every_token_has_its_kind(small):
    prompt = reporting_prompt(
        study(lateral=IMAGE, prior_frontal=IMAGE, prior_report="Small effusion.", indication="Cough.", technique="AP.")
    )
    encoded = small.encode(prompt, "The heart is normal.")
    words = {
        kind: "".join(small.pieces(encoded.ids[encoded.kinds == kind])).strip()
        for kind in Kind
        if kind not in (Kind.BOILERPLATE, Kind.IMAGE, Kind.IMAGE_LAST)
    }
    assert words == {
        Kind.PAD: "",
        Kind.BOS: "<s>",
        Kind.INDICATION: "Cough.",
        Kind.TECHNIQUE: "AP.",
        Kind.COMPARISON: "N/A",
        Kind.PRIOR_REPORT: "Small effusion.",
        Kind.FINDINGS: "The heart is normal.",
        Kind.EOS: "</s>",
    }
    (images,) = np.nonzero(encoded.ids == small.image_id)
    assert encoded.kinds[images].tolist() == [Kind.IMAGE, Kind.IMAGE, Kind.IMAGE, Kind.IMAGE_LAST] * 3
    assert encoded.kinds[-1] == Kind.EOS and encoded.kinds[0] == Kind.BOS


def test_findings_do_not_change_the_prompts_tokens(small):
    prompt = reporting_prompt(study())
    alone, whole = small.encode(prompt), small.encode(prompt, "There is a small effusion.")
    assert whole.n_prompt == len(alone)
    np.testing.assert_array_equal(whole.ids[: len(alone)], alone.ids)
    assert small.pieces(whole.ids[len(alone) : len(alone) + 1])[0].startswith(" ")


def test_grounded_findings_keep_their_boxes(small):
    findings = "<obj>There is a small effusion.<box><x1><y2><x30><y40></box></obj><obj>No pneumothorax.</obj>"
    encoded = small.encode(reporting_prompt(study(), grounded=True), findings)
    assert small.decode(encoded.ids[encoded.n_prompt :]) == findings


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_encoding(small, text):
    encoded = small.encode(reporting_prompt(study(frontal=None, indication=text)), text)
    # Leading marks of word boundaries read as spaces: the library's own decoder does the same.
    assert small.decode(encoded.ids[encoded.kinds == Kind.FINDINGS]) == text.strip().replace("\u2581", " ").strip()


def test_token_filters():
    kinds = np.asarray(list(Kind))
    names = {
        name: [Kind(kind).name for kind in kinds[token_filter_mask(kinds, name)]] for name in ("paper", "findings")
    }
    assert names == {
        "paper": ["IMAGE_LAST", "INDICATION", "TECHNIQUE", "COMPARISON", "PRIOR_REPORT", "FINDINGS"],
        "findings": ["FINDINGS"],
    }
    assert token_filter_mask(kinds, "all").sum() == len(Kind) - 1 and not token_filter_mask(kinds, "all")[Kind.PAD]
    # Of a study's images, each of which has its last token, the first.
    kinds = [[Kind.BOS, Kind.IMAGE, Kind.IMAGE_LAST, Kind.IMAGE, Kind.IMAGE_LAST], [Kind.PAD, Kind.BOS, *kinds[2:5]]]
    np.testing.assert_array_equal(token_filter_mask(np.array(kinds), "frontal"), [[0, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    both = [[0, 1, 1, 0, 1], [0, 0, 0, 1, 1]]  # "paper" has the last token of every image
    np.testing.assert_array_equal(token_filter_mask(np.array(kinds), "text_and_frontal"), both)
    with pytest.raises(UserError, match="'other'"):
        token_filter_mask(kinds, "other")


def test_batch_pads_on_the_right(small):
    rows = [
        small.encode(reporting_prompt(study(frontal=None, indication=text))) for text in ("Cough.", "Cough and fever.")
    ]
    tokens, mask, kinds = small.batch(rows, length=260)
    assert tokens.shape == mask.shape == kinds.shape == (2, 260)
    assert (tokens.dtype, mask.dtype, kinds.dtype) == (np.int32, bool, np.int8)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(tokens[i, mask[i]], row.ids)
        np.testing.assert_array_equal(kinds[i, mask[i]], row.kinds)
        np.testing.assert_array_equal(mask[i], np.arange(260) < len(row))
        assert (kinds[i, ~mask[i]] == Kind.PAD).all() and (tokens[i, ~mask[i]] == small.pad_id).all()
    with pytest.raises(ValueError, match="does not fit"):
        small.batch(rows, length=3)


def test_bad_folders_are_refused_by_name(tmp_path, small_dir):
    with pytest.raises(UserError, match="tokenizer.json does not exist"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json is not a tokenizer file"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text((small_dir / "tokenizer.json").read_text().replace("<image>", "<img>"))
    (tmp_path / "config.json").write_text((small_dir / "config.json").read_text())
    with pytest.raises(UserError, match="no token <image>"):
        Tokenizer.from_dir(tmp_path)


def test_a_token_that_only_the_models_vocabulary_has_is_its_number(small):
    assert small.pieces([small.vocab_size + 5]) == [f"<{small.vocab_size + 5}>"]
