"""Sections of the configuration: every field declared once, with its type, default, bounds and description.

A section is declared in the code that reads it:

    class ExportSection(Section, name="export"):
        \"\"\"What the autoencoder is written as, for other programs.\"\"\"

        to: tuple[str, ...] = setting(("saelens",), "Formats, each written into its own folder.", choices=formats.names)

`configs/base.py` collects the defaults, `--help` prints the descriptions, `ExportSection.of(config)` checks the values.
"""

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

import ml_collections
import pydantic
from ml_collections import config_dict
from pydantic.fields import FieldInfo

from maira_jax.errors import UserError

_BOUNDS = {
    "greater_than_equal": ("ge", "at least {}"),
    "greater_than": ("gt", "above {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "below {}"),
}
_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "True or False",
    "tuple_type": "a list: separate its members by commas, such as 1,2",
    "dict_type": "a ConfigDict",
}


def setting(
    default: Any,
    description: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Callable[[], Iterable[str]] | None = None,
    decides: bool = True,
    remembered: bool = True,
    address: bool = False,
) -> Any:
    """Declares a field of a `Section`.

    Args:
      default: the value where a configuration sets none.
      description: one sentence for `--help`: what the field means, with its unit.
      ge, gt, le, lt: bounds of the number, or of every member of the tuple.
      choices: gives the texts that the field, or every member of the tuple, may be; for what a registry holds. A fixed
        list is the type `Literal[...]` instead.
      decides: whether the field decides the result. One that only says how it is computed (a mesh, the size of a part,
        an interval between checkpoints) is recorded in the manifest and never compared; it may change the result's
        last bits, where sums are taken in another order.
      remembered: whether later commands in the same run directory take the value as their default. One that is meant
        for a single command, or that gives leave, is not.
      address: whether it is the address of a server. It is printed and written down, so it must hold no password.
    """
    extra = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices, "decides": decides, "remembered": remembered}
    extra["address"] = address
    return pydantic.Field(default, description=description, json_schema_extra=typing.cast(Any, extra))


def _extra(field: FieldInfo) -> dict[str, Any]:
    return typing.cast(dict[str, Any], field.json_schema_extra)


# Dotted names of the fields of all sections that are not remembered, and of those that are addresses.
_forgotten: set[str] = set()
_addresses: set[str] = set()


def is_remembered(name: str) -> bool:
    """Whether later commands in the same run directory take the field of this dotted name as their default."""
    return name not in _forgotten


def refuse_secrets(name: str, address: Any) -> None:
    """Refuses the address of a server that may hold a user, a password or a query, wherever they are in it.

    Args:
      name: dotted name of the field.
      address: its value.

    Raises:
      UserError: it may; the sentence does not repeat it.
    """
    if any(character in str(address) for character in "@?#"):
        raise UserError(
            f"{name} holds a user, a password or a query: leave them out, a key is read from the environment"
        )


def refuse_secrets_of(config: Mapping[str, Any]) -> None:
    """Refuses a whole configuration in which an address may hold a secret; see `refuse_secrets`.

    Raises:
      UserError: one may.
    """
    for name in sorted(_addresses):
        section, _, field = name.partition(".")
        values = config.get(section)
        if isinstance(values, Mapping | ml_collections.ConfigDict):
            refuse_secrets(name, values.get(field))


def shown(value: Any) -> str:
    """A value as messages and `--help` show it: a tuple as the command line takes it, with commas alone."""
    if not isinstance(value, (list, tuple)) or any(isinstance(member, (list, tuple, dict)) for member in value):
        return repr(value)
    return ",".join(map(str, value)) or "()"


