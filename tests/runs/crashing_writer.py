"""A writer that dies at a chosen step: run by test_crash.py, knows no test.

`sweep DIRECTORY` dies, in a forked process, before every single call that changes the disk, each
time on a fresh run, and prints what was left as JSON lines.
`forever DIRECTORY` commits until it is killed and prints the number of each commit.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np

from zfscale.records import Column, Counts, Receipt, Table
from zfscale.runs import manifest as manifests
from zfscale.runs import record, tables
from zfscale.runs.ledger import Ledger, Planned
from zfscale.runs.manifest import State
from zfscale.runs.verify import find_damage
from zfscale.storage import open_storage
from zfscale.storage.base import file

STEPS = ("fsync", "rename", "link", "mkdir", "unlink")
GROUPS = (("01", "02"), ("03",), ("04", "05"))
TABLE = Table("numbers", 1, (Column("id", "int64", "any"),), ("id",), ("id",))


def open_ledger(storage):
    return Ledger.open(storage, {"model": "m"}, {"scan": Planned("scan")})


def receipt(storage, task):
    data = task.encode() * 1000
    path = f"segments/scan/{task}.bin"
    storage.publish(path, data)
    return Receipt(task, (file(path, data),), Counts(1, ok=1), 0.0)


def work(storage, acknowledge):
    """Commit what is missing, one group at a time, then publish a table, as a job does."""
    ledger = open_ledger(storage)
    ledger.start("scan", {})
    for number, group in enumerate(GROUPS):
        missing = [task for task in group if task not in ledger.manifest.analyses["scan"].tasks]
        ledger.commit("scan", [receipt(storage, task) for task in missing])
        acknowledge(number + 1)
    ledger.withdraw("scan")
    with tables.writing(storage, ledger.manifest.run_id) as writer:
        writer.add(TABLE, {"id": np.arange(3)})
    ledger.publish("scan", writer.files, "hash", Counts(5, ok=5))
    ledger.end("scan", State.COMPLETE, 0.0)
    acknowledge(len(GROUPS) + 1)


def die_at(step):
    """End this process in place of its `step`-th call that changes the disk."""
    calls = itertools.count()

    def wrap(real):
        def call(*args, **kwargs):
            if next(calls) == step:
                os._exit(9)
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))


def crash(directory, step):
    """One crash: exit status of the writer and the commits that it acknowledged."""
    acknowledged = Path(f"{directory}.acknowledged")
    acknowledged.write_text("0")
    child = os.fork()
    if child == 0:
        die_at(step)
        work(open_storage(directory), lambda n: acknowledged.write_text(str(n)))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(acknowledged.read_text())


def state(directory):
    """What a reader finds: tasks, state, damaged files, number in run.json, rows published."""
    storage = open_storage(directory)
    manifest, damaged = manifests.latest(storage)
    if manifest is None:
        nothing = {"number": 0, "tasks": [], "state": None, "rows": 0}
        return nothing | {"damage": list(damaged), "record": 0}
    scan = manifest.analyses["scan"]
    return {
        "number": manifest.number,
        "tasks": list(scan.tasks),
        "state": scan.state,
        "rows": sum(part.rows for part in scan.published.values()),
        "damage": [*damaged, *map(str, find_damage(storage, manifest))],
        "record": record.read(storage).manifest if storage.exists(record.PATH) else 0,
    }


def sweep(base):
    for step in itertools.count():
        directory = f"{base}/{step}"
        code, acknowledged = crash(directory, step)
        found = state(directory)
        work(open_storage(directory), lambda n: None)
        result = {"code": code, "acknowledged": acknowledged} | found
        print(json.dumps(result | {"resumed": state(directory)}), flush=True)
        if code == 0:
            return


def forever(directory):
    storage = open_storage(directory)
    ledger = open_ledger(storage)
    for number in itertools.count(len(ledger.manifest.analyses["scan"].tasks)):
        ledger.commit("scan", [receipt(storage, f"{number:06}")])
        print(number + 1, flush=True)


if __name__ == "__main__":
    {"sweep": sweep, "forever": forever}[sys.argv[1]](sys.argv[2])
