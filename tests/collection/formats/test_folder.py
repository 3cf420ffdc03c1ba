"""Folders: classes by folder, label files, globs, links, and names from hell."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import collected
import pytest
from collected import collect, index

from zfscale import collection as sources
from zfscale.errors import UsageError
from zfscale.records import Reason, Sample, Shard
from zfscale.storage import files


def make(root: Path, *names: str) -> Path:
    """Files whose bytes are their own names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def read_all(*places: Path | str) -> list[Sample]:
    samples = collected.read_all(*places)
    for sample in samples:
        if sample.data is not None:
            assert sources.fetch(sample.ref) == sample.data
    return samples


def shards_of(*places: Path | str) -> list[Shard]:
    return [each.shard for each in collect(*places)]


def test_class_per_folder(tmp_path: Path) -> None:
    make(tmp_path, "dog/b.jpg", "dog/a.JPEG", "cat/deep/er/c.png", "cat/notes.txt", "ape/.x.jpg")
    samples = read_all(tmp_path)
    assert [(sample.key, sample.label) for sample in samples] == [
        ("cat/deep/er/c.png", 0),
        ("dog/a.JPEG", 1),
        ("dog/b.jpg", 1),
    ]
    assert [sample.data for sample in samples] == [sample.key.encode() for sample in samples]
    shards = shards_of(tmp_path)
    assert [(files.name(shard.uri), shard.label) for shard in shards] == [
        ("ape", None),  # without an image, which a listing alone does not show
        ("cat", 0),
        ("dog", 1),
    ]
    assert sources.class_names(shards) == ["cat", "dog"]


def test_labels_over_several_folders_agree(tmp_path: Path) -> None:
    make(tmp_path, "one/cat/a.jpg", "one/dog/a.jpg", "two/bee/a.jpg", "two/dog/b.jpg")
    expected = [("cat/a.jpg", 1), ("dog/a.jpg", 2), ("bee/a.jpg", 0), ("dog/b.jpg", 2)]
    for places in ([tmp_path / "one", tmp_path / "two"], [tmp_path / "two", tmp_path / "one"]):
        assert [(s.key, s.label) for s in read_all(*places)] == expected
    assert sources.class_names(shards_of(tmp_path / "*")) == ["bee", "cat", "dog"]


