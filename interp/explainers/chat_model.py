"""The language model that explains features and judges explanations: its client, and how examples are put to it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ml_collections

from interp.exemplars.shown import ImageAt
from interp.explainers.images import StudyImages
from interp.llm.client import ChatClient
from interp.llm.requests import ChatAnswer, ChatRequest, chat_request

ReadImages: TypeAlias = Callable[[Sequence[ImageAt]], list[bytes]]


class ChatModel:
    """A client and the X-rays that its requests may show.

    Attributes:
      client: asks the model, and keeps its answers.
      n_images: X-rays in an explaining prompt, at most; 0: the model reads no images.

    Args:
      client: asks the model, and keeps its answers.
      n_images: X-rays in an explaining prompt, at most; 0: the model reads no images.
      read_images: gives the PNG file of each image.
    """

    def __init__(self, client: ChatClient, n_images: int, read_images: ReadImages):
        self.client, self.n_images = client, n_images
        self._read_images = read_images

    @classmethod
    def open(cls, config: ml_collections.ConfigDict, workdir: Path) -> "ChatModel":
        """The model of the section `judge`, with the images of the section `studies`.

        Raises:
          UserError: a field is unknown or out of range, or the server is a remote one that is not allowed.
        """
        client = ChatClient.open(config, workdir)
        return cls(client, client.section.images, StudyImages(config.studies, workdir / "activations").pngs)

    def close(self) -> None:
        """Lets another process have the client's cache."""
        self.client.close()

    def request(
        self,
        prompt: Path,
        schema: type[ChatAnswer],
        data: Mapping[str, Any],
        entries: Sequence[Mapping[str, Any]],
        images: Sequence[ImageAt | None],
    ) -> ChatRequest:
        """The request that asks a prompt about numbered examples.

        Args:
          prompt: the file with the instructions.
          schema: the form of the answer.
          data: what comes before the examples.
          entries: what is said of each example.
          images: for each example the image to show with it, or None.
        """
        numbered, shown = [], []
        for number, (entry, image) in enumerate(zip(entries, images, strict=True), start=1):
            numbered.append({"example": number, **entry})
            if image is not None:
                shown.append(image)
                numbered[-1]["picture"] = len(shown)
        pictures = self._read_images(shown)
        return chat_request(prompt, {**data, "examples": numbered}, schema, n_items=len(entries), pictures=pictures)
