"""The watches and the service side by side, until a signal ends them."""

import asyncio
import functools
import signal

from compression_operator.kube.watching.kopf_run import watch_all
from compression_operator.kube.watching.thread import keep_watching

from .resync import selector_of
from .service import Service


async def operate(service: Service, namespaces: tuple[str, ...]) -> None:
    """Watch and work until SIGTERM or SIGINT. Raises LeadershipLost and StateWentBack, and whatever the service dies
    of.
    """
    loop = asyncio.get_running_loop()
    watch = functools.partial(watch_all, service, namespaces, selector_of, loop)
    watching = asyncio.create_task(keep_watching(watch, service), name="watches")
    working = asyncio.create_task(service.run(), name="service")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    await asyncio.wait((watching, working), return_when=asyncio.FIRST_COMPLETED)
    service.stop()
    watching.cancel()
    for result in await asyncio.gather(working, watching, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
