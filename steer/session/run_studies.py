"""The studies of a run, by their ids; they are read when the first one is asked for."""

import functools
from collections.abc import Callable, Sequence

from maira_jax.studies.study import Study
from steer.session import near


class RunStudies:
    """The studies of a run.

    Args:
      ids: their ids, where they are known before the studies are read; None: those of `load`.
      held_out_ids: the ids of those that the autoencoder was not trained on.
      load: reads all of them.
    """

    def __init__(self, ids: Sequence[str] | None, held_out_ids: Sequence[str], load: Callable[[], Sequence[Study]]):
        self._ids, self.held_out_ids, self._load = ids, list(held_out_ids), load

    @functools.cached_property
    def ids(self) -> list[str]:
        """The ids, in the run's order."""
        return list(self._by_id if self._ids is None else self._ids)

    @functools.cached_property
    def _by_id(self) -> dict[str, Study]:
        return {study.study_id: study for study in self._load()}

    def get(self, study_id: str) -> Study:
        """The study with this id.

        Raises:
          UserError: there is none; the nearest ids are listed.
        """
        if study_id not in self._by_id:
            remedy = "choose one of run.study_ids" if self.ids else "give a maira_jax.Study, with images and text"
            raise near.unknown("study", study_id, self.ids, remedy)
        return self._by_id[study_id]
