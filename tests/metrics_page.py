"""docs/metrics.md, read by tests."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def documented() -> dict[str, list[str]]:
    """The metrics of each group, as they stand on the page."""
    groups = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        groups[section.split("\n")[0]] = re.findall(r"^\| `(\S+)` \| [^|]+ \| [^|]+ \|$", section, re.M)
    return groups


def missing(names: set[str], group: str | None = None) -> set[str]:
    """The names that the page does not have, in the group or in any; capitals stand for a name or a number there."""
    page = documented()
    entries = page[group] if group else [entry for entries in page.values() for entry in entries]
    pattern = "|".join(re.sub("[A-Z]+", r"\\w+", re.escape(entry)) for entry in entries)
    return {name for name in names if not re.fullmatch(pattern, name)}
