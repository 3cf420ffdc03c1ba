"""A manifest: one immutable snapshot of what a run holds, as JSON with its own checksum.

Manifests are numbered; the highest valid one is the whole truth about a run. A task's entry is
kept as JSON text, so that a manifest of 100,000 tasks is loaded and written in about a second.
Knows how manifests are found and read, not when a new one may be written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields
from enum import StrEnum
from typing import Any

from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Counts, File, Receipt
from zfscale.runs import segments
from zfscale.storage.base import Storage

FORMAT = 2
FOLDER = "manifest"
_HEAD = b'{"sha256":"%s","manifest":'
_NAME = re.compile(rf"{FOLDER}/(\d{{8,}})\.json")


class State(StrEnum):
    """How far an analysis came. One that is `running` and has no job any more was killed."""

    PLANNED = "planned"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class AnalysisState:
    """A named analysis of a run.

    `options` are those of its kind, as JSON; `files` maps each option that names a file to the
    SHA-256 of what was in it. `needs` maps a kind to the name of the analysis that this one
    depends on, and `inputs` these names to the `results` that it worked on. `metadata` is what
    the analysis tells its readers. `tasks` maps the id of a committed task to the JSON text of
    its entry: see `receipt`. `published` are final files by path, `results` is a hash of what
    they were made from, None where nothing is published. `counts` and `seconds` are those of the
    last time it was worked on to the end; `command` is the command line that goes on with it.
    `uses_network` says whether its results depend on the fingerprint of the run.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    state: State = State.PLANNED
    results: str | None = None
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    error: str | None = None
    command: str | None = None
    uses_network: bool = True
    published: Mapping[str, File] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_computed(self) -> bool:
        """Whether it has committed tasks that depend on the fingerprint."""
        return self.uses_network and bool(self.tasks)

    @property
    def images(self) -> str | None:
        """The name in the run of its table that lists each image once, with how it ended."""
        name = self.metadata.get("images")
        return name if isinstance(name, str) else None

    def receipt(self, task: str) -> Receipt:
        """The receipt of a committed task. Raises KeyError for another."""
        return _receipt(task, self.tasks[task])

    def receipts(self) -> Iterator[Receipt]:
        """The receipts of all committed tasks."""
        return (self.receipt(task) for task in self.tasks)


@dataclass(frozen=True)
class Manifest:
    """What a run holds.

    `writer` is a random name of the process that wrote it, `written` the time. `fingerprint` are
    named parts as JSON that must stay as they are while any analysis that depends on them has a
    committed task.
    `metadata` is what run.json says of the run as a whole.
    """

    number: int
    writer: str
    run_id: str
    created: str
    written: str
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    analyses: Mapping[str, AnalysisState] = field(default_factory=dict)

    def files(self) -> Iterator[File]:
        """Every file that the run holds: of tasks, and published ones."""
        for analysis in self.analyses.values():
            for receipt in analysis.receipts():
                yield from receipt.files
            yield from analysis.published.values()

    def with_dependencies(self, names: Iterable[str]) -> set[str]:
        """Those analyses of the run that have these names, and all that they rest on."""
        found: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            if name not in found and name in self.analyses:
                found.add(name)
                left += self.analyses[name].needs.values()
        return found

    def is_outdated(self, name: str) -> bool:
        """Whether the results of an analysis were made from others than those there are now."""
        inputs = self.analyses[name].inputs
        return any(
            needed not in self.analyses
            or self.analyses[needed].results != results
            or self.is_outdated(needed)
            for needed, results in inputs.items()
        )


def path(number: int) -> str:
    """Where manifest `number` lies."""
    return f"{FOLDER}/{number:08d}.json"


def number(path: str) -> int | None:
    """The number of a manifest by its path; None for any other file."""
    match = _NAME.fullmatch(path)
    return int(match[1]) if match else None


def entry(analysis: str, receipt: Receipt) -> str:
    """A receipt as short JSON text: files, counts, seconds.

    The path of a segment follows from what it holds, and is left out.
    """
    rows = []
    for file in receipt.files:
        follows = file.path == _segment(analysis, receipt.task, file)
        path = None if follows else file.path
        rows.append([path, file.sha256, file.size, file.table, file.rows])
    return _dump([rows, astuple(receipt.counts), round(receipt.seconds, 3), analysis])


