"""What the operator does without because it lacks a permission, while the runs go on: told on those that are under way.

What blocks a whole run is told by core/problems.py; here are the requests whose failure is none of the run's.
"""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager

from compression_operator.core.problems import refusal
from compression_operator.core.steps import cut

from .client import ApiError

logger = logging.getLogger(__name__)


class Denials:
    """What is denied in each namespace, for as long as the API server does."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        """`changed` is told the namespace for which `sentences` has another answer now."""
        self._changed = changed
        self._denied: dict[tuple[str, str], str] = {}  # by namespace and loss: the sentence

    @contextmanager
    def note_denial(
        self, namespace: str, loss: str, denies: Callable[[ApiError], bool] = lambda error: error.denied
    ) -> Generator[None]:
        """Around one request: `loss` says what runs do without where it is denied; `denies` tells by an error whether
        it is. Raises what the request raises.
        """
        key = (namespace, loss)
        try:
            yield
        except ApiError as error:
            if denies(error) and key not in self._denied:
                why = refusal(error.code, str(error), error.resource, namespace).message
                self._denied[key] = cut(f"{loss}: {why}")
                logger.warning("in namespace %s %s", namespace, self._denied[key])
                self._changed(namespace)
            elif not error.denied and not error.transient:
                self._end_denial(key)
            raise
        self._end_denial(key)

    def _end_denial(self, key: tuple[str, str]) -> None:
        if self._denied.pop(key, None) is not None:
            self._changed(key[0])

    def sentences(self, namespace: str) -> list[str]:
        """A sentence for each thing that the namespace's runs do without."""
        return [sentence for (where, _), sentence in self._denied.items() if where == namespace]
