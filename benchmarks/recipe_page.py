"""docs/recipe.md and its plot, from what `recipe.py` found."""

import platform
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from recipe_claims import BLOCK, MORE, PUBLISHED, SCRATCH_LONG, Arm, Finding, Outcome, Setting, spread

MEANING = (
    "Do the papers' claims show with a teacher that two CPU cores can compress? Each line compares two ways to make a "
    "student by its validation loss (nats per token). A gain is the loss of the second minus that of the first, seed "
    "by seed: above 0 the first is better, as the claim says. A claim *shows* if the gain is above 0 for every "
    "seed and its mean is above twice its standard error; *the contrary shows* likewise below 0; the rest is *open*. "
    "Where the first only has to be as good, it may be worse by a margin, which was set before anything was measured."
)


def document(
    setting: Setting, teacher: int, findings: Sequence[Finding], made: Mapping[Arm, Sequence[Outcome]], command: str
) -> str:
    """docs/recipe.md: what was done, the claims, the students. `teacher`: its parameters."""
    taught = next(iter(made.values()))[0]
    tokens = setting.steps * setting.batch * setting.length
    count = {
        word: sum(finding.verdict == word for finding in findings) for word in ("shows", "the contrary shows", "open")
    }
    lines = [
        "# The recipe's claims, at the demo's scale",
        "",
        _paragraph(MEANING),
        "",
        f"    {command}",
        "",
        _paragraph(
            f"Here {count['shows']} of {len(findings)} claims show, {count['open']} are open, and of "
            f"{count['the contrary shows']} the contrary shows. Nothing was tuned until it did."
        ),
        "",
        "![Gain of each claim](images/recipe.svg)",
        "",
        "| Claim | Source | First | Second | Gain | Verdict |",
        "|---|---|--:|--:|--:|---|",
        *(
            f"| {finding.claim.words} | {finding.claim.source} | {_mean(finding.better)} | {_mean(finding.worse)} | "
            f"{_mean(finding.gains, sign='+')} | {finding.verdict} |"
            for finding in findings
        ),
        "",
        _paragraph(
            f"Means and standard deviations over {setting.seeds} seeds, which draw the order of the text, the random "
            f"weights and the random choice. Every student sees {tokens:,} tokens ({setting.steps} steps of "
            f"{setting.batch} sequences of {setting.length}), unless more are told. The teacher ({teacher:,} "
            f"parameters) was corrected on the text for {setting.correction} steps, and then has a loss of "
            f"{taught.teacher:.3f}. Losses are means over {setting.validation} held-out sequences."
        ),
        "",
        _paragraph(" ".join(_remarks(made))),
        "",
        "| Student | Parameters | After pruning | After training |",
        "|---|--:|--:|--:|",
        *(
            f"| {arm.words} | {found[0].parameters:,} | {_mean([one.pruned for one in found])} | "
            f"{_mean([one.trained for one in found])} |"
            for arm, found in made.items()
        ),
        "",
        f"{platform.machine()}, torch {torch.__version__.partition('+')[0]}, float32 on CPU.",
    ]
    return "\n".join(lines) + "\n"


def _remarks(made: Mapping[Arm, Sequence[Outcome]]) -> Iterator[str]:
    """What the figures do not say of themselves."""
    yield (
        "No seed bears on a student straight after pruning by importance, so a line before training is one "
        "measurement, whatever its spread."
    )
    if BLOCK in made:
        yield (
            "The block is chosen by the loss on the held-out text that the students are then judged by, which favours "
            "it."
        )
    if SCRATCH_LONG in made and PUBLISHED in made:
        ends = min(one.trained for one in made[SCRATCH_LONG])
        if ends > max(one.pruned for one in made[PUBLISHED]):
            yield (
                f"Random weights with {MORE} times the tokens end above the loss that the pruned student has before "
                f"any training: so the factor, 40 in the papers, is above {MORE} here. It was not measured further."
            )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 119)


def _mean(values: Sequence[float], sign: str = "") -> str:
    return f"{statistics.fmean(values):{sign}.3f} ± {spread(values):.3f}"


STYLE = (
    "svg{--sheet:#fff;--ink:#1d1d1f;--muted:#5f6369;--rule:#e2dfd9;--dot:#1565c0}"
    "@media (prefers-color-scheme:dark)"
    "{svg{--sheet:#1e2024;--ink:#ececee;--muted:#a3a8b0;--rule:#34373d;--dot:#6fb1ff}}"
    "rect{fill:var(--sheet)}text{fill:var(--ink)}.small{fill:var(--muted)}line{stroke:var(--rule)}"
    "circle{fill:var(--dot);opacity:.55}.mean{stroke:var(--dot);stroke-width:3}"
)
LEFT, RIGHT, ROW = 390, 900, 34


def plot(findings: Sequence[Finding]) -> str:
    """A row for each claim: the gain of every seed as a dot, their mean as a bar, on a scale that keeps small gains
    visible (the square root of the gain).
    """
    reach = max(abs(gain) for finding in findings for gain in finding.gains) or 1.0
    middle = (LEFT + RIGHT) / 2

    def x(gain: float) -> float:
        return middle + (RIGHT - LEFT - 40) / 2 * (abs(gain) / reach) ** 0.5 * (1 if gain >= 0 else -1)

    height = ROW * len(findings) + 70
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {RIGHT} {height}" role="img" font-size="14" '
        f'font-family="system-ui, sans-serif" aria-label="Gain in validation loss of each claim">',
        f"<style>{STYLE}</style>",
        f'<rect width="{RIGHT}" height="{height}"/>',
        f'<line x1="{middle}" x2="{middle}" y1="20" y2="{height - 40}"/>',
    ]
    for number, finding in enumerate(findings):
        y = 36 + ROW * number
        mean = x(statistics.fmean(finding.gains))
        rows.append(f'<text x="16" y="{y + 5}">{finding.claim.words}</text>')
        rows += [f'<circle cx="{x(gain):.1f}" cy="{y}" r="5"/>' for gain in finding.gains]
        rows.append(f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 10}" y2="{y + 10}"/>')
    for gain in (-reach, -reach / 4, 0, reach / 4, reach):
        told = f"{gain:+.2f}" if gain else "0"
        rows.append(f'<text class="small" x="{x(gain):.1f}" y="{height - 22}" text-anchor="middle">{told}</text>')
    rows.append(f'<text class="small" x="16" y="{height - 22}">gain in nats per token (square-root scale)</text>')
    return "\n".join([*rows, "</svg>"]) + "\n"


def write(output: Path, page: str, picture: str) -> None:
    """Write recipe.md and its plot into the folder of documents."""
    (output / "images").mkdir(parents=True, exist_ok=True)
    (output / "recipe.md").write_text(page, encoding="utf-8")
    (output / "images" / "recipe.svg").write_text(picture, encoding="utf-8")