def _receipt(task: str, text: str) -> Receipt:
    rows, counts, seconds, analysis = json.loads(text)
    files = []
    for path, *values in rows:
        file = File(path or "", *values)
        files.append(file if path else File(_segment(analysis, task, file), *values))
    return Receipt(task, tuple(files), Counts(*counts), seconds)


def _segment(analysis: str, task: str, file: File) -> str:
    return "" if file.table is None else segments.path(analysis, task, file.table, file.sha256)


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest: a JSON object, one task a line."""
    head = {"format": FORMAT} | {f.name: getattr(manifest, f.name) for f in fields(Manifest)}
    head["analyses"] = {name: as_json(state) for name, state in manifest.analyses.items()}
    by_analysis = ",\n".join(
        f"{_dump(name)}:{{\n"
        + ",\n".join(f"{_dump(task)}:{text}" for task, text in state.tasks.items())
        + "\n}"
        for name, state in manifest.analyses.items()
    )
    body = f'{_dump(head)[:-1]},"tasks":{{\n{by_analysis}\n}}}}'.encode()
    return _HEAD % hashlib.sha256(body).hexdigest().encode() + body + b"}\n"


def as_json(state: AnalysisState) -> dict[str, Any]:
    """An analysis as JSON, without its tasks."""
    content = {f.name: getattr(state, f.name) for f in fields(AnalysisState) if f.name != "tasks"}
    content["counts"] = astuple(state.counts)
    content["published"] = {
        file.path: [file.sha256, file.size, file.table, file.rows]
        for file in state.published.values()
    }
    return content


def from_json(content: Mapping[str, Any], tasks: Mapping[str, str] | None = None) -> AnalysisState:
    """The analysis that `as_json` wrote; keys that it does not know are left out."""
    names = {f.name for f in fields(AnalysisState)} - {"tasks"}
    values = {name: value for name, value in content.items() if name in names}
    values["state"] = State(content["state"])
    values["counts"] = Counts(*content["counts"])
    values["published"] = {path: File(path, *rest) for path, rest in content["published"].items()}
    return AnalysisState(**values, tasks=tasks or {})


def decode(data: bytes) -> Manifest:
    """The manifest in some bytes. Raises ValueError if they are torn or damaged."""
    size = len(_HEAD % (b"0" * 64))
    body = data[size:-2]
    if data != _HEAD % hashlib.sha256(body).hexdigest().encode() + body + b"}\n":
        raise ValueError("its checksum is wrong")
    content = json.loads(body)
    if content.pop("format") != FORMAT:
        raise UsageError(
            "the run was written by another version of zfscale: read it with that version, or "
            "compute it anew in a new run directory"
        )
    tasks = content.pop("tasks")
    content["analyses"] = {
        name: from_json(state, {task: _dump(text) for task, text in tasks[name].items()})
        for name, state in content["analyses"].items()
    }
    return Manifest(**content)


def latest(storage: Storage) -> tuple[Manifest | None, tuple[str, ...]]:
    """The highest valid manifest, and the paths of damaged ones above it.

    None where no run has begun. Raises IntegrityError if there are manifests and none is valid.
    """
    damaged: list[str] = []
    for _, name in sorted(numbered(storage), reverse=True):
        try:
            return decode(storage.read(name)), tuple(damaged)
        except ValueError:
            damaged.append(name)
    if damaged:
        raise IntegrityError(
            f"{storage.url}: none of {len(damaged)} manifests is intact: it is not known what the "
            "run holds; restore manifest/ from a copy, or use a new run directory"
        )
    return None, ()


def load(storage: Storage) -> Manifest:
    """The manifest of an existing run. Raises UsageError if there is no run."""
    manifest, _ = latest(storage)
    if manifest is None:
        raise UsageError(f"{storage.url}: there is no run here (no manifest)")
    return manifest


def numbered(storage: Storage) -> list[tuple[int, str]]:
    """Number and path of all manifests, the damaged ones too, in order."""
    names = ((number(name), name) for name in storage.list(FOLDER))
    return sorted((at, name) for at, name in names if at is not None)


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