class Section(pydantic.BaseModel):
    """One section of the configuration. Subclasses declare its fields with `setting`; instances do not change.

    Numbers must be finite, an integer is taken where a number is asked for, and nothing else is converted.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    section: ClassVar[str]

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.section = name

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        fields = cls.model_fields.items()
        _forgotten.update(cls._dotted(name) for name, field in fields if not _extra(field)["remembered"])
        _addresses.update(cls._dotted(name) for name, field in fields if _extra(field)["address"])

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The section of a whole configuration, checked; a field that it leaves out has its default.

        Raises:
          UserError: a field is unknown, of another type or out of range.
        """
        if not cls.section:  # the top level, which holds the other sections too
            return cls.parse({name: config[name] for name in cls.model_fields if name in config})
        return cls.parse(config.get(cls.section) or {})

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """The section with these values, checked as by `of`; lists, as JSON has them, are taken for tuples.

        Raises:
          UserError: a field is unknown, of another type or out of range.
        """
        if not isinstance(values, Mapping | ml_collections.ConfigDict):
            raise UserError(f"{cls.section} is {shown(values)}, not a section with fields: correct it")
        plain = values.to_dict() if isinstance(values, ml_collections.ConfigDict) else dict(values)
        try:
            found = cls(**{name: _tuples(value) for name, value in plain.items()})
        except pydantic.ValidationError as error:
            raise UserError(cls._sentence(error.errors(include_url=False)[0])) from error
        for name, field in cls.model_fields.items():
            cls._check_range(name, field, getattr(found, name))
        found.check()
        return found

    def check(self) -> None:
        """Refuses values that do not go together; for subclasses to extend.

        Raises:
          UserError: two fields contradict each other.
        """

    @classmethod
    def defaults(cls) -> ml_collections.ConfigDict:
        """All fields with their defaults, as a configuration file and the command line change them."""
        return ml_collections.ConfigDict({name: _changeable(field) for name, field in cls.model_fields.items()})

    @classmethod
    def explained(cls, config: ml_collections.ConfigDict) -> Iterator[tuple[str, Any, str]]:
        """Dotted name, value in a whole configuration, and meaning of every field."""
        given = config if not cls.section else config.get(cls.section) or {}
        values = {name: field.default for name, field in cls.model_fields.items()}
        values |= {name: _plain(given[name]) for name in values if name in given}
        for name, field in cls.model_fields.items():
            yield cls._dotted(name), values[name], _description(field)

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the result, for a stage's identity."""
        return {name: value for name, value in self.model_dump().items() if self._decides(name)}

    def computing(self) -> dict[str, Any]:
        """The fields that only say how the result is computed, for a stage's record."""
        return {name: value for name, value in self.model_dump().items() if not self._decides(name)}

    @classmethod
    def _decides(cls, name: str) -> bool:
        return bool(_extra(cls.model_fields[name])["decides"])

    @classmethod
    def _check_range(cls, name: str, field: FieldInfo, value: Any) -> None:
        """Refuses a value, or a member of a tuple, outside the field's bounds or choices."""
        extra, members = _extra(field), list(value) if isinstance(value, tuple) else [value]
        for kind, words in _BOUNDS.values():
            bound = extra[kind]
            if bound is None:
                continue
            for member in members:
                if member is not None and not _holds(kind, member, bound):
                    raise UserError(
                        f"{cls._dotted(name)} is {shown(value)}, but must be {words.format(bound)}: change it"
                    )
        if extra["choices"] is not None:
            known = tuple(extra["choices"]())
            for member in members:
                if member is not None and member not in known:
                    raise UserError(f"{cls._dotted(name)} is {member!r}: choose from {', '.join(known)}")

    @classmethod
    def _dotted(cls, name: str) -> str:
        return f"{cls.section}.{name}" if cls.section else name

    @classmethod
    def _sentence(cls, problem: Mapping[str, Any]) -> str:
        """What pydantic found wrong, in one sentence that names the field and the fix."""
        name = cls._dotted(str(problem["loc"][0]) if problem["loc"] else "")
        kind, given = problem["type"], problem["input"]
        if kind == "extra_forbidden":
            return f"{name} is unknown: the fields of {cls.section} are {', '.join(cls.model_fields)}"
        if kind == "literal_error":
            return f"{name} is {shown(given)}: choose from {problem['ctx']['expected'].replace(chr(39), '')}"
        if kind == "finite_number":
            return f"{name} is {given}, which is not a finite number: change it"
        if kind in ("missing", "too_long") and problem["loc"]:
            count = len(typing.get_args(cls.model_fields[str(problem["loc"][0])].annotation))
            return f"{name} is {shown(given)}, but must have {count} entries: change it"
        inner = " holds" if len(problem["loc"]) > 1 else " is"
        return f"{name}{inner} {shown(given)}, which is not {_TYPES.get(kind, 'valid: ' + problem['msg'])}: change it"


class RunSection(Section, name=""):
    """What the whole run shares, at the top level of the configuration."""

    seed: int = setting(0, "Seed of everything that is drawn at random.", ge=0)
    mesh: tuple[int, ...] = setting(
        (),
        "Devices along the batch, and along each layer (the features, in training); (): as few along a layer as its "
        "memory needs, and the others along the batch.",
        ge=1,
        decides=False,
    )
    profile: int = setting(
        0,
        "Steps that are traced into WORKDIR/profile, after the first: training steps, in tens; batches of harvest, "
        "generate and steer; blocks of tokens of interpret. 0: none.",
        ge=0,
        decides=False,
        remembered=False,
    )

    def check(self) -> None:
        if len(self.mesh) not in (0, 2):
            raise UserError(f"mesh is {shown(self.mesh)}, but must have two entries, or none to be chosen: change it")


def _holds(kind: str, value: float, bound: float) -> bool:
    return {"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}[kind]


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _changeable(field: FieldInfo) -> Any:
    """The default; for an open field (None) a placeholder, which takes values of the field's type alone."""
    if field.default is None:
        kinds = [kind for kind in _alternatives(field.annotation) if kind is not types.NoneType]
        return config_dict.placeholder(kinds[0])
    return ml_collections.ConfigDict(field.default) if isinstance(field.default, dict) else field.default


def _alternatives(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        yield from typing.get_args(annotation)
    else:
        yield annotation


def _description(field: FieldInfo) -> str:
    """The declared sentence, with the choices where they are listed."""
    found = field.description or ""
    fixed = [kind for kind in _alternatives(field.annotation) if typing.get_origin(kind) is typing.Literal]
    choices = _extra(field)["choices"]
    listed = [str(value) for kind in fixed for value in typing.get_args(kind)] or list(choices() if choices else ())
    return f"{found} One of: {', '.join(listed)}." if listed else found
