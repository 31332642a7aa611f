"""Writes the feature browser, one self-contained HTML file.

Result: WORKDIR/atlas/index.html.
"""

from interp.atlas import stage
from launch import _main

_main.define_shortcut(
    "sweep", "Name of the steering sweep to show. Sets steer.name.", lambda text: {"steer.name": text}
)

if __name__ == "__main__":
    _main.main(stage.run, __doc__ or "", reads=("studies", "steer"))
