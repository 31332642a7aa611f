"""Builds the atlas: first its data, chunk by chunk, then the page that opens them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa

from interp.atlas.chunks import ChunkWriter
from interp.atlas.disclosure import Disclosure
from interp.atlas.gathering import contexts, features, label_results, study_pages
from interp.atlas.gathering.context_words import ContextWords
from interp.atlas.gathering.image_places import ImagePlaces
from interp.atlas.gathering.overview import compared, overview
from interp.atlas.gathering.pictures import MAX_PICTURES, Picture, PictureWriter
from interp.atlas.gathering.results import is_finished, read_table, sweeps
from interp.atlas.gathering.steering import SteeringSweep
from interp.atlas.page import render
from interp.exemplars.selection import KINDS
from maira_jax.run import files
from maira_jax.run.stages.stage import MANIFEST
from sae.activations.store import ActivationStore
from sae.activations.token_rows import TokenRows


class AtlasBuild:
    """One build of the atlas of a run.

    Args:
      config: names the steering sweep that comes first, and the studies whose images are shown.
      workdir: run directory with at least the stages activations, sae and interp, and model for features of text.
      atlas: the folder to write.
      deidentify, studies: see `Disclosure`.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: Path, atlas: Path, *, deidentify: bool, studies: bool
    ):
        self._config, self._workdir, self._atlas = config, workdir, atlas
        self._disclosure = Disclosure(deidentify, studies)
        self._chunks = ChunkWriter(atlas)
        self._table = read_table(workdir / "interp" / "features.parquet")
        self._concepts = read_table(workdir / "interp" / "concepts.parquet").to_pylist()
        self._sets = features.OtherSets(workdir, self._disclosure)
        self._neurons = label_results.neurons(workdir / "label")
        self._box_scores = label_results.box_scores(workdir / "label")
        self._sweeps = [SteeringSweep.read(workdir, name) for name in sweeps(workdir, config.steer.name)]

    def run(self) -> int:
        """Writes everything, `index.html` last, and returns the number of features.

        Raises:
          UserError: a file is missing or cannot be read, or an image encoder's study is not among `config.studies`.
        """
        self._chunks.write("list", self._list())
        shown = self._studies() if self._disclosure.studies else self._without_studies()
        first = self._sweeps[0] if self._sweeps else None
        data = overview(self._workdir, self._disclosure) | shown
        for row in data["concepts"]:
            row["steering"] = first.of_concept(row) if first else None
        data["advantage"] = compared(self._workdir, first.name if first else "")
        data["sweeps"] = [{"name": sweep.name, "rates": sweep.rates(), "sets": sweep.sets} for sweep in self._sweeps]
        data["sets"], data["per_chunk"] = self._sets.summary, features.PER_CHUNK
        data["deidentified"] = self._disclosure.deidentify
        with files.atomic_path(self._atlas / "index.html") as path:
            path.write_text(render(data), encoding="utf-8")
        return self._table.num_rows

    def _list(self) -> dict[str, Any]:
        """The columns of all features, names of other sets, and the sweeps in which a feature was steered."""
        steered = {sweep.name: sorted(sweep.features) for sweep in self._sweeps}
        return features.listed(self._table, self._disclosure) | {"sets": self._sets.names, "steered": steered}

    def _priority(self) -> list[int]:
        """All features: those of concepts, steered ones, then by detection score."""
        first = [row["feature"] for row in self._concepts]
        first += [feature for sweep in self._sweeps for feature in sweep.features]
        score = np.array([-1.0 if value is None else value for value in self._table["detection"].to_pylist()])
        return list(dict.fromkeys([*first, *np.argsort(-score, kind="stable").tolist()]))

    def _studies(self) -> dict[str, Any]:
        """Writes images, the features' details with their contexts, and the studies; returns what the page needs."""
        store = ActivationStore.open(self._workdir / "activations")
        tokens, ids = store.tokens, store.studies["study_id"].combine_chunks()
        places = ImagePlaces(self._workdir, store, tokens)
        exemplars, largest = self._workdir / "interp" / "exemplars.parquet", self._table["max_activation"].to_pylist()
        survey = contexts.survey(exemplars, self._table.num_rows, ids, places).by_priority(self._priority())
        names = ids.to_pylist()
        strongest = survey.study[survey.is_top & ~survey.is_spare]
        shown = np.concatenate([self._steered(names), strongest, survey.study])
        pages = study_pages.chosen(shown, store, self._table.num_rows)
        similar = None
        if is_finished(self._workdir / "similar"):
            similar = study_pages.similar_studies(self._workdir / "similar", [names[study] for study in pages])
        writer = PictureWriter(self._config, store, places, self._atlas)
        pictures = writer.write(self._wanted(survey, pages, similar or {}, names, writer))
        found = contexts.ContextReader(exemplars, ids, largest, places, pictures, self._disclosure)
        words = self._features(found)
        self._study_chunks(store, tokens, pages, places, pictures, similar)
        self._label_chunk(store.studies, [*(study for study, _ in pictures), *(names[study] for study in pages)])
        reason = "an image cannot be read" if writer.reason and self._disclosure.deidentify else writer.reason
        return {"words": words, "no_pictures": reason, "grid": places.grid, "shows_studies": True}

    def _without_studies(self) -> dict[str, Any]:
        for begin in range(0, self._table.num_rows, features.PER_CHUNK):
            self._feature_chunk(begin, {})
        return {"words": [], "no_pictures": "", "grid": None, "shows_studies": False}

    def _steered(self, names: Sequence[str]) -> np.ndarray:
        """Rows of the studies whose steered reports are shown. int64 [n]"""
        rows = {name: row for row, name in enumerate(names)}
        pairs = (pair for sweep in self._sweeps for entry in sweep.features.values() for pair in entry["examples"])
        return np.array([rows[pair["study_id"]] for pair in pairs if pair["study_id"] in rows], np.int64)

    def _wanted(
        self,
        survey: contexts.ShownContexts,
        pages: Sequence[int],
        similar: Mapping[str, Sequence[Any]],
        names: Sequence[str],
        writer: PictureWriter,
    ) -> list[tuple[str, int]]:
        """The images that are shown, the most important first: of contexts, of study pages, of similar studies."""
        seen = survey.image >= 0
        wanted = [
            (names[study], image)
            for study, image in zip(survey.study[seen].tolist(), survey.image[seen].tolist(), strict=True)
        ]
        own = [(names[study], number) for study in pages for number in range(writer.count(names[study]))]
        # Contexts of an image encoder would take all the room.
        kept = list(dict.fromkeys(wanted))[: MAX_PICTURES - min(len(own), MAX_PICTURES // 2)]
        return list(dict.fromkeys([*kept, *own, *((other[0], 0) for found in similar.values() for other in found)]))

    def _features(self, found: contexts.ContextReader) -> list[str]:
        words, active = ContextWords(), (KINDS.index("top"), KINDS.index("decile"))
        for batch in found.batches():
            for begin in range(min(batch), max(batch) + 1, features.PER_CHUNK):
                self._feature_chunk(begin, batch)
            for feature, shown in batch.items():
                words.add(feature, (context["tokens"] for context in shown if context["kind"] in active))
        return words.write(self._chunks)

    def _feature_chunk(self, begin: int, batch: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        """Writes the details of the features from `begin` on."""
        tokens: dict[str, int] = {}
        stop = min(begin + features.PER_CHUNK, self._table.num_rows)
        rows = features.details(self._table, begin, stop, self._disclosure)
        for feature, row in enumerate(rows, start=begin):
            steered = {sweep.name: sweep.of(feature, self._disclosure) for sweep in self._sweeps}
            row |= {
                "contexts": features.contexts(batch.get(feature, ()), tokens),
                "label": self._neurons[feature] if self._neurons else None,
                "boxes": self._box_scores.get(feature, []),
                "sets": self._sets.of(feature),
                "steering": {name: entry for name, entry in steered.items() if entry},
                "selection": {
                    sweep.name: sweep.selection[feature] for sweep in self._sweeps if feature in sweep.selection
                },
            }
        self._chunks.write(f"feature-{begin // features.PER_CHUNK}", {"tokens": list(tokens), "features": rows})

    def _study_chunks(
        self,
        store: ActivationStore,
        tokens: TokenRows,
        pages: Sequence[int],
        places: ImagePlaces,
        pictures: Mapping[tuple[str, int], Picture],
        similar: Mapping[str, Sequence[Any]] | None,
    ) -> None:
        """Writes a chunk for each study that has a page, and the list of these."""
        manifest = files.read_json(self._workdir / "interp" / MANIFEST)
        length = manifest["section"].get("interpret", {}).get("context_length", 32)
        largest = self._table["max_activation"].to_pylist()
        reader = study_pages.StudyReader(
            self._workdir, store, tokens, pages, places, pictures, largest, self._disclosure, length
        )
        listed = []
        for number, study in enumerate(reader.read()):
            study_id = study.pop("id")
            if similar is not None:
                study["similar"] = [
                    [self._disclosure.study(other), cosine, shared, self._thumbnail(pictures, other)]
                    for other, cosine, shared in similar.get(study_id, ())
                ]
            self._chunks.write(f"study-{number}", study)
            strongest = [entry[0] for entry in study["features"][:3]]
            thumbnail = self._thumbnail(pictures, study_id)
            listed.append([study["name"], study["split"], strongest, thumbnail])
        self._chunks.write("studies", listed)

    def _label_chunk(self, studies: pa.Table, shown: Iterable[str]) -> None:
        """Writes the labels of the studies whose images are shown, most of which have no page, and of those with one.

        They are in the order in which these are shown: that of the store would tell whose number is whose.
        """
        labels = dict(zip(studies["study_id"].to_pylist(), studies["labels"].to_pylist(), strict=True))
        numbers: dict[str, int] = {}
        present = {
            self._disclosure.study(study_id): [
                numbers.setdefault(name, len(numbers)) for name, value in json.loads(labels[study_id]).items() if value
            ]
            for study_id in dict.fromkeys(shown)
        }
        self._chunks.write("labels", {"names": list(numbers), "present": present})

    @staticmethod
    def _thumbnail(pictures: Mapping[tuple[str, int], Picture], study_id: str) -> int | None:
        picture = pictures.get((study_id, 0))
        return picture.number if picture else None
