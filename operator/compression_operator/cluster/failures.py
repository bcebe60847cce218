"""What a pass over a run met with, in words for the run: a refusal, a resource that cannot be read, a fault of ours."""

from compression_operator.api.templates import TemplateRefused
from compression_operator.core.troubles import INTERNAL_ERROR, POD_TEMPLATE_REFUSED, Trouble, refusal
from compression_operator.kube.client import ApiError, NotLeading

from .runs import UnreadableRun
from .served_schema import OutdatedCRD

PERSISTENT = 3
"""Failures in a row after which an error that nobody foresaw is told: one may be a race that the next pass wins."""


def trouble_of(error: Exception) -> Trouble | None:
    """What to tell on the run; None where it is likely to go away by itself, or is no trouble of the run's."""
    if isinstance(error, UnreadableRun | OutdatedCRD):
        return error.trouble
    if isinstance(error, ApiError):
        return None if error.passing or error.namespace_gone else refusal(error.code, str(error), error.resource)
    if isinstance(error, TemplateRefused):
        return Trouble(POD_TEMPLATE_REFUSED, str(error))
    if isinstance(error, NotLeading):
        return None
    return Trouble(
        INTERNAL_ERROR,
        "a fault of the operator's own, which keeps trying: please report it with its traceback, which stands in the "
        f"operator's log at 'pass failed', and the manifest of this run. {_named(error)}",
    )


def unforeseen(error: Exception) -> bool:
    """Whether it is a fault of the operator's own."""
    return not isinstance(error, ApiError | UnreadableRun | OutdatedCRD | TemplateRefused | NotLeading)


def words_of(error: Exception) -> str:
    """Why a job cannot be made, in words that stay the same while the reason does: each change is written."""
    trouble = trouble_of(error)
    if trouble is not None:
        return _named(error) if unforeseen(error) else trouble.message
    return "the API server does not answer" if isinstance(error, ApiError) and error.code == 0 else str(error)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
