"""Writes reports, grounded reports or the boxes of a phrase for the studies of the configuration.

Result: WORKDIR/reports, grounded or phrases: generations.jsonl, one line per study. Interrupted, it resumes.

  python -m launch.generate --limit=20
  python -m launch.generate --task=grounded --save_images
  python -m launch.generate --phrase="Pleural effusion." --save_images
"""

from launch import _main
from maira_jax.generation import stage

_main.define_shortcut(
    "task",
    "What to write: report, grounded (with boxes), or phrase (the boxes of a phrase). Sets generate.task.",
    lambda text: {"generate.task": text},
)
_main.define_shortcut(
    "phrase",
    "Finding to locate in every study. Sets generate.phrase, and generate.task to phrase.",
    lambda text: {"generate.phrase": text, "generate.task": stage.PHRASE},
)
_main.define_shortcut(
    "limit",
    "Maximum number of studies, counted from the first. Sets generate.studies.",
    lambda text: {"generate.studies": int(text)},
)
_main.define_switch(
    "save_images", "Draw each image with its boxes, as PNG. Sets generate.save_images.", "generate.save_images"
)
_main.define_profile("batches of texts")

if __name__ == "__main__":
    _main.main(stage.run, __doc__ or "", reads=("seed", "studies", "generate"), parallel=True)
