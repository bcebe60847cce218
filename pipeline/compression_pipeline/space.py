"""Room in the store, asked for before hours of downloading rather than found missing after them."""

import shutil

from .artifact import Store
from .config import human_bytes
from .errors import UserError


def require(store: Store, needed: int, purpose: str) -> None:
    """Raise UserError where the store's volume has less than `needed` bytes free; `purpose` says what for."""
    free = shutil.disk_usage(store.root).free
    if free < needed:
        raise UserError(
            f"the store {store.root} has {human_bytes(free)} free and {purpose} needs about {human_bytes(needed)}; "
            "free some space or enlarge its volume, then try again"
        )
