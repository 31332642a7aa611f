"""Gathers what the atlas shows from the stages' files, a part of the page in each module."""
