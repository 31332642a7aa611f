"""Sessions: a model that stays loaded, for notebooks. `maira_jax.open_run` and `open_checkpoint` begin one."""

from steer.session.opening import open_checkpoint, open_run
from steer.session.session import Session

__all__ = ["Session", "open_checkpoint", "open_run"]
