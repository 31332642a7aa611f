"""What steering does to the model: a vector is added, features are clamped, or the model is prompted."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np

from sae.autoencoder import Sae


@dataclasses.dataclass(frozen=True)
class FeatureClamp:
    """C features of the residual stream, each of which is set to a value.

    Feature c of the residual stream x is f_c(x) = x . encoder_directions[c] + bias[c] where that is above threshold[c],
    else 0; of an autoencoder that keeps the k largest features of each token, it is what that keeps. At a strength s,
    the sum over c of (s * value[c] - f_c(x)) * decoder_directions[c] is added to x.

    Attributes:
      encoder_directions, decoder_directions: float32 [C, d_model].
      bias, threshold, value: float32 [C].
      features: int32 [C], numbers in `sae`; -1 for what is none of its features.
      sae: the autoencoder that keeps the k largest features of each token; None where features are read by themselves.
    """

    encoder_directions: np.ndarray
    decoder_directions: np.ndarray
    bias: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    features: np.ndarray
    sae: Sae | None = None

    @classmethod
    def of_features(cls, sae: Sae, values: Mapping[int, float]) -> Self:
        """Features of an autoencoder, each with its value at a strength of 1."""
        w_enc, w_dec, b_enc, b_dec = (np.asarray(sae.params[name]) for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
        numbers = list(values)
        encoder, decoder = w_enc[:, numbers].T, w_dec[numbers]  # [C, d_model]
        bias = np.array([b_enc[number] - b_dec @ w_enc[:, number] for number in numbers], np.float32)  # [C]
        threshold = np.broadcast_to(np.asarray(sae.threshold, np.float32), sae.n_features)[numbers]  # [C]
        value = np.array(list(values.values()), np.float32)  # [C]
        features, chooses = np.array(numbers, np.int32), sae if sae.per_token else None
        return cls(encoder, decoder, bias, np.maximum(threshold, 0), value, features, chooses)

    @classmethod
    def removing(cls, direction: np.ndarray) -> Self:
        """The projection of the residual stream on a direction of length 1, float32 [d_model], set to 0."""
        zero = np.zeros(1, np.float32)
        below = np.full(1, -np.inf, np.float32)
        return cls(direction[None], direction[None], zero, below, zero, np.full(1, -1, np.int32))


@dataclasses.dataclass(frozen=True)
class Intervention:
    """What is done along a direction, at any strength.

    Attributes:
      vector: float32 [d_model], the vector of length 1 that is added; zeros where nothing is added.
      unit_size: the length, in the residual stream, of a strength of 1.
      clamp: the features that are set instead.
      negative_clamp: the features that are set at a strength below 0, where they are not those of `clamp`.
      sentences: for an intervention in the prompt: by strength, the sentence added to the study's indication.
      replaces: whether the residual stream becomes what is added.
    """

    vector: np.ndarray
    unit_size: float
    clamp: FeatureClamp | None = None
    negative_clamp: FeatureClamp | None = None
    sentences: Mapping[float, str] = dataclasses.field(default_factory=dict)
    replaces: bool = False

    @classmethod
    def adding(cls, vector: np.ndarray, unit_size: float) -> Self:
        """Adds `unit_size` times `vector`, [d_model] of any length, scaled to length 1."""
        length = max(float(np.linalg.norm(vector)), 1e-12)
        return cls((vector / length).astype(np.float32), unit_size)

    @classmethod
    def replacing(cls, value: np.ndarray) -> Self:
        """Replaces the residual stream by a value, float32 [d_model], at a strength of 1."""
        return dataclasses.replace(cls.adding(value, float(np.linalg.norm(value))), replaces=True)

    @classmethod
    def setting(cls, clamp: FeatureClamp, unit_size: float, negative: FeatureClamp | None = None) -> Self:
        """Sets features; those of `negative` instead at a strength below 0."""
        return cls(np.zeros(clamp.decoder_directions.shape[1], np.float32), unit_size, clamp, negative)

    @classmethod
    def prompting(cls, sentences: Mapping[float, str], d_model: int) -> Self:
        """Edits nothing and adds a sentence to the study's indication, by strength."""
        return cls(np.zeros(d_model, np.float32), 0.0, sentences=sentences)

    @property
    def clamps(self) -> tuple[FeatureClamp, ...]:
        """All features that it sets at any strength."""
        return tuple(clamp for clamp in (self.clamp, self.negative_clamp) if clamp is not None)

    def clamp_at(self, strength: float) -> FeatureClamp | None:
        """The features that are set at a strength; None where none are."""
        if not strength:
            return None
        return self.negative_clamp if strength < 0 and self.negative_clamp else self.clamp
