"""What a benchmark gives: a table and what to know of it. Written as Markdown.

Each benchmark owns the text between its two marks in the document; the prose around is kept.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Report:
    """Figures of one benchmark: rows of cells under a header, and a note in sentences.

    `figure` is an SVG that the note shows as NAME.svg, where there is one.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str
    figure: str | None = None


def markdown(report: Report) -> str:
    """The table, the note and the machine."""
    lines = [_line(report.header), _line(("---",) * len(report.header))]
    lines += [_line(row) for row in report.rows]
    return "\n".join([*lines, "", report.note, "", machine()])


def machine() -> str:
    """This machine in one sentence: processor, cores, memory, versions, how busy it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GB; Python "
        f"{platform.python_version()}, torch {torch.__version__}; load average at the end "
        f"{os.getloadavg()[0]:.1f}."
    )


def write(document: Path, name: str, title: str, text: str) -> None:
    """Put `text` between the marks of a benchmark, or as a new section at the end."""
    begin, end = f"<!-- figures: {name} -->\n", f"\n<!-- end: {name} -->"
    content = document.read_text("utf-8") if document.exists() else "# Benchmarks\n"
    before, found, rest = content.partition(begin)
    if found:
        after = rest.partition(end)[2]
    else:
        before, after = f"{content.rstrip()}\n\n## {title}\n", "\n"
    document.write_text(f"{before}{begin}{text}{end}{after}", "utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    """The name of the processor with its family and model, for some names are vague."""
    keys = ("model name", "cpu family", "model")
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name, family, model = (facts.get(key, "unknown") for key in keys)
    return f"{name} (family {family}, model {model})"
