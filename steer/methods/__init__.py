"""Steering methods: one file each. Importing the package registers them in `METHODS`.

A method of your own is a subclass of `SteeringMethod`, registered in `METHODS` by a module that your configuration file
imports.
"""

from steer.methods import (  # noqa: F401  (imported to be registered)
    ablate,
    add,
    add_several,
    clamp,
    class_means,
    difference_of_means,
    probe,
    project,
    prompt,
    random,
)
from steer.methods.learned import reft_r1, smallest_set  # noqa: F401
from steer.methods.method import METHODS, MethodInputs, SteeringMethod

__all__ = ["METHODS", "MethodInputs", "SteeringMethod"]
