"""The CRD that the cluster serves, held against the operator's own.

An older CRD makes the API server drop in silence what it does not know of a status: who manages the run, how often an
artifact was made again. What the operator decides by must not get lost, so it looks after no run then.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from compression_operator import __version__
from compression_operator.api.run import GROUP, KIND, VERSION, CompressionRun
from compression_operator.api.schema import structural_schema
from compression_operator.core.problems import CRD_OUTDATED, Problem
from compression_operator.kube.client import ApiError, Kube

logger = logging.getLogger(__name__)

Schema = Mapping[str, Any]

DOCUMENT = f"/openapi/v3/apis/{GROUP}/{VERSION}"
"""Readable by whoever may log in (the ClusterRole system:discovery), so it takes no right of the operator's own."""

SHOWN_ALONE = (
    "status.conditions",
    "status.students",
    "status.teacher.validationLoss",
    "status.teacher.correctedValidationLoss",
    "status.teacher.evaluation",
    "status.teacher.correctedEvaluation",
    "status.teacher.planned",
)
"""What only people read, or what is told in conditions: nothing is decided by it. The rest of the teacher says which
students can be made of it, and how long its sequences may be.
"""

LISTED = 5
"""Fields that one message names at most."""


class OutdatedCRD(Exception):
    """The API server drops fields of a status that the operator decides by."""

    def __init__(self, fields: Sequence[str]) -> None:
        self.problem = Problem(CRD_OUTDATED, sentence(fields))
        super().__init__(self.problem.message)


def sentence(fields: Sequence[str]) -> str:
    """What is wrong, and what to do."""
    more = len(fields) - LISTED
    named = ", ".join(fields[:LISTED]) + (f" and {more} more" if more > 0 else "")
    what = f"the CRD in this cluster is older than this operator: it has no {named}"
    return f"{what}; apply crds/ of version {__version__} (kubectl apply --server-side -f crds/)"


def lacking(own: Schema, served: Schema, path: str = "") -> Iterator[str]:
    """Paths of the fields of `own` that `served` has not; of a field that is not there, nothing within it. Pure."""
    if served.get("x-kubernetes-preserve-unknown-fields"):
        return
    known = cast(Schema, served.get("properties", {}))
    for name, field in cast(Schema, own.get("properties", {})).items():
        where = f"{path}.{name}" if path else name
        if name in known:
            yield from lacking(field, known[name], where)
        else:
            yield where
    for within in ("items", "additionalProperties"):
        if isinstance(own.get(within), dict) and isinstance(served.get(within), dict):
            yield from lacking(own[within], served[within], f"{path}[]")


def decisive(fields: Iterable[str]) -> tuple[str, ...]:
    """Those of the fields that the operator decides by. Pure."""
    return tuple(field for field in fields if field.startswith("status.") and not field.startswith(SHOWN_ALONE))


class ServedSchema:
    """What the cluster's CRD lacks, as of the last look."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        properties = structural_schema(CompressionRun)["properties"]
        self._own: Schema = {"properties": {part: properties[part] for part in ("spec", "status")}}
        self.lacks: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        """Why no run is looked after; None where all that the operator decides by can be stored."""
        held_by = decisive(self.lacks)
        return sentence(held_by) if held_by else None

    async def refresh(self) -> None:
        """Read the schema and log a change. Where it can't be read, what is known stands: writes tell the rest."""
        try:
            document = await self._kube.document(DOCUMENT)
        except ApiError as error:
            logger.debug("the CRD's schema cannot be read: %s", error)
            return
        schemas = cast(Mapping[str, Schema], document.get("components", {}).get("schemas", {}))
        served = next((schema for name, schema in schemas.items() if name.endswith(f".{KIND}")), None)
        lacks = tuple(lacking(self._own, served)) if served is not None else ()
        if lacks and lacks != self.lacks:
            level = logging.ERROR if decisive(lacks) else logging.WARNING
            logger.log(level, "%s", sentence(decisive(lacks) or lacks))
        if self.lacks and not lacks:
            logger.info("the CRD in this cluster has all that this operator needs")
        self.lacks = lacks
