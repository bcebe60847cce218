"""What `gpu_check.py` found, as the tables of `benchmarks/README.md`."""

from collections.abc import Iterator
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Markdown of all parts that there are; of a failed one, why."""
    lines: list[str] = []
    for name, found in results.items():
        lines += [f"### {name} ({found['seconds']} s)", ""]
        lines += [f"failed: {found['failed']}"] if "failed" in found else WRITERS[name](found)
        lines.append("")
    return "\n".join(lines)


def _demo(found: dict[str, Any]) -> Iterator[str]:
    yield "| loss | GPU | CPU |"
    yield "|---|--:|--:|"
    for name, (gpu, cpu) in found["losses"].items():
        yield f"| {name} | {gpu:.4f} | {cpu:.4f} |"
    yield ""
    yield f"At most {found['furthest']:.2%} apart. With `deterministic`, an interrupted run is equal to the last bit."


def _step(found: dict[str, Any]) -> Iterator[str]:
    for part in ("whole", "beside"):
        report = found[part]
        yield (
            "{device}, {dtype}; teacher {teacherParameters:,} and student {studentParameters:,} parameters, sequences "
            "of {sequence:,}, {vocabulary:,} words; matrix product {matrixTeraflops:.1f} TFLOP/s".format(**report)
        )
        yield ""
        yield "| | tokens/s | MFU | passes, GB | planned, GB | teacher | student | loss | backward | optimizer |"
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        for name, one in report["variants"].items():
            yield _variant(name, one)
        yield ""
        yield ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        yield ""


def _variant(name: str, one: dict[str, Any]) -> str:
    if "tokensPerSecond" not in one:
        why = "out of memory" if "outOfMemory" in one else one["failed"]
        return f"| {name} | {why} | | | | | | | | |"
    times = one.get("sections", {})
    whole = sum(times.values())
    shares = [f"{times[part] / whole:.0%}" if times else "" for part in ("teacher", "student", "loss", "backward")]
    shares.append(f"{times['optimizer'] / whole:.0%}" if times else "")
    planned = f"{sum(one['plannedBytes'].values()) / 1e9:.1f}" if "plannedBytes" in one else ""
    cells = [f"{one['tokensPerSecond']:,.0f}", f"{one['mfu']:.1%}", f"{one['bytesOfPasses'] / 1e9:.2f}", planned]
    return f"| {name} | {' | '.join([*cells, *shares])} |"


def _importance(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['device']}, {found['tokens']:,} tokens a round"
    yield ""
    yield "| | ms | of a plain forward pass |"
    yield "|---|--:|--:|"
    for name, one in found["variants"].items():
        yield f"| {name} | {one['ms']:.1f} | {one['ratio']:.3f} |"


def _profile(found: dict[str, Any]) -> Iterator[str]:
    yield "| share | calls | operation |"
    yield "|--:|--:|---|"
    for one in found["dearest"]:
        yield f"| {one['share']:.1%} | {one['calls']} | `{one['name']}` |"


WRITERS = {"demo": _demo, "step": _step, "importance": _importance, "profile": _profile}
