"""Fields that hold a member of a table: one of several kinds of settings, told apart by `type`.

Kubernetes has no unions. So the schema of such a field is one flat object: the fields of all members, an enum of their
names, and a rule for each field that not every member has. The table is read when a value or a schema is made, not
when the field is declared: who adds a member adds it to all manifests, schemas and jobs.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast, get_args

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from .base import ConfigModel

TYPE = "type"

LENIENT: Mapping[str, Any] = {"extra": "ignore", "context": {"extra": "ignore"}}
"""Arguments of `model_validate` for what another version has written: unknown fields are read over at every depth."""


class Member(ConfigModel):
    """Base of what a table holds. Its `type`, in JSON, is the name of its class."""

    @property
    def type(self) -> str:
        """Its name in manifests."""
        return type(self).__name__

    @model_serializer(mode="wrap")
    def _with_type(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {TYPE: self.type, **write(self)}


def table(*members: type[Member]) -> dict[str, type[Any]]:
    """Members by their names."""
    return {member.__name__: member for member in members}


class OneOf:
    """Annotates a field whose value is one of the members of a table: `Annotated[Base, OneOf(TABLE)]`."""

    def __init__(self, members: Mapping[str, type[Member]], description: str) -> None:
        """`description`: of the field `type`."""
        self.members = members
        self._description = description

    def misplaced(self, value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Fields of `value` (camelCase) that its member lacks or misses, each with the sentence to show."""
        for field, owners in self._partial().items():
            if value.get(field) is not None and value.get(TYPE) not in owners:
                yield field, _misplaced(owners)
        for field, owners in self._needed().items():
            if value.get(field) is None and value.get(TYPE) in owners:
                yield field, _missing(owners)

    def read(self, value: Any, info: ValidationInfo) -> Member:
        """The member that `value` is or describes. Raises ValidationError, or PydanticCustomError of its type.

        pydantic tells a validator nothing of its argument `extra`, so it is in the context, too (`LENIENT`).
        """
        if isinstance(value, Member) and self.members.get(value.type) is type(value):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError("member", "must be an object with a type")
        fields = dict(cast("Mapping[str, Any]", value))
        given = fields.pop(TYPE, None)
        member = self.members.get(given) if isinstance(given, str) else None
        if member is None:
            known = {"given": repr(given), "known": ", ".join(self.members)}
            raise PydanticCustomError("member", "type {given} is not supported, supported: {known}", known)
        context = cast("Mapping[str, Any]", info.context or {})
        return member.model_validate(fields, extra=context.get("extra"), context=info.context)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """One flat object. Raises TypeError where members have a field of one name and of two meanings."""
        found: dict[str, list[dict[str, Any]]] = {}
        rules: list[dict[str, str]] = []
        for name, member in self.members.items():
            own = handler.resolve_ref_schema(handler(member.__pydantic_core_schema__))
            for field, node in own.get("properties", {}).items():
                found.setdefault(field, []).append(node)
            rules += [
                {**rule, "rule": f"self.{TYPE} != '{name}' || {rule['rule']}"}
                for rule in own.get("x-kubernetes-validations", ())
            ]
        merged = {field: _same(field, nodes, len(self.members)) for field, nodes in found.items()}
        rules += [
            _rule(field, f"!has(self.{field}) || self.{TYPE} in [{_quoted(owners)}]", _misplaced(owners))
            for field, owners in self._partial().items()
        ]
        rules += [
            _rule(field, f"has(self.{field}) || !(self.{TYPE} in [{_quoted(owners)}])", _missing(owners))
            for field, owners in self._needed().items()
        ]
        kind = {"type": "string", "enum": list(self.members), "description": self._description}
        return {
            "type": "object",
            "properties": {TYPE: kind, **merged},
            "required": [TYPE],
            **({"x-kubernetes-validations": rules} if rules else {}),
        }

    def _partial(self) -> dict[str, list[str]]:
        """Fields (camelCase) that not all members have, and the names of those that do."""
        owners = self._owners(required=False)
        return {field: names for field, names in owners.items() if len(names) < len(self.members)}

    def _needed(self) -> dict[str, list[str]]:
        """Fields (camelCase) that must be given, and the names of the members that need them."""
        return self._owners(required=True)

    def _owners(self, *, required: bool) -> dict[str, list[str]]:
        owners: dict[str, list[str]] = {}
        for name, member in self.members.items():
            for field, info in member.model_fields.items():
                if info.is_required() or not required:
                    owners.setdefault(info.alias or field, []).append(name)
        return owners


def _same(field: str, nodes: list[dict[str, Any]], members: int) -> dict[str, Any]:
    """The schema of a field of several members. A default that is not all members' would be given to the others."""
    first, *others = nodes
    told = {"description": "", "default": ""}
    if any({**node, **told} != {**first, **told} for node in others):
        raise TypeError(f"{field} has two meanings; give one of the members another name for it")
    shared = len(nodes) == members and all(node.get("default") == first.get("default") for node in others)
    if shared or "default" not in first:
        return first
    told = {key: value for key, value in first.items() if key != "default"}
    if first["default"] is None:  # its description says what that means
        return told
    written = json.dumps(first["default"]).strip('"')
    return {**told, "description": f"{told['description']} Default: {written}."}


def _rule(field: str, rule: str, sentence: str) -> dict[str, str]:
    return {"rule": rule, "message": sentence, "fieldPath": f".{field}", "reason": "FieldValueInvalid"}


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _misplaced(owners: list[str]) -> str:
    return f"is a field of {', '.join(owners)}; leave it out, or change type"


def _missing(owners: list[str]) -> str:
    return f"is required by {', '.join(owners)}"


class NameOf:
    """Annotates a field that names an entry of a table. The table is read when a value or a schema is made."""

    def __init__(self, known: Callable[[], Iterable[str]], purpose: str = "") -> None:
        """`known`: the names. `purpose`: what the entry is for, as the sentence about another name ends ("for ffn")."""
        self.known = known
        self._purpose = f" {purpose}" if purpose else ""

    def read(self, value: str) -> str:
        """`value`. Raises PydanticCustomError if no entry has that name."""
        known = list(self.known())
        if value not in known:
            told = {"given": value, "purpose": self._purpose, "known": ", ".join(known)}
            raise PydanticCustomError("name", "{given} is not supported{purpose}, supported: {known}", told)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "enum": list(self.known())}


def one_of(annotation: Any) -> OneOf | None:
    """The table in the type of a field, if there is one; the field may be a list."""
    if isinstance(annotation, OneOf):
        return annotation
    return next((found for argument in get_args(annotation) if (found := one_of(argument))), None)
