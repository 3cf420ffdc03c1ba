"""One contract for every storage."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from zfscale.errors import UsageError
from zfscale.storage import base as stores
from zfscale.storage import open_storage
from zfscale.storage.base import file, probe


class TestEveryStorage:
    def test_publish_replaces(self, storage):
        storage.publish("a/b/one", b"old")
        storage.publish("a/b/one", b"new")
        storage.publish("a/b/one", b"new")
        assert storage.read("a/b/one") == b"new"
        assert storage.list() == ["a/b/one"]

    def test_create_only_where_there_is_none(self, storage):
        assert storage.create("a/one", b"first")
        assert not storage.create("a/one", b"second")
        assert not storage.create("a/one", b"first")
        assert storage.read("a/one") == b"first"
        assert storage.list() == ["a/one"]

    def test_writing_publishes_at_the_end(self, storage):
        with storage.writing("big") as stream:
            stream.write(b"1" * 1000)
            stream.write(b"2")
            assert not storage.exists("big")
            assert storage.list() == []
        assert storage.read("big") == b"1" * 1000 + b"2"

    def test_writing_that_fails_leaves_nothing(self, storage):
        storage.publish("big", b"old")

        def fail():
            with storage.writing("big") as stream:
                stream.write(b"half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert storage.read("big") == b"old"
        assert list(storage.sizes()) == ["big"]

    def test_list_is_recursive_sorted_and_by_directory(self, storage):
        for path in ("b/2", "b/10", "b/c/d", "bc/1", "a"):
            storage.publish(path, path.encode())
        assert storage.list("b") == ["b/10", "b/2", "b/c/d"]
        assert storage.list() == ["a", "b/10", "b/2", "b/c/d", "bc/1"]
        assert storage.list("nothing") == []
        assert storage.sizes("b") == {"b/10": 4, "b/2": 3, "b/c/d": 5}

    def test_leftovers_are_no_results(self, storage):
        storage.publish("b/.x.json.123.tmp", b"half")
        assert storage.list("b") == []
        assert list(storage.sizes("b")) == ["b/.x.json.123.tmp"]
        assert stores.is_leftover("b/.x.json.123.tmp")

    def test_missing(self, storage):
        assert not storage.exists("a")
        storage.delete("a")
        with pytest.raises(FileNotFoundError):
            storage.read("a")
        with pytest.raises(FileNotFoundError):
            stores.checksum(storage, "a")

    def test_delete(self, storage):
        storage.publish("a/b", b"")
        assert storage.exists("a/b")
        storage.delete("a/b")
        assert not storage.exists("a/b")

    def test_checksum_reads_all(self, storage, monkeypatch):
        monkeypatch.setattr(stores, "CHUNK", 7)
        data = bytes(range(250))
        storage.publish("a", data)
        assert stores.checksum(storage, "a") == (file("a", data).sha256, 250)

    def test_probe_leaves_nothing(self, storage):
        probe(storage)
        assert storage.list() == []

    def test_pickles(self, storage):
        storage.publish("a", b"1")
        copy = pickle.loads(pickle.dumps(storage))
        assert copy.read("a") == b"1"
        assert copy == storage
        assert hash(copy) == hash(storage)

    def test_another_process_sees_it_at_once(self, storage, url):
        other = open_storage(url)
        assert other.list() == []
        storage.publish("a/1", b"1")
        assert other.list() == ["a/1"]
        assert other.exists("a/1")

    @pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../../x", "a//b", "./a"])
    def test_nothing_leaves_the_root(self, storage, path):
        with pytest.raises(ValueError, match="not a path inside a run"):
            storage.publish(path, b"")

    def test_only_one_of_many_creates(self, storage):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: storage.create("one", b"%d" % n), range(24)))
        assert won.count(True) == 1
        assert storage.read("one") == b"%d" % won.index(True)


def test_local_files_are_named_and_remote_ones_not(directory):
    directory.publish("a/b", b"1")
    assert directory.local("a/b").read_bytes() == b"1"
    assert open_storage("memory://x").local("a") is None


def test_relative_and_file_urls_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage("run").url == str(tmp_path / "run")
    assert open_storage(f"file://{tmp_path}/run").url == str(tmp_path / "run")


def test_unknown_protocol():
    with pytest.raises(UsageError, match="nosuch"):
        open_storage("nosuch://bucket/run")


def test_file_is_durable_before_it_is_visible(directory, monkeypatch):
    calls = []
    for name in ("fsync", "rename", "link"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1]
        )
    directory.root.mkdir()
    directory.publish("a", b"1")
    assert calls == ["fsync", "rename", "fsync"]
    calls.clear()
    directory.create("b", b"1")
    assert calls == ["fsync", "link", "fsync"]


@pytest.mark.parametrize("answer", [True, None], ids=["overwrites", "ignores"])
def test_probe_refuses_a_storage_without_conditional_writes(directory, monkeypatch, answer):
    def create(self, path, data):
        if answer or not self.exists(path):
            self.publish(path, data)
        return True

    monkeypatch.setattr(type(directory), "create", create)
    with pytest.raises(UsageError, match="second writer"):
        probe(directory)
    assert directory.list() == []


def test_probe_refuses_a_disk_without_links(directory, monkeypatch):
    def link(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(UsageError, match="cannot write results here"):
        probe(directory)
