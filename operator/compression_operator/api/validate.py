"""Manifests judged as the API server would judge them, before anything runs: schema first, then the rules."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, cast, get_args, get_origin

from compression_pipeline.config import ConfigModel, one_of

from .check import findings, join, with_defaults
from .documents import Json, MalformedYaml, read_documents
from .faults import Fault, Finding
from .overrides import InvalidOverride, override
from .rules import World
from .run import API_VERSION, KIND, CompressionRun
from .schema import Schema, structural_schema
from .templates import template_findings


def validate(text: str, filename: str, world: World, overrides: Sequence[str] = ()) -> CompressionRun | list[Fault]:
    """The one CompressionRun in `text` as it would run in `world`, or every fault of it, in the order of their paths.

    `filename` is what the faults call the text. Documents of other kinds in the same text are left alone, and so is a
    status that the text may have.
    """
    try:
        documents = read_documents(text)
    except MalformedYaml as error:
        where = "" if error.line is None else f"line {error.line}, column {error.column}"
        return [Fault(filename, where, error.message)]
    chosen = _choose(documents)
    if isinstance(chosen, str):
        return [Fault(filename, "", chosen)]
    refused: list[Fault] = []
    for assignment in overrides:
        try:
            chosen = override(chosen, assignment)
        except InvalidOverride as error:
            refused.append(Fault(f"--set {assignment}", "", str(error)))
    if refused:
        return refused
    document, found = inspect(chosen, world)
    if found:
        return [Fault(filename, path, message) for path, message in found]
    return CompressionRun.model_validate(document)


def inspect(document: dict[str, Json], world: World) -> tuple[dict[str, Json], list[Finding]]:
    """`document` with defaults, and everything that is wrong with it, sorted by path."""
    schema = _schema()
    given = {key: value for key, value in document.items() if key != "status"}
    metadata = given.get("metadata")
    if isinstance(metadata, dict):  # tools write creationTimestamp: null, and the API server ignores it
        given["metadata"] = {key: value for key, value in metadata.items() if value is not None}
    found = [
        (field, f"is required: {value}")
        for field, value in (("apiVersion", API_VERSION), ("kind", KIND))
        if given.get(field) is None
    ]
    filled = cast(dict[str, Json], with_defaults(schema, given))
    found += findings(schema, filled)
    view = _view(CompressionRun, filled, "", {path for path, _ in found})
    found += _rule_findings(view, "", world)
    misplaced = list(_misplaced(CompressionRun, filled, ""))
    # What should not stand there has no value that is right.
    found = [finding for finding in found if not any(_within(finding[0], path) for path, _ in misplaced)] + misplaced
    if world is World.CLUSTER:
        found += template_findings(filled.get("spec"))
    return filled, sorted(set(found), key=_order)


@cache
def _schema() -> Schema:
    return structural_schema(CompressionRun)


def _choose(documents: list[Json]) -> dict[str, Json] | str:
    """The CompressionRun among the documents of a file, or a sentence on why there isn't exactly one."""
    if not documents:
        return f"is empty; it should hold a {KIND}"
    if len(documents) == 1:
        only = documents[0]
        return only if isinstance(only, dict) else f"should hold a {KIND}, holds no object"
    objects = [document for document in documents if isinstance(document, dict)]
    runs = [document for document in objects if document.get("kind") == KIND]
    if len(runs) == 1:
        return runs[0]
    kinds = ", ".join(str(document.get("kind")) for document in objects)
    return f"should hold one {KIND}, holds {len(runs)} (documents: {kinds}); put each run into a file of its own"


def _order(finding: Finding) -> list[tuple[int, str]]:
    """Paths in their natural order: students[2] before students[10]."""
    parts = re.split(r"(\d+)", finding[0])
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts] + [(-1, finding[1])]


def _rule_findings(model: ConfigModel, path: str, world: World) -> Iterator[Finding]:
    """What the rules of `model` and of the models in it say."""
    for rule in type(model).rules:
        if rule.where not in ("everywhere", world.value):
            continue
        try:
            sentence = rule.check(model)
        except AttributeError as error:
            if isinstance(error.obj, ConfigModel) and error.name in type(error.obj).model_fields:
                continue  # a field that the rule looks at is faulty, so the view lacks it; that fault is told
            raise
        if sentence is not None:
            yield join(path, rule.path) if rule.path else path, sentence
    for name, field in type(model).model_fields.items():
        below = join(path, field.alias or name)
        value = model.__dict__.get(name)
        if isinstance(value, ConfigModel):
            yield from _rule_findings(value, below, world)
        elif isinstance(value, list):
            for index, item in enumerate(cast(list[Any], value)):
                if isinstance(item, ConfigModel):
                    yield from _rule_findings(item, f"{below}[{index}]", world)


def _view(kind: type[ConfigModel], data: dict[str, Json], path: str, faulty: set[str]) -> ConfigModel:
    """`data` as a model for rules to look at, without the fields that are faulty."""
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        alias = field.alias or name
        below = join(path, alias)
        if alias not in data:
            if not field.is_required():
                values[name] = field.get_default(call_default_factory=True)
            continue
        value = data[alias]
        nested, many = _nested(field.annotation)
        if nested is None:
            if not any(_within(fault, below) for fault in faulty):
                values[name] = value
        elif many and isinstance(value, list):
            items = [item for item in value if isinstance(item, dict)]
            if len(items) == len(value):
                kinds = [_kind(field.annotation, nested, item) for item in items]
                views = [
                    _view(kind, item, f"{below}[{i}]", faulty)
                    for i, (kind, item) in enumerate(zip(kinds, items, strict=True))
                    if kind is not None
                ]
                if len(views) == len(items):
                    values[name] = views
        elif not many and isinstance(value, dict):
            values[name] = _view(nested, value, below, faulty)
    view = kind.model_construct(**values)
    for name in kind.model_fields.keys() - values.keys():
        vars(view).pop(name, None)  # a default would hide that the field is faulty
    return view


def _within(path: str, above: str) -> bool:
    """Whether a path is this one, or one below it."""
    return path == above or path.startswith((f"{above}.", f"{above}["))


def _kind(annotation: Any, base: type[ConfigModel], item: dict[str, Json]) -> type[ConfigModel] | None:
    """The model of an item of a list, which may hold members of a table; None of a type that is not in it."""
    table = one_of(annotation)
    return table.members.get(str(item.get("type"))) if table else base


def _misplaced(kind: type[ConfigModel], data: Json, path: str) -> Iterator[Finding]:
    """Fields of items that are no fields of their member of the table, in `data` and all that is in it."""
    for name, field in kind.model_fields.items():
        value = data.get(field.alias or name) if isinstance(data, dict) else None
        nested, many = _nested(field.annotation)
        below = join(path, field.alias or name)
        if nested is None or value is None:
            continue
        members = one_of(field.annotation)
        places = [(f"{below}[{i}]", item) for i, item in enumerate(value)] if isinstance(value, list) else []
        for place, item in places if many else [(below, value)]:
            if members and isinstance(item, dict):
                yield from ((join(place, blamed), sentence) for blamed, sentence in members.misplaced(item))
            yield from _misplaced(nested, item, place)


def _nested(annotation: Any) -> tuple[type[ConfigModel] | None, bool]:
    """The model in the type of a field, if there is one, and whether the field is a list of it."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        return annotation, False
    for argument in get_args(annotation):
        model, many = _nested(argument)
        if model is not None:
            return model, many or get_origin(annotation) is list
    return None, False
