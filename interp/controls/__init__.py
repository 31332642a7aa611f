"""Controls: directions that nobody trained, measured like the autoencoder's features by every measure.

`control` says what one is; each has a file of its own. `matched` makes them as dense as features, to be explained.
"""

from interp.controls import principal_components as principal_components
from interp.controls import random_directions as random_directions
from interp.controls import raw_dimensions as raw_dimensions
from interp.controls import shuffled_activations as shuffled_activations
from interp.controls import shuffled_weights as shuffled_weights
from interp.controls.control import CONTROLS as CONTROLS
