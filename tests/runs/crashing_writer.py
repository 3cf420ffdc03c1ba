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

from zfscale.records import Counts, Receipt
from zfscale.runs import manifest as manifests
from zfscale.runs import record as run
from zfscale.runs.ledger import Ledger
from zfscale.storage import open_storage
from zfscale.storage.base import file

STEPS = ("fsync", "rename", "link", "mkdir", "unlink")
GROUPS = (("scan-01", "scan-02"), ("scan-03",), ("scan-04", "scan-05"))


def receipt(storage, task):
    data = task.encode() * 1000
    path = f"segments/scan/{task}.bin"
    storage.publish(path, data)
    return Receipt(task, (file(path, data),), Counts(1, ok=1), 0.0)


def work(storage, acknowledge):
    """Commit what is missing, one group at a time."""
    ledger = Ledger.open(storage, {"model": "m"}, {"scan": {}})
    for number, group in enumerate(GROUPS):
        missing = [task for task in group if task not in ledger.committed]
        last = group == GROUPS[-1]
        ledger.commit(
            [receipt(storage, task) for task in missing],
            status="complete" if last else "running",
        )
        acknowledge(number + 1)


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
    """What a reader finds: committed tasks, damaged files, number in run.json, leftovers."""
    storage = open_storage(directory)
    manifest, damaged = manifests.latest(storage)
    if manifest is None:
        return {"number": 0, "tasks": [], "damage": list(damaged), "record": 0}
    ledger = Ledger(storage, manifest)
    record = run.read(storage).manifest if storage.exists(run.PATH) else 0
    damage = [*damaged, *map(str, ledger.verify())]
    return {
        "number": manifest.number,
        "tasks": list(manifest.tasks),
        "damage": damage,
        "record": record,
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
    ledger = Ledger.open(storage, {"model": "m"}, {"scan": {}})
    for number in itertools.count(len(ledger.committed)):
        ledger.commit([receipt(storage, f"scan-{number:06}")])
        print(number + 1, flush=True)


if __name__ == "__main__":
    {"sweep": sweep, "forever": forever}[sys.argv[1]](sys.argv[2])
