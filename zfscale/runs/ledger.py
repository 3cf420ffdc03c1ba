"""The ledger of a run: which tasks are committed, and the protocol by which they become so.

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
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from zfscale.errors import FingerprintMismatch, IntegrityError
from zfscale.records import Counts, File, Receipt
from zfscale.runs import manifest as manifests
from zfscale.runs import record as run
from zfscale.runs.manifest import RUNNING, Manifest
from zfscale.runs.verify import Damage, find_damage
from zfscale.storage.base import Storage, probe


class Ledger:
    """The ledger of a run, open for writing by one process: of two, one stops at its next commit.

    `notes` are sentences about what was found at opening and repaired.
    """

    def __init__(self, storage: Storage, manifest: Manifest, notes: tuple[str, ...] = ()) -> None:
        self.storage = storage
        self.manifest = manifest
        self.notes = notes

    @classmethod
    def open(
        cls,
        storage: Storage,
        fingerprint: Mapping[str, Any],
        stages: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
    ) -> Ledger:
        """Begin a run or take it up again, and commit that.

        `fingerprint` are named parts that must never change; `stages` maps each stage of the job
        to its options, which must not change once it has a committed task; `facts` are added to
        run.json. All are plain JSON. Raises FingerprintMismatch naming what differs.
        """
        probe(storage)
        fingerprint, stages = _plain(fingerprint), _plain(stages)
        old, damaged = manifests.latest(storage)
        writer = uuid.uuid4().hex
        if old is None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            id_ = run_id(fingerprint, stages)
            state = Manifest(0, writer, id_, now, RUNNING, fingerprint)
        else:
            _same(storage, "", old.fingerprint, fingerprint)
            begun = {task.rpartition("-")[0] for task in old.tasks} & set(stages)
            _same(storage, "options of ", _pick(old.stages, begun), _pick(stages, begun))
            state = replace(old, writer=writer)
        notes = [f"{path} is damaged; went back to the commit before it" for path in damaged]
        ledger = cls(storage, state, tuple(notes))
        kept = {**state.stages, **stages}
        state = replace(state, number=_highest(storage), status=RUNNING, stages=kept)
        ledger._create(state, facts or {})
        return ledger

    @classmethod
    def take_over(cls, storage: Storage) -> Ledger:
        """Own an existing run as it is, whatever its fingerprint: an older writer then stops."""
        state = replace(manifests.load(storage), writer=uuid.uuid4().hex)
        ledger = cls(storage, state)
        ledger._create(replace(state, number=_highest(storage)), {})
        return ledger

    @property
    def committed(self) -> Mapping[str, Receipt]:
        """Receipts of the committed tasks, by task id."""
        return _Receipts(self.manifest)

    @property
    def published(self) -> Mapping[str, File]:
        """Final files by path."""
        return self.manifest.published

    def commit(
        self,
        receipts: Iterable[Receipt] = (),
        *,
        published: Iterable[File] = (),
        withdrawn: Iterable[str] = (),
        status: str = RUNNING,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit tasks and published files; on return both are durable.

        `withdrawn` are directories whose files no longer count as published: withdraw a table
        before its files are replaced. `facts` are added to those of the run. A task that is
        committed already with the same files changes nothing. Raises IntegrityError if it has
        other files, or if another process writes to this run.
        """
        new = self._new(receipts)
        gone = tuple(f"{directory}/" for directory in withdrawn)
        kept = {p: f for p, f in self.manifest.published.items() if not p.startswith(gone)}
        final = kept | {file.path: file for file in published}
        tasks = {**self.manifest.tasks, **new} if new else self.manifest.tasks
        state = replace(self.manifest, status=status, published=final, tasks=tasks)
        if state != self.manifest or facts:
            self._create(state, facts or {})

    def counts(self, stage: str, tasks: Collection[str] | None = None) -> Counts:
        """Images of the committed tasks of a stage, or of those among `tasks`."""
        chosen = self.manifest.tasks if tasks is None else tasks
        mine = [t for t in chosen if t.rpartition("-")[0] == stage and t in self.manifest.tasks]
        return sum((self.manifest.receipt(task).counts for task in mine), Counts())

    def verify(self) -> list[Damage]:
        """Every file of the run that is missing, or whose size or SHA-256 is wrong."""
        return find_damage(self.storage, self.manifest)

    def _new(self, receipts: Iterable[Receipt]) -> dict[str, str]:
        new: dict[str, str] = {}
        for receipt in receipts:
            known = new.get(receipt.task) or self.manifest.tasks.get(receipt.task)
            if known is None:
                new[receipt.task] = manifests.entry(receipt)
            else:
                _same_result(manifests.receipt(receipt.task, known), receipt)
        return new

    def _create(self, state: Manifest, facts: Mapping[str, Any]) -> None:
        clash = run.KEYS & set(facts)
        if clash:
            raise ValueError(f"facts may not be called {sorted(clash)}")
        merged = {**state.facts, **_plain(facts)}
        state = replace(state, number=state.number + 1, facts=merged)
        path, data = manifests.path(state.number), manifests.encode(state)
        # A store may answer "exists" to a retry of its own: whose bytes they are tells who won.
        if not self.storage.create(path, data) and self.storage.read(path) != data:
            raise IntegrityError(
                f"{self.storage.url}: another process is writing to this run (it created {path}); "
                "one job at a time may: wait until it ends or stop it, then run this job again"
            )
        self.manifest = state
        run.write(self.storage, state)


def run_id(fingerprint: Mapping[str, Any], stages: Mapping[str, Any]) -> str:
    """The id of a run: 16 hex digits of what it was begun with, so that equal runs have equal
    tables, and those of another collection can be told apart.
    """
    text = json.dumps([fingerprint, stages], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _highest(storage: Storage) -> int:
    """The number of the last manifest, valid or not: the next one must be above it."""
    return max((at for at, _ in manifests.numbered(storage)), default=0)


class _Receipts(Mapping[str, Receipt]):
    """Receipts by task, decoded when asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __getitem__(self, task: str) -> Receipt:
        return self._manifest.receipt(task)

    def __contains__(self, task: object) -> bool:
        return task in self._manifest.tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.tasks)

    def __len__(self) -> int:
        return len(self._manifest.tasks)


def _same_result(old: Receipt, new: Receipt) -> None:
    if set(old.files) == set(new.files) and old.counts == new.counts:
        return
    before, after = ({f.path: f.sha256 for f in r.files} for r in (old, new))
    raise IntegrityError(
        f"task {old.task} gave two different results: committed {before} with {old.counts}, "
        f"now {after} with {new.counts}; the computation is not deterministic on this machine, "
        "or the images changed: scan into a new run"
    )


def _same(storage: Storage, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    differences = list(_differences("", old, new))
    if differences:
        raise FingerprintMismatch(
            f"{storage.url}: this run was begun differently: "
            + "; ".join(f"{what}{difference}" for difference in differences)
            + "; go on with the settings it was begun with, or use a new run directory"
        )


def _differences(prefix: str, old: Any, new: Any) -> Iterator[str]:
    """Leaves that differ between two JSON values, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = f"{prefix}.{name}" if prefix else name
            yield from _differences(inner, old.get(name), new.get(name))
    elif old != new:
        yield f"{prefix} was {_brief(old)}, is now {_brief(new)}"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _pick(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: values.get(name) for name in names}


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value as JSON gives it back, so that tuples and lists compare equal."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain
