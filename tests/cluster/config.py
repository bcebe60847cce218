"""What one cluster is: decided once by `up`, read by the supervisor and by `down`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .network import Block
from .paths import State
from .processes import write_json

NODE = "node-1"
# In namespaces of its own the cluster has every port to itself.
PORTS = {
    "apiserver": 6443,
    "etcd": 2379,
    "etcd-peer": 2380,
    "controller-manager": 10257,
    "scheduler": 10259,
    "training-operator-health": 8081,
    "training-operator-webhook": 9443,
}


@dataclass(frozen=True)
class Config:
    """`pods`: whether the cluster has a node that runs pods; else it is an API server and what goes with it."""

    root: str
    pods: bool
    namespaces: list[str]
    network: str | None
    ports: dict[str, int]
    left_out: list[str]
    programs: dict[str, str]
    cni: str | None
    tokens: dict[str, str] = field(repr=False, default_factory=dict)
    controllers: list[str] = field(default_factory=list)

    @property
    def state(self) -> State:
        return State(Path(self.root))

    @property
    def block(self) -> Block | None:
        return Block(self.network) if self.network else None

    @property
    def address(self) -> str:
        """Where the API server listens, seen from the machine."""
        return self.block.node if self.block else "127.0.0.1"

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports['apiserver']}"

    def write(self) -> None:
        self.state.config.touch(mode=0o600)
        write_json(self.state.config, asdict(self))

    @classmethod
    def read(cls, state: State) -> "Config | None":
        try:
            return cls(**json.loads(state.config.read_text()))
        except FileNotFoundError:
            return None
