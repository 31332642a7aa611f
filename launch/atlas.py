"""Writes the feature browser: a folder whose page opens in any browser, from a disk, and that can be mailed as a zip.

Results: WORKDIR/atlas/index.html, data/, images/, and figures/ for a publication.
"""

from interp.atlas import stage
from launch import _main

_main.define_shortcut(
    "sweep",
    "Name of the steering sweep that comes first; the others follow. Sets steer.name.",
    lambda text: {"steer.name": text},
)
_main.define_switch(
    "deidentify",
    "Number the studies instead of naming them, and mask dates, times, long numbers and physicians' names in texts. "
    "Sets atlas.deidentify.",
    "atlas.deidentify",
)
_main.define_switch(
    "studies",
    "Show contexts, reports, images and steered reports; --nostudies leaves out all that is of single studies. Sets "
    "atlas.studies.",
    "atlas.studies",
)

if __name__ == "__main__":
    _main.main(stage.run, __doc__ or "", reads=("studies", "steer", "atlas"))
