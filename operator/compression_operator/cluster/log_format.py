"""Logging of the operator: one line a record, for people (text) or for machines (JSON), with run, step and job."""

import inspect
import json
import logging
import sys
from datetime import UTC, datetime

logger = logging.getLogger(__name__)

LOG_FORMATS = ("text", "json")
CONTEXT = ("run", "step", "job", "reason")
"""Fields that a record may carry (`extra=`) to say what it is about."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_context(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Time, level, message, then what it is about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        context = " ".join(f"{name}={value}" for name, value in _context(record).items())
        return f"{line}  [{context}]" if context else line


def configure(log_format: str, level: str) -> None:
    """Send everything to standard error; the watching library's own chatter from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(lambda record: not (record.name.startswith("kopf") and _needless(record)))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    sys.unraisablehook = _unraisable
    for noisy in ("kopf", "urllib3", "asyncio", "aiohttp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    """What Python could raise nowhere, in the log's format. Of a coroutine it is no news: its loop was thrown away (see
    kube/watching/).
    """
    where: object = args.object
    level = logging.DEBUG if inspect.iscoroutine(where) else logging.WARNING
    logger.log(level, "%s %r", args.err_msg or "ignored in", where, exc_info=args.exc_value)


def _needless(record: logging.LogRecord) -> bool:
    """What kopf says of the end of each of its tasks is said once by whoever starts it anew (kube/watching/);
    and signals are none of its business, in a thread of its own.
    """
    end = bool(record.exc_info) and record.funcName == "guard"
    # Of all else it tells in words what went wrong: a traceback through kopf adds nothing for whoever runs an operator.
    record.exc_info = record.exc_text = None
    return end or record.getMessage().startswith("OS signals are ignored")


def _context(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(value) for name in CONTEXT if (value := getattr(record, name, None)) is not None}
