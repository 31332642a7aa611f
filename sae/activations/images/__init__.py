"""The harvest of an image encoder: one row of the store per frontal image, or per patch of it."""
