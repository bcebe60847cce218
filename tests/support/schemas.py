"""The schema of manifests, which is made once of tables that no process changes; tests change them."""

import contextlib
from collections.abc import Iterator

from compression_operator.api import validate


@contextlib.contextmanager
def schema_made_anew() -> Iterator[None]:
    """Have manifests judged by the tables as they are now, and forget that afterwards."""
    validate._schema.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield
    validate._schema.cache_clear()  # pyright: ignore[reportPrivateUsage]
