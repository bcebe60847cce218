"""A cluster as its administrator has it, with the kubectl and the helm that it was built with."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.packaging.helm import Body


@dataclass(frozen=True)
class Cluster:
    """A cluster in which the operator's image lies: kubectl and helm, as its administrator."""

    kubeconfig: Path
    bin: Path

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """What kubectl prints; `given` is its standard input."""
        return self._call("kubectl", arguments, given, check=check)

    def helm(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """What helm prints."""
        return self._call("helm", arguments, given, check=check)

    def _call(self, program: str, arguments: tuple[str, ...], given: str | None, *, check: bool) -> str:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(
            [self.bin / program, *arguments], input=given, env=environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{program} {' '.join(arguments)}: {done.stderr}{done.stdout}")
        return done.stdout or done.stderr

    def items(self, *query: str) -> list[Body]:
        """The objects that `kubectl get` finds."""
        return json.loads(self.kubectl("get", *query, "--output=json"))["items"]

    def object(self, *query: str) -> Body:
        """The one object that `kubectl get` finds."""
        return json.loads(self.kubectl("get", *query, "--output=json"))
