"""The phantom: synthetic chest X-rays and reports whose truth is known, and how its model was trained and evaluated.

Everything here is for the phantom alone; work on MAIRA-2 needs none of it. `world` renders images and writes reports
from hidden findings, `pretraining` trains a small model of MAIRA-2's architecture on them, `accuracy` compares the
model's reports with the truth, and `data` holds the checkpoint that ships with the package.
"""
