"""Measures where in the model, and at which tokens, each concept can be read, and where it can be written.

Reading: probes on held-out studies, from one pass of the model for all sites. Writing: reports with the difference of
means of a concept added there, and with the tokens ablated. What it takes is printed before it runs, and by --dry_run.
Result: WORKDIR/localize/sites.parquet, summary.json with a recommendation, and curve.svg.

  python -m launch.localize --sites=language.embed,language.0.resid_post,language.3.resid_post
"""

from launch import _main
from steer.localize import stage

_main.define_shortcut(
    "sites",
    "Sites to compare: language.embed,language.0.resid_post. Sets localize.sites.",
    lambda text: {"localize.sites": tuple(text.split(","))},
)

if __name__ == "__main__":
    _main.main(
        stage.run,
        __doc__ or "",
        reads=("seed", "studies", "localize", "steer"),
        estimates="localize.dry_run",
    )
