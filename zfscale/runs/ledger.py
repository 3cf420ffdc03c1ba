"""The ledger of a run: which tasks of which analysis are committed, and how they become so.

Workers publish their files first. A commit then creates the next manifest, which must not exist:
once that is durable the tasks are acknowledged, and they stay so. A second writer loses the
creation and stops. The ledger is cumulative, so the highest valid manifest is the whole truth
and a resume needs nothing else. Knows nothing of what tasks compute.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from zfscale.errors import FingerprintMismatch, IntegrityError
from zfscale.records import Counts, File, Receipt
from zfscale.runs import manifest as manifests
from zfscale.runs import record
from zfscale.runs.manifest import AnalysisState, Manifest, State
from zfscale.storage.base import Storage, probe


@dataclass(frozen=True)
class Planned:
    """An analysis that a job wants: see `AnalysisState` for the fields.

    Its results are `fixed` if others work on what it does, and it has no name of its own to change.
    It depends on the fingerprint if it `uses_network`.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = False
    uses_network: bool = True


class Ledger:
    """The ledger of a run, open for writing by one process: of two, one stops at its next commit.

    `warnings` are sentences about what was found at opening and repaired.
    """

    def __init__(
        self, storage: Storage, manifest: Manifest, warnings: tuple[str, ...] = ()
    ) -> None:
        self.storage = storage
        self.manifest = manifest
        self.warnings = warnings

    @classmethod
    def open(
        cls,
        storage: Storage,
        fingerprint: Mapping[str, Any],
        planned: Mapping[str, Planned],
        metadata: Mapping[str, Any] | None = None,
        replaced: Collection[str] = (),
        command: str | None = None,
    ) -> Ledger:
        """Begin a run or take it up again, with the analyses of a job by name, and commit that.

        What analyses of the names `replaced` hold is dropped, and their final files are deleted:
        whoever reads these without asking the manifest must not find the old ones. `fingerprint`
        must be the same as long as an analysis that depends on it has committed tasks, and kind,
        options, files and needs of each analysis as long as this one has. `metadata` is added to
        that of the run. All are plain JSON. Raises FingerprintMismatch naming what differs and the
        ways out.
        """
        probe(storage)
        fingerprint = _plain(fingerprint)
        old, damaged = manifests.latest(storage)
        now = _now()
        state = old or Manifest(0, "", run_id(fingerprint, planned), now, now)
        analyses = {n: s for n, s in state.analyses.items() if n not in replaced}
        if any(analysis.is_computed for analysis in analyses.values()):
            _check_fingerprint(storage, state.fingerprint, fingerprint)
        for name, wanted in planned.items():
            analyses[name] = _take_up(storage, name, analyses.get(name), wanted, command)
        warnings = tuple(
            f"{path} is damaged; went back to the commit before it" for path in damaged
        )
        ledger = cls(storage, replace(state, number=_highest(storage)), warnings)
        ledger._create(
            writer=uuid.uuid4().hex,
            # A worker says on what it computes, and no driver.
            fingerprint={**_only(state.fingerprint, "device", analyses), **fingerprint},
            metadata={**state.metadata, **_plain(metadata or {})},
            analyses=analyses,
        )
        for name in replaced:
            for path in state.analyses[name].published if name in state.analyses else ():
                storage.delete(path)
        return ledger

    @classmethod
    def take_over(cls, storage: Storage) -> Ledger:
        """Own an existing run as it is, whatever its fingerprint: an older writer then stops."""
        ledger = cls(storage, replace(manifests.load(storage), number=_highest(storage)))
        ledger._create(writer=uuid.uuid4().hex)
        return ledger

    def start(self, name: str, inputs: Mapping[str, str]) -> None:
        """Commit that an analysis is being worked on, from the results of others in `inputs`.

        What was published from other inputs counts no more, nor do tasks that wrote parts of
        arrays: new ones put theirs in the same places.
        """
        old = self.manifest.analyses[name]
        gone: dict[str, Any] = {}
        if old.inputs != inputs:
            in_arrays = {r.task for r in old.receipts() if any(not f.table for f in r.files)}
            kept = {task: text for task, text in old.tasks.items() if task not in in_arrays}
            gone = {"published": {}, "results": None, "tasks": kept}
        self._update(name, state=State.RUNNING, inputs=dict(inputs), error=None, **gone)

    def commit(self, name: str, receipts: Iterable[Receipt]) -> None:
        """Commit tasks of an analysis; on return they are durable.

        A task that is committed already with the same files changes nothing. Raises
        IntegrityError if it has other files, or if another process writes to this run, and
        FingerprintMismatch if it was computed on another class of device.
        """
        analysis = self.manifest.analyses[name]
        new: dict[str, str] = {}
        device = self.manifest.fingerprint.get("device")
        for receipt in receipts:
            device = _same_device(self.storage, device, receipt.device)
            text = new.get(receipt.task) or analysis.tasks.get(receipt.task)
            if text is None:
                new[receipt.task] = manifests.entry(name, receipt)
            else:
                committed = replace(analysis, tasks={receipt.task: text}).receipt(receipt.task)
                _same_result(name, committed, receipt)
        if new:
            fingerprint = {**self.manifest.fingerprint, **({"device": device} if device else {})}
            tasks = {**analysis.tasks, **new}
            self._update(name, fingerprint=fingerprint, tasks=tasks)

    def withdraw(self, name: str) -> None:
        """Commit that the published files of an analysis count no more: they will be replaced."""
        analysis = self.manifest.analyses[name]
        if analysis.published or analysis.results is not None:
            self._update(name, published={}, results=None)

    def publish(
        self,
        name: str,
        files: Iterable[File],
        results: str,
        counts: Counts,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit the final files of an analysis, made from tasks whose hash is `results`."""
        analysis = self.manifest.analyses[name]
        self._update(
            name,
            published={file.path: file for file in files},
            results=results,
            counts=counts,
            metadata={**analysis.metadata, **_plain(metadata or {})},
        )

    def end(self, name: str, state: State, seconds: float, error: str | None = None) -> None:
        """Commit how the work on an analysis ended, and how long it took this time."""
        self._update(name, state=state, seconds=round(seconds, 3), error=error)

    def _update(
        self, name: str, fingerprint: Mapping[str, Any] | None = None, **changes: Any
    ) -> None:
        old = self.manifest.analyses[name]
        new = replace(old, **changes)
        if new != old:
            analyses = {**self.manifest.analyses, name: new}
            self._create(analyses=analyses, fingerprint=fingerprint or self.manifest.fingerprint)

    def _create(self, **changes: Any) -> None:
        state = replace(self.manifest, number=self.manifest.number + 1, written=_now(), **changes)
        path, data = manifests.path(state.number), manifests.encode(state)
        try:
            created = self.storage.create(path, data)
        except BaseException:
            # It may be there all the same: an interruption can come when it is just written.
            if self.storage.exists(path) and self.storage.read(path) == data:
                self.manifest = state
            raise
        # A store may answer "exists" to a retry of its own: whose bytes they are tells who won.
        if not created and self.storage.read(path) != data:
            raise IntegrityError(
                f"{self.storage.url}: another process is writing to this run (it created {path}); "
                "one job at a time may: wait until it ends or stop it, then run this job again"
            )
        self.manifest = state
        record.write(self.storage, state)


def run_id(fingerprint: Mapping[str, Any], planned: Mapping[str, Planned]) -> str:
    """The id of a run: 16 hex digits of what it was begun with, so that equal runs have equal
    tables, and those of another collection can be told apart.
    """
    stages = {name: [each.kind, each.options, each.files] for name, each in planned.items()}
    text = json.dumps([fingerprint, stages], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _take_up(
    storage: Storage,
    name: str,
    old: AnalysisState | None,
    wanted: Planned,
    command: str | None,
) -> AnalysisState:
    """The state of an analysis that a job names. Raises FingerprintMismatch if it is another."""
    new = AnalysisState(
        kind=wanted.kind,
        options=_plain(wanted.options),
        files=dict(wanted.files),
        needs=dict(wanted.needs),
        metadata=_plain(wanted.metadata),
        command=command,
        uses_network=wanted.uses_network,
    )
    differences = [] if old is None else list(_differences("", _settings(old), _settings(new)))
    if old is None or (differences and not old.tasks):
        return new
    if differences and wanted.fixed:
        raise FingerprintMismatch(
            f"{storage.url}: the run was created from others: {'; '.join(differences)}. Go on with "
            f"those it was created from, use a new run directory, or begin anew here with "
            f"--replace {name}"
        )
    if differences:
        raise FingerprintMismatch(
            f"analyses.{name}: {storage.url} has results of it with other options: "
            f"{'; '.join(differences)}. Give the new ones another name, e.g. "
            f"`{name}-2: {{use: {wanted.kind}, ...}}`, or drop the results that are there with "
            f"--replace {name}"
        )
    return replace(old, options=new.options, metadata={**old.metadata, **new.metadata},
                   command=command)  # fmt: skip


def _settings(state: AnalysisState) -> dict[str, Any]:
    """What must stay the same: the options, of a file that one names only the content."""
    contents = {key: f"a file with SHA-256 {sha[:16]}" for key, sha in state.files.items()}
    needs = {f"needs.{kind}": name for kind, name in state.needs.items()}
    return {"use": state.kind, **state.options, **contents, **needs}


def _check_fingerprint(storage: Storage, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    shared = {name: value for name, value in old.items() if name != "device" or name in new}
    differences = list(_differences("", shared, new))
    if differences:
        raise FingerprintMismatch(
            f"{storage.url}: the run was created with other settings: {'; '.join(differences)}. "
            "Go on with the settings it was created with, or use a new run directory"
        )


def _same_device(storage: Storage, old: str | None, new: str) -> str | None:
    if old and new and old != new:
        raise FingerprintMismatch(
            f"{storage.url}: device: {old} → {new}. The results of different devices may differ "
            "in their last digits: go on with workers of the first kind, or use a new run directory"
        )
    return new or old


def _same_result(name: str, old: Receipt, new: Receipt) -> None:
    if set(old.files) == set(new.files) and old.counts == new.counts:
        return
    before, after = ({f.path: f.sha256 for f in r.files} for r in (old, new))
    raise IntegrityError(
        f"{name} task {old.task} gave two different results: committed {before} with "
        f"{old.counts}, now {after} with {new.counts}; the computation is not deterministic on "
        "this machine, or the images changed: scan into a new run"
    )


def _differences(prefix: str, old: Any, new: Any) -> Iterator[str]:
    """Leaves that differ between two JSON values: `key: old → new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = f"{prefix}.{name}" if prefix else name
            yield from _differences(inner, old.get(name), new.get(name))
    elif old != new:
        if isinstance(old, list) and isinstance(new, list) and _brief(old) == _brief(new):
            # Long lists that differ late: what is in one of them alone.
            gone, come = (
                [each for each in a if each not in b] for a, b in [(old, new), (new, old)]
            )
            old, new = (gone, come) if gone or come else (old, new)
        yield f"{prefix}: {_brief(old)} → {_brief(new)}"


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _only(
    fingerprint: Mapping[str, Any], part: str, analyses: Mapping[str, AnalysisState]
) -> dict[str, Any]:
    """One part of a fingerprint, as long as a committed task vouches for it."""
    known = part in fingerprint and any(analysis.is_computed for analysis in analyses.values())
    return {part: fingerprint[part]} if known else {}


def _highest(storage: Storage) -> int:
    """The number of the last manifest, valid or not: the next one must be above it."""
    return max((at for at, _ in manifests.numbered(storage)), default=0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value as JSON gives it back, so that tuples and lists compare equal."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain
