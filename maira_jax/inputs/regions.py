"""Where the patches of an encoder's image lie in the image that it was made from."""

from typing import Literal, TypeAlias

import numpy as np

View: TypeAlias = Literal["crop", "pad"]
"""How an image becomes a square.

"crop": the short edge is resized and the centre cropped (Rad-DINO, MAIRA-2). "pad": the image is centred on a black
square of at least `MIN_PADDED_SIDE` pixels, which is resized (MedCLIP).
"""
MIN_PADDED_SIDE = 224


def patch_boxes(width: int, height: int, grid: tuple[int, int], view: View) -> np.ndarray:
    """The rectangle of every patch, in the order of the patches: row by row from the top left corner.

    Preprocessing rounds sizes and offsets to whole pixels, which moves patches by less than a pixel of the encoder's
    image or of the original one, whichever is larger; that is left out.

    Args:
      width, height: size of the original image in pixels.
      grid: rows and columns of patches.
      view: how the square was made.

    Returns:
      x, y, width and height as fractions of the original image, from its top left corner; patches of a padded square
      may lie outside of it. float64 [rows * columns, 4]
    """
    side = min(width, height) if view == "crop" else max(width, height, MIN_PADDED_SIDE)
    rows, columns = grid
    row, column = np.divmod(np.arange(rows * columns), columns)
    x, y = (width - side) / 2 + column * side / columns, (height - side) / 2 + row * side / rows  # pixels
    size = np.broadcast_to([side / columns, side / rows], (len(x), 2))
    return np.column_stack([x, y, size]) / [width, height, width, height]
