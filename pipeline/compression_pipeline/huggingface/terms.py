"""The terms that a teacher is published under, and what they ask of a model that is made of it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD = "README.md"

PAPERS = re.compile(r"(?i:LICEN[CS]E|NOTICE|USE_POLICY|COPYING)([._-][^/]*)?")
"""Names of the files that every copy of a model has to keep."""

FIELDS = ("license", "license_name", "license_link")

_META = "Copyright © Meta Platforms, Inc. All Rights Reserved."


@dataclass(frozen=True)
class Asked:
    """What Meta's licenses ask of derivatives: a line to show, how their names begin, and a notice to keep."""

    line: str | None
    name: str | None
    notice: str


def _llama(version: str) -> Asked:
    told = f"Llama {version} is licensed under the Llama {version} Community License, {_META}"
    return Asked("Built with Llama", "Llama", told)


LLAMA = {
    "llama2": Asked(None, None, f"Llama 2 is licensed under the LLAMA 2 Community License, {_META}"),
    "llama3": Asked(
        "Built with Meta Llama 3",
        "Llama 3",
        f"Meta Llama 3 is licensed under the Meta Llama 3 Community License, {_META}",
    ),
    **{f"llama{version}": _llama(version) for version in ("3.1", "3.2", "3.3", "4")},
}
"""By the Hub's names of the licenses."""


@dataclass(frozen=True)
class Terms:
    """Of one model."""

    fields: dict[str, str]
    """Of its card's header, as they are."""

    @classmethod
    def of(cls, model: Path) -> "Terms":
        """From the model's card; none where there is no card, or none that can be read."""
        try:
            told = front_matter((model / CARD).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            told = {}
        return cls({name: told[name] for name in FIELDS if isinstance(told.get(name), str)})

    @property
    def asked(self) -> Asked | None:
        """What they ask, where they are known to ask something."""
        names = (self.fields.get("license", ""), self.fields.get("license_name", ""))
        return next((LLAMA[name.lower()] for name in names if name.lower() in LLAMA), None)

    def title(self, title: str) -> str:
        """A name for a model made of this one."""
        begins = self.asked.name if self.asked else None
        plain = re.sub(r"[-_]", " ", title).lower()
        return title if begins is None or plain.startswith(begins.lower()) else f"{begins} {title}"

    def write_notice(self, folder: Path) -> None:
        """The notice that every copy has to keep, unless one is there."""
        if self.asked and not any(path.name.upper().startswith("NOTICE") for path in folder.iterdir()):
            (folder / "NOTICE").write_text(f"{self.asked.notice}\n", encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    """The YAML at the head of a README; nothing where it can't be read."""
    import yaml

    if not text.startswith("---"):
        return {}
    head = text[3:].split("\n---", 1)[0]
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
