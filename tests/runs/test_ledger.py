"""The ledger: what is acknowledged stays, one writer at a time, one fingerprint for all results."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from zfscale.errors import FingerprintMismatch, IntegrityError, UsageError
from zfscale.records import Counts, File
from zfscale.runs import manifest as manifests
from zfscale.runs import record
from zfscale.runs.ledger import Ledger, Planned, run_id
from zfscale.runs.manifest import State
from zfscale.storage import open_storage

FINGERPRINT = {"model": "alexnet", "batch": 32, "preprocessing": {"crop": (224, 224), "scale": 1.0}}
SHA = "0123456789abcdef" * 4


def open_ledger(storage, fingerprint=FINGERPRINT, replaced=(), command=None, **planned):
    """The ledger of a job with some analyses by name, by default one scan."""
    planned = planned or {"scan": Planned("scan", {"top_k": 9})}
    return Ledger.open(storage, fingerprint, planned, None, replaced, command)


def tasks(storage, name="scan"):
    """What a reader finds committed."""
    return list(manifests.load(storage).analyses[name].receipts())


def finish(ledger, name, results, files=(), inputs=None):
    """The work on an analysis, from beginning to end, without any task."""
    ledger.start(name, inputs or {})
    ledger.publish(name, files, results, Counts())
    ledger.end(name, State.COMPLETE, 1.0)


def test_commits_add_up_and_survive_reopening(storage, receipt):
    ledger = open_ledger(storage)
    assert tasks(storage) == []
    given = [receipt(storage, number, number) for number in range(5)]
    ledger.commit("scan", given[:2])
    ledger.commit("scan", given[2:4])
    assert tasks(storage) == given[:4]
    ledger = open_ledger(storage)
    ledger.commit("scan", given[4:])
    assert tasks(storage) == given
    state = ledger.manifest.analyses["scan"]
    assert given[4].task in state.tasks
    with pytest.raises(KeyError):
        state.receipt("another")


def test_tasks_belong_to_their_analysis(storage, receipt):
    ledger = open_ledger(storage, scan=Planned("scan"), deep=Planned("scan"))
    one, other = receipt(storage, 1), receipt(storage, 1, name="deep")
    ledger.commit("scan", [one])
    ledger.commit("deep", [other])
    assert (tasks(storage), tasks(storage, "deep")) == ([one], [other])
    assert other.files[0].path.startswith("segments/deep/")


def test_same_result_again_changes_nothing(storage, receipt):
    ledger = open_ledger(storage)
    one = receipt(storage, 1)
    ledger.commit("scan", [one, replace(one, seconds=9.0)])
    before = storage.list("manifest")
    ledger.commit("scan", [replace(one, seconds=77.0)])
    ledger.commit("scan", [])
    assert storage.list("manifest") == before
    assert tasks(storage)[0].seconds == 0.5


@pytest.mark.parametrize("together", [False, True])
def test_a_second_different_result_raises_the_alarm(storage, receipt, together):
    ledger = open_ledger(storage)
    one, two = receipt(storage, 1, 1), receipt(storage, 1, 2)
    if not together:
        ledger.commit("scan", [one])
    with pytest.raises(IntegrityError) as caught:
        ledger.commit("scan", [one, two] if together else [two])
    for part in (f"scan task {one.task}", one.files[0].sha256, two.files[0].sha256):
        assert part in str(caught.value)
    assert len(tasks(storage)) == (0 if together else 1)


def test_other_counts_raise_the_alarm(storage, receipt):
    ledger = open_ledger(storage)
    one = receipt(storage, 1)
    ledger.commit("scan", [one])
    with pytest.raises(IntegrityError, match="two different results"):
        ledger.commit("scan", [replace(one, counts=Counts(3, ok=3))])


def test_another_fingerprint_is_refused_by_name(storage, receipt):
    open_ledger(storage).commit("scan", [receipt(storage, 1)])
    other = {**FINGERPRINT, "batch": 64, "preprocessing": {"crop": [224, 256], "scale": 1.0}}
    with pytest.raises(FingerprintMismatch) as caught:
        open_ledger(storage, other)
    text = str(caught.value)
    assert "batch: 32 → 64" in text
    assert "preprocessing.crop: " in text
    assert "model" not in text
    assert "use a new run directory" in text
    assert caught.value.exit_code == 2
    with pytest.raises(FingerprintMismatch, match="weights: null → abc"):
        open_ledger(storage, {**FINGERPRINT, "weights": "abc"})


def test_the_fingerprint_may_change_until_a_task_is_committed(storage, receipt):
    """An analysis without any task, whatever its state, holds nothing that could differ."""
    ledger = open_ledger(storage)
    finish(ledger, "scan", "nothing")
    changed = {**FINGERPRINT, "batch": 64}
    ledger = open_ledger(storage, changed)
    assert manifests.load(storage).fingerprint["batch"] == 64
    ledger.commit("scan", [receipt(storage, 1)])
    # A task of any analysis counts, also for a job that names only others.
    with pytest.raises(FingerprintMismatch, match="batch: 64 → 32"):
        open_ledger(storage, FINGERPRINT, other=Planned("occlusion"))
    # One that does not use the network does not count.
    listed = {"index": Planned("index", uses_network=False)}
    ledger = open_ledger(storage, changed, **listed)
    ledger.commit("index", [replace(receipt(storage, 2, name="index"), device="")])
    # Where every analysis with tasks is replaced nothing is left that could differ.
    open_ledger(storage, FINGERPRINT, ["scan"])
    assert manifests.load(storage).fingerprint["batch"] == 32
    assert list(manifests.load(storage).analyses["index"].tasks)


def test_a_complete_analysis_without_tasks_stays_complete(storage):
    """The switches of a network without max pools: what rests on them must not become outdated."""
    two = {"switches": Planned("switches"), "deconvolve": Planned("deconvolve")}
    ledger = open_ledger(storage, **two)
    finish(ledger, "switches", "none")
    finish(ledger, "deconvolve", "projections", inputs={"switches": "none"})
    manifest = open_ledger(storage, **two).manifest
    assert manifest.analyses["switches"].state == State.COMPLETE
    assert not manifest.is_outdated("deconvolve")


def test_options_may_change_until_a_task_is_committed(storage, receipt):
    open_ledger(storage)
    ledger = open_ledger(storage, scan=Planned("scan", {"top_k": 5}))
    assert ledger.manifest.analyses["scan"].options == {"top_k": 5}
    ledger.commit("scan", [receipt(storage, 1)])
    before = storage.list("manifest")
    with pytest.raises(FingerprintMismatch) as caught:
        open_ledger(storage)
    text = str(caught.value)
    assert text.startswith("analyses.scan: ")
    assert "top_k: 5 → 9" in text
    assert "`scan-2: {use: scan, ...}`" in text
    assert "--replace scan" in text
    assert caught.value.exit_code == 2
    assert storage.list("manifest") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "occlusion"}, "use: invariance → occlusion"),
        ({"needs": {"scan": "deep"}}, "needs.scan: scan → deep"),
        ({"options": {"scale": {"from": 1, "to": 3}}}, "scale.to: 2 → 3"),
        ({"options": {}}, 'scale: {"from": 1, "to": 2} → null'),
        ({"options": {"scale": {"from": 1, "to": 2}, "new": True}}, "new: null → true"),
    ],
)
def test_what_an_analysis_is_stays(storage, receipt, change, message):
    first = Planned("invariance", {"scale": {"from": 1, "to": 2}}, {}, {"scan": "scan"})
    done = open_ledger(storage, curves=first)
    done.commit("curves", [receipt(storage, 1, name="curves")])
    with pytest.raises(FingerprintMismatch) as caught:
        open_ledger(storage, curves=replace(first, **change))
    for part in (message, "another name", "--replace curves"):
        assert part in str(caught.value)


def test_tuples_and_lists_are_the_same_options(storage, receipt):
    ledger = open_ledger(storage, scan=Planned("scan", {"layers": ("a", "b")}))
    ledger.commit("scan", [receipt(storage, 1)])
    open_ledger(storage, scan=Planned("scan", {"layers": ["a", "b"]}))


def test_a_file_is_remembered_by_its_content(storage, receipt):
    def planned(place, content):
        return Planned("correspondence", {"parts": place, "draws": 3}, {"parts": content})

    one, other = SHA, SHA[::-1]
    ledger = open_ledger(storage, eyes=planned("/here/parts.csv", one))
    ledger.commit("eyes", [receipt(storage, 1, name="eyes")])
    ledger = open_ledger(storage, eyes=planned("/there/parts.csv", one))
    assert ledger.manifest.analyses["eyes"].options["parts"] == "/there/parts.csv"
    with pytest.raises(FingerprintMismatch) as caught:
        open_ledger(storage, eyes=planned("/there/parts.csv", other))
    told = f"parts: a file with SHA-256 {one[:16]} → a file with SHA-256 {other[:16]}"
    assert told in str(caught.value)
    assert "/there" not in str(caught.value)


def test_replaced_results_are_dropped(storage, receipt):
    analyses = {"scan": Planned("scan"), "deep": Planned("scan", {"top_k": 1})}
    ledger = open_ledger(storage, **analyses)
    for name in analyses:
        ledger.commit(name, [receipt(storage, 1, name=name)])
        storage.publish(f"{name}/part-00000.parquet", b"1")
        finish(ledger, name, name, [File(f"{name}/part-00000.parquet", SHA, 1, name, 1)])
    ledger = open_ledger(storage, replaced=["deep"], deep=Planned("scan", {"top_k": 2}))
    kept, new = (ledger.manifest.analyses[name] for name in ("scan", "deep"))
    assert (kept.state, kept.results, len(kept.tasks)) == (State.COMPLETE, "scan", 1)
    assert (new.state, new.results, new.tasks, new.published) == (State.PLANNED, None, {}, {})
    assert new.options == {"top_k": 2}
    # A reader who asks only the disk finds no results that are no more.
    assert storage.exists("scan/part-00000.parquet")
    assert not storage.exists("deep/part-00000.parquet")
    ledger = open_ledger(storage, replaced=["deep"], scan=Planned("scan"))
    assert list(ledger.manifest.analyses) == ["scan"]


def test_a_later_job_adds_analyses_and_leaves_the_others(storage, receipt):
    open_ledger(storage).commit("scan", [receipt(storage, 1)])
    later = Planned("deconvolve", {"unpooling": "place"}, {}, {"scan": "scan"})
    open_ledger(storage, deconvolve=later).commit(
        "deconvolve", [receipt(storage, 2, name="deconvolve")]
    )
    found = record.read(storage)
    assert found.analyses["scan"].options == {"top_k": 9}
    assert found.analyses["deconvolve"].options == {"unpooling": "place"}
    assert found.tasks == {"scan": 1, "deconvolve": 1}


def test_the_device_is_that_of_the_first_receipt(storage, receipt):
    ledger = open_ledger(storage)
    assert "device" not in ledger.manifest.fingerprint
    ledger.commit("scan", [receipt(storage, 1, device="Tesla T4")])
    assert manifests.load(storage).fingerprint == {
        **record.read(storage).fingerprint,
        "device": "Tesla T4",
        "batch": 32,
    }
    # A driver does not say it, and does not undo it.
    ledger = open_ledger(storage)
    assert manifests.load(storage).fingerprint["device"] == "Tesla T4"
    ledger.commit("scan", [receipt(storage, 2, device="Tesla T4")])
    before = storage.list("manifest")
    with pytest.raises(FingerprintMismatch) as caught:
        ledger.commit("scan", [receipt(storage, 3, device="A100")])
    assert "device: Tesla T4 → A100" in str(caught.value)
    assert "new run directory" in str(caught.value)
    assert storage.list("manifest") == before
    # Nor may one commit bring two.
    empty = open_ledger(storage, replaced=["scan"])
    assert "device" not in empty.manifest.fingerprint
    both = [receipt(storage, at, device=name) for at, name in enumerate(["A100", "Tesla T4"])]
    with pytest.raises(FingerprintMismatch, match="A100 → Tesla T4"):
        empty.commit("scan", both)
    assert tasks(storage) == []
    empty.commit("scan", both[:1])
    assert manifests.load(storage).fingerprint["device"] == "A100"


@pytest.mark.parametrize("state", [State.COMPLETE, State.FAILED, State.INTERRUPTED])
def test_states_of_an_analysis(storage, receipt, state):
    ledger = open_ledger(storage, command="zfscale run job.yaml")
    one = manifests.load(storage).analyses["scan"]
    assert (one.state, one.error, one.seconds) == (State.PLANNED, None, 0.0)
    ledger.start("scan", {})
    assert manifests.load(storage).analyses["scan"].state == State.RUNNING
    ledger.commit("scan", [receipt(storage, 1)])
    ledger.end("scan", state, 1.23456, "the disk is full" if state == State.FAILED else None)
    one = manifests.load(storage).analyses["scan"]
    assert (one.state, one.seconds, len(one.tasks)) == (state, 1.235, 1)
    assert one.error == ("the disk is full" if state == State.FAILED else None)
    # The next job takes it up as it is, and clears the error when it works on it.
    ledger = open_ledger(storage)
    assert manifests.load(storage).analyses["scan"].state == state
    ledger.start("scan", {})
    one = manifests.load(storage).analyses["scan"]
    assert (one.state, one.error, one.command) == (State.RUNNING, None, None)


def test_run_record_follows_every_commit(storage, receipt):
    ledger = open_ledger(storage, command="zfscale run job.yaml")
    found = record.read(storage)
    assert (found.manifest, found.run_id) == (1, ledger.manifest.run_id)
    scan = found.analyses["scan"]
    assert (scan.state, scan.command) == (State.PLANNED, "zfscale run job.yaml")
    ledger.start("scan", {})
    ledger.commit("scan", [receipt(storage, 1)])
    published = File("winners/part-00000.parquet", SHA, 5, "winners", 3)
    ledger.publish("scan", [published], "hash", Counts(2, ok=2), {"classes": ["cat"]})
    ledger.end("scan", State.COMPLETE, 2.0)
    found = record.read(storage)
    assert (found.manifest, found.tasks, found.outdated) == (5, {"scan": 1}, ())
    scan = found.analyses["scan"]
    assert scan.published == {published.path: published}
    assert (scan.state, scan.results, scan.metadata) == (
        State.COMPLETE,
        "hash",
        {"classes": ["cat"]},
    )
    assert (scan.counts, scan.seconds) == (Counts(2, ok=2), 2.0)
    assert found.analyses == {"scan": replace(ledger.manifest.analyses["scan"], tasks={})}


def test_metadata_of_the_run_and_of_its_analyses_add_up(storage):
    Ledger.open(storage, {}, {"scan": Planned("scan")}, {"job": {"batch": 1}, "old": 1})
    ledger = Ledger.open(storage, {}, {"scan": Planned("scan", metadata={"a": 1})}, {"job": {}})
    ledger.publish("scan", [], "hash", Counts(), {"b": (2,)})
    found = record.read(storage)
    assert found.metadata == {"job": {}, "old": 1}
    assert found.analyses["scan"].metadata == {"a": 1, "b": [2]}


@pytest.mark.parametrize(
    ("data", "error"),
    [(None, UsageError), (b"{", IntegrityError), (b"{}", IntegrityError), (b"[]", IntegrityError)],
)
def test_no_or_damaged_run_record(storage, data, error):
    if data is not None:
        storage.publish("run.json", data)
    with pytest.raises(error, match=r"run\.json"):
        record.read(storage)


def test_somebody_elses_files_are_left_alone(storage):
    record.check_unclaimed(storage, ["images", "winners"])
    storage.publish("images/cat.png", b"")
    record.check_unclaimed(storage, ["winners"])
    with pytest.raises(UsageError, match=r"is no run, and holds images/cat\.png"):
        record.check_unclaimed(storage, ["winners", "images"])


def test_equal_jobs_have_equal_run_ids():
    planned = {"scan": Planned("scan", {"top_k": 9}, {"classes": SHA})}
    one = run_id(FINGERPRINT, planned)
    assert one == run_id(dict(reversed(FINGERPRINT.items())), planned)
    others = {
        run_id({**FINGERPRINT, "batch": 1}, planned),
        run_id(FINGERPRINT, {"deep": planned["scan"]}),
        *(
            run_id(FINGERPRINT, {"scan": replace(planned["scan"], **change)})
            for change in ({"kind": "x"}, {"options": {}}, {"files": {}})
        ),
    }
    assert len({one, *others}) == 6
    assert len(one) == 16


def test_withdrawn_files_are_no_longer_published(storage, receipt):
    ledger = open_ledger(storage)
    ledger.withdraw("scan")
    assert ledger.manifest.number == 1
    ledger.commit("scan", [receipt(storage, 1)])
    files = [File(path, SHA, 1) for path in ("winners/a.parquet", "winners/b.parquet")]
    ledger.publish("scan", files, "hash", Counts())
    assert list(manifests.load(storage).analyses["scan"].published.values()) == files
    ledger.withdraw("scan")
    one = manifests.load(storage).analyses["scan"]
    assert (one.published, one.results, len(one.tasks)) == ({}, None, 1)
    ledger.publish("scan", files[1:], "other", Counts())
    assert list(manifests.load(storage).analyses["scan"].published.values()) == files[1:]


def chain(storage):
    """index <- scan <- switches <- deconvolve, all complete, and a sweep that rests on the scan."""
    needs = {"index": [], "scan": ["index"], "switches": ["scan"], "sweep": ["scan"]}
    needs["deconvolve"] = ["scan", "switches"]
    planned = {
        name: Planned(name, {}, {}, {other: other for other in others})
        for name, others in needs.items()
    }
    ledger = open_ledger(storage, **planned)
    for name, others in needs.items():
        inputs = {other: ledger.manifest.analyses[other].results for other in others}
        finish(ledger, name, f"{name} 1", [File(f"{name}/a", SHA, 1)], inputs)
    return ledger


def outdated(storage):
    return set(record.read(storage).outdated)


def test_what_rests_on_other_results_is_outdated_through_any_steps(storage):
    ledger = chain(storage)
    assert outdated(storage) == set()
    finish(ledger, "switches", "switches 2", inputs={"scan": "scan 1"})
    assert outdated(storage) == {"deconvolve"}
    finish(ledger, "switches", "switches 1", inputs={"scan": "scan 1"})
    assert outdated(storage) == set()
    finish(ledger, "index", "index 2")
    # Not one of them has other inputs than the scan has.
    assert outdated(storage) == {"scan", "switches", "deconvolve", "sweep"}
    assert not any(map(record.read(storage).is_readable, outdated(storage)))
    finish(ledger, "scan", "scan 1", inputs={"index": "index 2"})
    assert outdated(storage) == set()
    ledger.withdraw("scan")
    assert outdated(storage) == {"switches", "deconvolve", "sweep"}


def test_what_rests_on_a_replaced_analysis_is_outdated(storage, receipt):
    ledger = chain(storage)
    ledger.commit("sweep", [receipt(storage, 1, name="sweep")])
    open_ledger(storage, replaced=["switches"], sweep=Planned("sweep", {}, {}, {"scan": "scan"}))
    assert outdated(storage) == {"deconvolve"}
    assert record.read(storage).is_readable("sweep")


def test_outdated_results_do_not_become_readable_by_beginning_anew(storage):
    """The new inputs are recorded at once; what is there was made from the old ones."""
    ledger = chain(storage)
    finish(ledger, "scan", "scan 2", inputs={"index": "index 1"})
    assert outdated(storage) == {"switches", "deconvolve", "sweep"}
    ledger.start("sweep", {"scan": "scan 2"})
    ledger.end("sweep", State.INTERRUPTED, 1.0)
    assert not record.read(storage).is_readable("sweep")
    assert manifests.load(storage).analyses["sweep"].published == {}


def test_results_stay_readable_while_the_same_is_looked_over(storage):
    ledger = chain(storage)
    ledger.start("sweep", {"scan": "scan 1"})
    assert record.read(storage).is_readable("sweep")


def test_who_opens_last_owns_the_run(storage, url, receipt):
    first = open_ledger(storage)
    second = open_ledger(open_storage(url))
    assert first.manifest.writer != second.manifest.writer
    one, two = receipt(storage, 1), receipt(storage, 2)
    with pytest.raises(IntegrityError, match="another process is writing to this run"):
        first.commit("scan", [one])
    second.commit("scan", [two])
    assert tasks(storage) == [two]


def test_taking_over_changes_nothing_but_the_owner(storage, receipt):
    first = open_ledger(storage)
    one = receipt(storage, 1)
    first.commit("scan", [one])
    other = Ledger.take_over(storage)
    assert other.manifest.analyses == first.manifest.analyses
    assert other.manifest.fingerprint == first.manifest.fingerprint
    with pytest.raises(IntegrityError, match="another process"):
        first.commit("scan", [receipt(storage, 2)])


def test_of_many_racing_writers_one_wins(storage, receipt):
    ledger = open_ledger(storage)
    given = [receipt(storage, number, number) for number in range(8)]

    def commit(one):
        rival = Ledger(storage, replace(ledger.manifest, writer=one.task))
        try:
            rival.commit("scan", [one])
        except IntegrityError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(commit, given))
    assert won.count(True) == 1
    assert tasks(storage) == [given[won.index(True)]]


def test_a_retried_creation_is_recognised_as_our_own(storage, receipt, monkeypatch):
    ledger = open_ledger(storage)
    real = type(storage).create
    monkeypatch.setattr(type(storage), "create", lambda *args: real(*args) and False)
    one = receipt(storage, 1)
    ledger.commit("scan", [one])
    assert tasks(storage) == [one]


def test_an_interruption_of_a_commit_that_is_written_loses_nothing(storage, receipt, monkeypatch):
    ledger = open_ledger(storage)
    real = type(storage).create

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    one = receipt(storage, 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(storage), "create", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledger.commit("scan", [one])
    ledger.end("scan", State.INTERRUPTED, 1.0)
    assert tasks(storage) == [one]
    assert manifests.load(storage).analyses["scan"].state == State.INTERRUPTED


def test_a_torn_manifest_is_skipped_and_the_next_goes_above_it(storage, receipt):
    ledger = open_ledger(storage)
    one = receipt(storage, 1)
    ledger.commit("scan", [one])
    storage.publish(manifests.path(3), b'{"sha256":"torn')
    ledger = open_ledger(storage)
    assert ledger.manifest.number == 4
    assert tasks(storage) == [one]
    assert "00000003.json is damaged" in ledger.warnings[0]


def test_a_stale_run_record_is_brought_up_at_opening(storage):
    open_ledger(storage)
    storage.publish("run.json", b"{")
    open_ledger(storage)
    assert record.read(storage).manifest == 2
