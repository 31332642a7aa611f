"""The flags of the commands that can ask a language model."""

from launch import _main


def define() -> None:
    """Defines `--allow_remote` and `--max_cost`."""
    _main.define_switch(
        "allow_remote",
        "Allow prompts, which hold patient data, to be sent to another machine, the server that judge.base_url names.",
        "judge.allow_remote",
    )
    _main.define_shortcut(
        "max_cost",
        "Maximum cost of this run directory in US dollars: a stage stops before it, and resumes with a higher one. "
        "Sets judge.max_cost.",
        lambda text: {"judge.max_cost": float(text)},
    )
