"""Where ranks meet that no launcher started."""

import socket


class Meeting:
    """A port of this machine that nobody gets by chance until this is closed: it is bound, but nothing listens at it,
    so the store of torch, which sets SO_REUSEADDR too, may.
    """

    def __init__(self, ranks: int) -> None:
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port: int = self._held.getsockname()[1]
        self.environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "WORLD_SIZE": str(ranks)}

    @property
    def of_pods(self) -> dict[str, str]:
        """As the training operator tells two pods of one process each."""
        return {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(self.port)}

    def close(self) -> None:
        self._held.close()
