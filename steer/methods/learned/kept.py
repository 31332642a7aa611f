"""What methods have learned. An edit takes minutes, so it is kept: a killed or an extended sweep learns none twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from maira_jax.errors import UserError
from maira_jax.run import files

LEARNED = "learned"  # the folder of a sweep's learned edits


class KeptEdits:
    """The learned edits of a sweep, a JSON file each.

    Args:
      folder: the sweep's folder, in whose `learned/` they are. None learns nothing: for a rehearsal.
    """

    def __init__(self, folder: Path | None):
        self._folder = None if folder is None else folder / LEARNED

    def get(self, method: str, concept: str, learn: Callable[[], Any], rehearsed: Any) -> Any:
        """What a method has learned of a concept, as JSON has it; in a rehearsal `rehearsed`, which is of its form.

        Raises:
          UserError: the file is damaged, or another concept's.
        """
        if self._folder is None:
            return rehearsed
        path = self._folder / f"{method}-{concept.replace(' ', '-')}.json"
        if not path.is_file():
            self._folder.mkdir(exist_ok=True)
            learned = learn()
            files.write_json(path, {"learned": learned, "digest": files.digest([method, concept, learned])})
        found = files.read_object(path)
        if found.get("digest") != files.digest([method, concept, found.get("learned")]):
            raise UserError(f"{path} is damaged or of another concept: delete it and steer again")
        return found["learned"]
