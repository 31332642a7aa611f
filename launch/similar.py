"""Shows the studies most similar to one, by the cosine of their sparse codes, and the features that they share.

A study's code is each feature's largest activation over its tokens of label.sections. Other studies of its own patient
are left out, unless similar.same_patient is set. The codes of all studies are written once.

  python -m launch.similar --workdir=runs/first --study_id=ID

Result: a table on the screen, and WORKDIR/similar.
"""

from interp.medsae import similar_stage
from launch import _main

_main.define_shortcut("study_id", "Id of the study. Sets similar.study_id.", lambda text: {"similar.study_id": text})

if __name__ == "__main__":
    _main.main(similar_stage.run, __doc__ or "", reads=("seed", "label", "similar"), parallel=True)
