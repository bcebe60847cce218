"""What every configuration model shares: strict parsing, camelCase outside, and the marks on its fields."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True)
class Operational:
    """Marks a field that changes how a phase runs but not what it makes; it stays out of fingerprints.

    `unless`: a field or property beside it that, if it is set, makes this one shape what is made.
    """

    unless: str | None = None


@dataclass(frozen=True)
class Unordered:
    """Marks a list that means the set of its entries; fingerprints are made of that."""


@dataclass(frozen=True)
class Rule:
    """A rule over one or several fields of an object, told twice: as CEL for the API server, in Python for local runs.

    A test holds the two together. Both see the object after defaulting.

    The API server asks a CEL rule even where a field is out of its own bounds. It must hold there, so that one mistake
    is told once.

    `path` is the field to blame, in camelCase and relative to the object the rule sits on; empty for the object itself.
    `check` takes the parsed model and returns the sentence to show, or None where the rule holds. `cel` is the CEL
    expression that is true where the rule holds; the sentence is `sentence` where it is always the same, else what the
    CEL expression `message` yields. `where` limits the rule to clusters or to local runs (which need no CEL).
    """

    path: str
    check: Callable[[Any], str | None]
    cel: str = ""
    message: str = ""
    sentence: str = ""
    where: Literal["everywhere", "cluster", "local"] = "everywhere"

    @classmethod
    def of(cls, path: str, sentence: str, holds: Callable[[Any], bool], cel: str) -> "Rule":
        """A rule for both worlds whose sentence is always the same."""
        return cls(path, lambda model: None if holds(model) else sentence, cel, sentence=sentence)

    def to_cel(self) -> dict[str, str]:
        """The entry in the CRD's x-kubernetes-validations."""
        said = {"message": self.sentence} if self.sentence else {"messageExpression": self.message}
        blamed = {"fieldPath": f".{self.path}"} if self.path else {}
        return {"rule": self.cel, **said, **blamed, "reason": "FieldValueInvalid"}


def cel_format(template: str, *arguments: str) -> str:
    """The CEL expression for `template % arguments`. (The API server can't bound the cost of string(n) + '...'.)"""
    return f"'{template}'.format([{', '.join(arguments)}])"


def indivisible(template: str, arguments: tuple[int | str, ...], value: int, divisor: int) -> str:
    """`template` with its arguments, and the multiples of `divisor` around `value`: "nearest: 192 or 256"."""
    return f"{template % arguments}, nearest: {nearest_multiples(value, divisor)}"


def nearest_multiples(value: int, divisor: int, *, most: int | None = None) -> str:
    """The positive multiples of `divisor` on both sides of `value`, those above `most` left out: "192 or 256"."""
    lower = value // divisor * divisor
    return " or ".join(str(n) for n in (lower, lower + divisor) if n > 0 and (most is None or n <= most))


def nearest_divisors(number: int, value: int, *, most: int | None = None) -> str:
    """The divisors of `number` on both sides of `value`, those above `most` left out: "2 or 4"."""
    divisors = [n for n in range(1, min(number, most or number) + 1) if number % n == 0]
    below, above = [n for n in divisors if n <= value], [n for n in divisors if n > value]
    return " or ".join(str(n) for n in (*below[-1:], *above[:1]))


def cel_indivisible(template: str, arguments: tuple[str, ...], value: str, divisor: str) -> str:
    """The CEL expression that yields what `indivisible` does; all arguments are CEL expressions."""
    divisor = f"({divisor})"
    lower = f"{value} / {divisor} * {divisor}"
    below = cel_format(f"{template}, nearest: %d", *arguments, divisor)
    between = cel_format(f"{template}, nearest: %d or %d", *arguments, lower, f"{lower} + {divisor}")
    return f"{value} < {divisor} ? {below} : {between}"


class ConfigModel(BaseModel):
    """Base of all configuration: immutable, unknown fields refused, camelCase in JSON and YAML."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """The model as JSON-ready data in camelCase, fields that are unset or None left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The model's JSON schema, its rules in it as CEL."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        validations = [rule.to_cel() for rule in cls.rules if rule.where != "local"]
        if validations:
            schema["x-kubernetes-validations"] = validations
        return schema


class Record(ConfigModel):
    """Base of all that one program writes and another reads: results, termination messages, statuses, heartbeats.

    The writer may be of another version, and may have written more: what is unknown is read over, at every depth. What
    a user writes is no record, for there an unknown field is a mistake.
    """

    model_config = ConfigDict(extra="ignore")
