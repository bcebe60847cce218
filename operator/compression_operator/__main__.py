"""`python -m compression_operator`: the operator's process."""

import asyncio
import gc
import logging
import os
import sys
import threading
from typing import NoReturn

from .cluster.log_format import configure
from .cluster.options import Options, parse
from .cluster.process import operate
from .cluster.resync import StateWentBack
from .cluster.secure_metrics import NoCertificate
from .cluster.service import Service
from .kube.leader import LeadershipLost
from .kube.login import NoCluster

logger = logging.getLogger("compression_operator")


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop. Exit code 1 where leadership was lost, or the cluster went back in time:
    Kubernetes starts a fresh process.
    """
    given = parse(arguments)
    configure(given.log_format, given.log_level)
    options = Options.of(given)
    # What importing made stays to the end. To walk it again at each full collection would hold everything up (30 ms).
    gc.freeze()
    code = 0
    try:
        asyncio.run(_operate(options))
    except* (LeadershipLost, NoCertificate, NoCluster, StateWentBack) as group:
        logger.error("%s", group.exceptions[0])
        code = 1
    except* Exception as group:  # in the log's own format too, for whoever reads that by machine
        logger.critical("ends for what it did not expect", exc_info=group)
        code = 1
    return code


async def _operate(options: Options) -> None:
    await operate(Service(options), options.namespaces)


def leave(code: int) -> NoReturn:
    """End the process. A watch may not have left its thread yet (LEAVING_SECONDS). Then Python's own end is left out,
    because it takes the interpreter away from under the thread, and the process ended by a segmentation fault.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