OVERLAPS = {
    "classes and a folder of them": (["", "cat"], 2),
    "classes spelled twice": (["", "file://"], 2),
    "classes and a glob of their files": (["", "*/*.jpg"], 2),
    "classes and a file": (["", "cat/a.jpg"], 2),
    "a flat folder and its glob": (["dog", "dog/*.jpg"], 1),
    "a folder and a glob that goes beyond it": (["dog", "*/*.jpg"], 2),
    "two globs": (["*/a.jpg", "cat/*.jpg"], 2),
    "a glob and a file": (["cat/*.jpg", "cat/b.jpg"], 1),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_overlapping_places_give_each_file_once(case: str, tmp_path: Path) -> None:
    root = make(
        tmp_path / "set", "cat/a.jpg", "cat/b.jpg", "cat/in/c.jpg", "dog/a.jpg", "dog/d.jpg"
    )
    inside, count = OVERLAPS[case]
    places = [
        f"file://{root}" if place == "file://" else f"{root}/{place}".rstrip("/")
        for place in inside
    ]
    alone = [{s.ref.uri: s for s in read_all(place)} for place in places]
    for order in (places, places[::-1]):
        together = read_all(*order)  # it checks that no file comes twice
        assert {sample.ref.uri for sample in together} == set().union(*alone)
        assert len(sources.find(order)) >= count
        if "" in inside:  # Classes are those of the whole, whatever else is given.
            labels = {sample.ref.uri: sample.label for sample in together}
            assert labels == {uri: sample.label for uri, sample in alone[0].items()}
            assert sources.class_names(shards_of(*order)) == ["cat", "dog"]


def test_class_file_numbers_a_subset_of_the_classes(tmp_path: Path) -> None:
    """Three folders of ImageNet must not become the labels 0, 1, 2."""
    make(tmp_path, "n03/a.jpg", "n01/a.jpg")
    classes = [{"wnid": f"n0{index}", "name": f"name {index}"} for index in range(5)]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    assert [sample.label for sample in read_all(tmp_path)] == [1, 3]
    assert sources.class_names(shards_of(tmp_path)) == [f"name {i}" for i in range(5)]


def test_flat_folder_and_images_beside_classes(tmp_path: Path) -> None:
    make(tmp_path, "b.jpg", "a.png", "cat/c.jpg")
    assert [(sample.key, sample.label) for sample in read_all(tmp_path)] == [
        ("a.png", None),
        ("b.jpg", None),
        ("cat/c.jpg", 0),
    ]


@pytest.mark.parametrize("place", ["val/labels.txt", "val.txt"])
@pytest.mark.parametrize("text", ["a.JPEG 65\nc.JPEG 7\nb.JPEG x\n", "65\n\nx\n7\n"])
def test_label_file(place: str, text: str, tmp_path: Path) -> None:
    make(tmp_path, "val/c.JPEG", "val/a.JPEG", "val/b.JPEG")
    (tmp_path / place).write_text(text)
    (each,) = collect(tmp_path / "val")
    assert each.shard.labels == str(tmp_path / place)
    assert [sample.label for sample in read_all(tmp_path / "val")] == [65, None, 7]
    assert [sample.label for sample in each.read(2)] == [7]


def test_label_file_names_with_spaces_and_missing_images(tmp_path: Path) -> None:
    make(tmp_path, "a b.jpg", "c.jpg")
    (tmp_path / "labels.txt").write_text("a b.jpg 3\nother.jpg 4\n")
    assert [sample.label for sample in read_all(tmp_path)] == [3, None]


@pytest.mark.parametrize("text", ["1\n2\n3\n", "a.jpg 1\n2\n", ""])
def test_label_file_that_cannot_be_matched(text: str, tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(UsageError, match=r"labels\.txt"):
        sources.find([str(tmp_path)])


def test_glob_and_single_files(tmp_path: Path) -> None:
    make(tmp_path, "x/b.jpg", "x/a.jpg", "x/a.txt", "y/c.png", "z.jpg/d.jpg")
    assert [sample.key for sample in read_all(tmp_path / "x" / "*.jpg")] == ["a.jpg", "b.jpg"]
    (shard,) = collect(tmp_path / "*" / "*.[jp][pn]g")
    assert shard.images == 4
    assert shard.read()[-1].data == b"z.jpg/d.jpg"
    files = [tmp_path / "y" / "c.png", tmp_path / "x" / "a.jpg"]
    assert [sample.data for sample in read_all(*files)] == [b"x/a.jpg", b"y/c.png"]


def test_a_class_folder_given_twice_keeps_its_label(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.jpg", "dog/a.jpg")
    for places in (["", "dog"], ["dog", ""]):
        shards = shards_of(*(tmp_path / place for place in places))
        assert [shard.label for shard in shards] == [0, 1]


def test_links(tmp_path: Path) -> None:
    """Linked files and folders are read, circles end, and a link to nothing is counted."""
    make(tmp_path / "store", "cat/a.jpg", "cat/b.jpg")
    root = tmp_path / "set"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "store" / "cat")
    (root / "files").mkdir()
    (root / "files" / "c.jpg").symlink_to(tmp_path / "store" / "cat" / "a.jpg")
    (root / "files" / "gone.jpg").symlink_to(tmp_path / "absent.jpg")
    (root / "files" / "circle").symlink_to(root)
    (root / "files" / "itself").symlink_to(root / "files")
    assert [(sample.key, sample.reason) for sample in read_all(root)] == [
        ("files/c.jpg", None),
        ("files/gone.jpg", Reason.UNREADABLE),
        ("linked/a.jpg", None),
        ("linked/b.jpg", None),
    ]


def test_file_that_vanishes_or_empties_after_listing(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (shard,) = collect(tmp_path)
    assert len(shard.read(0, 1)) == 1
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.jpg").write_bytes(b"")
    reasons = [sample.reason for sample in shard.read()]
    assert reasons == [None, Reason.UNREADABLE, Reason.EMPTY]


def test_folder_that_vanishes_after_counting(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "a.jpg", "b.jpg")
    (shard,) = collect(root)
    root.rename(tmp_path / "moved")
    assert [sample.reason for sample in shard.read()] == [Reason.UNREADABLE] * 2
    (sample,) = index(shard.shard)["reason"]
    assert sample == "unreadable"


def test_name_that_is_not_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (sample,) = read_all(tmp_path)
    assert sample.reason is Reason.UNSAFE_NAME
    assert "caf" in sample.key
    assert (sample.key + sample.ref.uri).encode()


def test_folder_whose_name_is_not_unicode(tmp_path: Path) -> None:
    make(tmp_path / os.fsdecode(b"caf\xe9"), "a.jpg")
    with pytest.raises(UsageError, match="rename"):
        sources.find([str(tmp_path)])


def test_no_class_folder_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are looked into, to tell them from folders of containers; however many there are."""
    for name in range(100):
        make(tmp_path, f"{name:03d}/a.jpg", f"{name:03d}/c.jpg")
    looked: list[str] = []
    scandir = os.scandir

    def watched(path: str) -> object:
        looked.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    shards = sources.find([str(tmp_path)])
    assert len(shards) == 100
    assert len(looked) == 2 + sources.PEEKS
    assert sum(each.images for each in collect(tmp_path)) == 200


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_what_is_added_and_removed_in_a_folder_shows(place: str, tmp_path: Path) -> None:
    """Straight in it and below it, on a disk and where there are no folders."""
    root = str(tmp_path) if place == "disk" else f"memory://{uuid.uuid4().hex}"
    fs, path = files.locate(root)
    for name in ("flat.jpg", "cat/a.jpg", "cat/deep/er/b.jpg", "dog/a.jpg"):
        fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{path}/{name}", name.encode())

    def versions() -> dict[str, str | None]:
        return {files.name(shard.uri): shard.version for shard in sources.find([root])}

    flat = files.name(root)
    before = versions()
    assert set(before) == {flat, "cat", "dog"}
    assert versions() == before
    for folder, name in ((flat, ""), ("cat", "cat/"), ("cat", "cat/deep/er/"), ("dog", "dog/")):
        fs.pipe_file(f"{path}/{name}new.jpg", b"new")
        after = versions()
        assert {each for each in after if after[each] != before[each]} == {folder}
        fs.rm_file(f"{path}/{name}new.jpg")
        before = versions()
        assert before[folder] != after[folder]


def test_a_link_to_nothing_hides_no_change(tmp_path: Path) -> None:
    make(tmp_path, "cat/deep/a.jpg")
    (tmp_path / "cat/deep/gone.jpg").symlink_to(tmp_path / "absent")
    for place in (tmp_path, tmp_path / "cat/deep/*.jpg"):
        (before,) = sources.find([str(place)])
        make(tmp_path, f"cat/deep/{len(str(place))}.jpg")
        assert sources.find([str(place)]) != [before]
