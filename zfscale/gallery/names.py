"""From untrusted names to file names, and from values to text. Knows no run and no HTML."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def slugs(names: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """A file name for each name: the name itself where it is plain, and always distinct.

    None is one of the `reserved` names.

    Holds nothing but letters, digits, `_`, `-` and inner dots, so it cannot leave its folder nor
    need escaping in a URL; distinct also where the file system ignores case.
    """
    by_name: dict[str, str] = {}
    taken = {name.casefold() for name in reserved}
    for name in names:
        base = UNSAFE.sub("_", name).strip(".")[:80] or "_"
        slug, number = base, 2
        while slug.casefold() in taken:
            slug, number = f"{base}-{number}", number + 1
        taken.add(slug.casefold())
        by_name[name] = slug
    return by_name


def feature_name(feature: int) -> str:
    """The number of a feature as it stands in an address."""
    return f"{feature:04d}"


def number(value: Any) -> str:
    """A measured value in three significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def between(value: float, low: float, high: float) -> str:
    """A value of a scale from `low` to `high`, to a fiftieth of the scale's length or finer."""
    spread = high - low
    if not (math.isfinite(value) and math.isfinite(spread)) or spread <= 0:
        return number(value)
    return f"{value:,.{min(max(math.ceil(math.log10(50 / spread)), 0), 9)}f}"


def percent(value: Any) -> str:
    """A fraction as a percentage."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{100 * value:.1f} %"


def script_json(value: Any) -> str:
    """JSON that is safe inside a script in any page: nothing in it can end or open a tag."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
