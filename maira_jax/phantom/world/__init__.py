"""The synthetic data: hidden findings, the images rendered from them, and the reports written about them."""
