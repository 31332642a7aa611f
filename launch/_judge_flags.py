"""The flags of the commands that can ask a language model."""

from launch import _main


def define() -> None:
    """Defines `--allow_remote` and `--max_cost`."""
    _main.define_switch(
        "allow_remote",
        "Prompts, which hold patient data, may leave this machine for the server that judge.base_url names.",
        "judge.allow_remote",
    )
    _main.define_shortcut(
        "max_cost",
        "Stop before this run directory has cost more US dollars; run again with a higher one, the stage resumes. Sets "
        "judge.max_cost.",
        lambda text: {"judge.max_cost": float(text)},
    )
