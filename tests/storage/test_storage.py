"""One contract for every storage."""

import ast
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from zfscale.errors import UsageError
from zfscale.storage import _plugins as plugins
from zfscale.storage import base as stores
from zfscale.storage import files, open_storage
from zfscale.storage.base import file, probe
from zfscale.storage.objects import ObjectStore


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
            stores.checksum(storage, "a", chunk=7)

    def test_write_replaces(self, storage):
        storage.write("a/one", b"old")
        storage.write("a/one", b"new")
        storage.write("a/b/two", b"2")
        assert storage.read("a/one") == b"new"
        assert storage.list() == ["a/b/two", "a/one"]

    def test_open_seeks(self, storage):
        data = bytes(range(250))
        storage.publish("a", data)
        with storage.open("a") as stream:
            stream.seek(-20, os.SEEK_END)
            assert stream.read(5) == data[230:235]
            stream.seek(3)
            assert stream.read() == data[3:]
        with pytest.raises(FileNotFoundError):
            storage.open("none")

    def test_zarr_reads_arrays(self, storage):
        values = np.arange(24, dtype=np.float32).reshape(4, 6)
        memory = {}
        group = zarr.create_group(zarr.storage.MemoryStore(memory))
        group.create_array("deep/er", shape=(4, 6), dtype="f4", chunks=(2, 3))[:] = values
        for path, data in memory.items():
            storage.publish(f"x.zarr/{path}", data.to_bytes())
        array = zarr.open_array(storage.zarr_store("x.zarr"), path="deep/er", mode="r")
        np.testing.assert_array_equal(array[:], values)
        np.testing.assert_array_equal(array[1:3, 2], values[1:3, 2])
        with pytest.raises(ValueError, match=r"read.only"):
            array[0] = 1

    def test_delete(self, storage):
        storage.publish("a/b", b"")
        assert storage.exists("a/b")
        storage.delete("a/b")
        assert not storage.exists("a/b")

    def test_checksum_reads_all(self, storage):
        data = bytes(range(250))
        storage.publish("a", data)
        assert stores.checksum(storage, "a", chunk=7) == (file("a", data).sha256, 250)

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


class Flaky(ObjectStore):
    """A store whose conditional write has a name of its own."""

    def create(self, path, data):
        if self.exists(path):
            return False
        self.publish(path, data)
        return True


def test_a_storage_of_another_package_is_found_by_its_scheme(tmp_path, monkeypatch):
    info = tmp_path / "other_store-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zfscale.storages]\nmemory = {__name__}:Flaky.at\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.cache_clear()
    try:
        storage = open_storage("memory://other/run")
        assert isinstance(storage, Flaky)
        probe(storage)
        assert not isinstance(open_storage("s3://bucket/run"), Flaky)
    finally:
        plugins.cache_clear()


def test_the_protocol_knows_no_implementation():
    """One can be added without touching it, and nothing is imported in a circle."""
    tree = ast.parse(Path(stores.__file__).read_text())
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [name for name in imported if name.startswith("zfscale.storage")] == []


def test_local_copy_of_a_url(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/copies/a.safetensors", b"weights")
    try:
        copy = Path(files.local_copy("memory://copies/a.safetensors"))
        assert copy.read_bytes() == b"weights"
        assert copy.name == "a.safetensors"
        assert files.local_copy("memory://copies/a.safetensors") == str(copy)
    finally:
        fs.rm("/copies", recursive=True)
    with pytest.raises(FileNotFoundError):
        files.local_copy("memory://copies/absent")
    here = tmp_path / "b"
    here.write_bytes(b"1")
    assert files.local_copy(str(here)) == files.local_copy(f"file://{here}") == str(here)
