"""Prints the table of arXiv 2507.12950 with the published figures and a run's own.

python -m launch.study_report --workdir=runs/study
"""

from pathlib import Path

from ml_collections import ConfigDict

from launch import _main
from steer import study_report

_main.define_shortcut(
    "sweep", "Name of the sweep that was evaluated. Sets steer.name.", lambda text: {"steer.name": text}
)


def run(config: ConfigDict, workdir: Path) -> dict[str, str]:
    """Prints the table."""
    print(study_report.text(config, workdir))
    return {}


if __name__ == "__main__":
    _main.main(run, __doc__ or "", reads=("seed", "steer"))
