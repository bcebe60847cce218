"""Writes a check as CEL that Kubernetes 1.30 knows: an expression for the sentences that the operator would say.

Each expression gives a text, empty where nothing is wrong. It is about a variable of two fields: `v`, a value, and `p`,
its path. What stands in a podTemplate is `dyn` to CEL, so each expression looks at the type first.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .shapes import All, Anything, Check, Each, Fields, Free, Images, Keys, Named, Number, Only, Shape

LISTED = 100
"""How many items of a list are looked at when a run is applied: before 1.32 nothing in CEL counts, so their indexes are
written out. The operator looks at all of them.
"""

INDEXES = "variables.indexes"

IMAGES = "variables.images"
"""Regular expressions of the images that runs may name; none: every image."""

IMAGES_REFUSED = "variables.imagesRefused"
"""What is said of any other image."""


@dataclass(frozen=True)
class Place:
    """The variable that an expression is about, and how deep that expression stands in others."""

    variable: str
    depth: int = 0

    @property
    def value(self) -> str:
        return f"{self.variable}.v"

    @property
    def path(self) -> str:
        return f"{self.variable}.p"

    @property
    def below(self) -> "Place":
        """Of a part of the value."""
        return Place(f"x{self.depth + 1}", self.depth + 1)

    def line(self, more: int = 0) -> str:
        return "\n" + "  " * (2 * self.depth + more)


def sentences(check: Check, place: Place) -> str | None:
    """CEL for what is wrong with the value there, joined by `; `, or ''. None: nothing ever is.

    Raises TypeError for a check that it does not know.
    """
    here, path = place.value, place.path
    match check:
        case Anything():
            return None
        case Only(why, allowed):
            said = f"{path} + {text(' ' + why)}"
            return f"{here} in [{', '.join(map(literal, allowed))}] ? '' : {said}" if allowed else said
        case Number(why, least, most):
            within = f"type({here}) == int && {here} >= {least} && {here} <= {most}"
            return f"{within} ? '' : {path} + {text(' ' + why)}"
        case Free(taken, why):
            found = f"type({here}) == string && {here}.matches({text(taken)})"
            return f"{found} ? {path} + ' ' + {here} + {text(' ' + why)} : ''"
        case Images():
            fits = f"{IMAGES}.size() == 0 || {IMAGES}.exists(p, {here}.matches(p))"
            return f"type({here}) != string || {fits} ? '' : {path} + ' ' + {IMAGES_REFUSED}"
        case Keys(taken, why):
            said = f"{path} + '[' + k + {text('] ' + why)}"
            return _typed("map", place, True, f"{here}.map(k, k.matches({text(taken)}), {said}).join('; ')")
        case Each(item, strict):
            return _typed("list", place, strict, _of_items(item, place))
        case Named():
            return _by_name(check, place)
        case All(checks):
            parts = [part for one in checks if (part := sentences(one, place)) is not None]
            return joined((f"[{part}]" for part in parts), place)
        case Fields():
            return _typed("map", place, check.strict, joined(_of_fields(check, place), place))
        case _:
            raise TypeError(f"no CEL is known for {type(check).__name__}")


def joined(lists: Iterable[str], place: Place) -> str:
    """CEL for the sentences of these lists as one text, each list in a line of its own."""
    parts = f"{place.line(1)}+ ".join(lists)
    return f"({place.line(1)}{parts}{place.line()}).filter(s, s != '').join('; ')" if parts else "''"


def text(value: str) -> str:
    """A CEL string."""
    return "'" + json.dumps(value)[1:-1].replace("'", r"\'").replace(r"\"", '"') + "'"


def literal(value: str | bool) -> str:
    """A CEL string or truth value."""
    return json.dumps(value) if isinstance(value, bool) else text(value)


def part(path: str, value: str) -> str:
    """A value of the kind that expressions are about. Its fields are of one type, or no map of CEL's holds both."""
    return f"{{'p': dyn({path}), 'v': dyn({value})}}"


def split(check: Check, longest: int) -> list[Check]:
    """Checks that together find what this one finds, in an order of their own, each of `longest` characters of CEL at
    most if that can be. To check the types of an expression takes a time that grows with the square of its length.
    """
    written = sentences(check, Place("x0"))
    if written is None:
        return []
    if len(written) <= longest:
        return [check]
    match check:
        case All(checks):
            return [small for one in checks for small in split(one, longest)]
        case Each(item, strict):
            first, *rest = split(item, longest)
            return [Each(first, strict), *(Each(one, strict=False) for one in rest)]
        case Fields(shape, others, strict):
            names = Fields(dict.fromkeys(shape, Anything()), others, strict)
            return [names, *(small for below in _alike(shape) for small in _split_below(*below, longest))]
        case _:
            return [check]


def _split_below(check: Check, names: list[str], longest: int) -> list[Check]:
    return [Fields(dict.fromkeys(names, small), None, strict=False) for small in split(check, longest)]


def _alike(shape: Shape) -> list[tuple[Check, list[str]]]:
    """The checks of the fields, with the fields that each is of."""
    found: dict[str, tuple[Check, list[str]]] = {}
    for name, one in shape.items():
        for check in one.checks if isinstance(one, All) else (one,):
            if (written := sentences(check, Place("x0"))) is not None:
                found.setdefault(written, (check, []))[1].append(name)
    return list(found.values())


def _typed(kind: str, place: Place, strict: bool, told: str) -> str:
    article = {"map": " must be an object", "list": " must be a list"}[kind]
    otherwise = f"{place.path} + '{article}'" if strict else "''"
    return f"type({place.value}) != {kind} ? {otherwise} : {told}"


def _of_items(item: Check, place: Place) -> str:
    below = sentences(item, place.below)
    if below is None:
        return "''"
    one = part(f"{place.path} + '[' + string(i) + ']'", f"{place.value}[i]")
    items = f"{INDEXES}.map(i, i < size({place.value}), {one})"
    return joined([f"{items}.map({place.below.variable}, {below})"], place)


def _by_name(check: Named, place: Place) -> str:
    """Nested conditions, of which the last one is what others get."""
    told = sentences(check.others, place) or "''"
    for one, its in reversed(list(check.checks.items())):
        named = f"type({place.value}) == map && {place.value}[?'name'].orValue('') == {text(one)}"
        told = f"{named} ? ({sentences(its, place) or chr(39) * 2}) : ({told})"
    return told


def _of_fields(check: Fields, place: Place) -> Iterator[str]:
    """Lists of sentences: of the fields that have no place here, then of those that have one, by their check."""
    here, path = place.value, place.path
    if check.others is not None:
        unknown = f"{here}[k] != null && !(k in [{', '.join(map(text, check.shape))}])"
        yield f"{here}.map(k, {unknown}, {path} + '.' + k + {text(' ' + check.others)})"
    for one, names in _alike(check.shape):
        below = sentences(one, place.below)
        field = part(f"{path} + '.' + k", f"{here}[k]")
        there = f"[{', '.join(map(text, names))}].map(k, k in {here} && {here}[k] != null, {field})"
        yield f"{there}.map({place.below.variable}, {below})"
