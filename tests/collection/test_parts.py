"""Boxes of parts from the records of images and from users' files, good and hostile."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collected import read_all

from zfscale.boxes import PartBox
from zfscale.collection import parts
from zfscale.datasets import parts as creatures
from zfscale.errors import UsageError
from zfscale.records import Image, ImageRef, image_id
from zfscale.storage import files

NOSE = {"part": "nose", "x0": 1, "y0": 2, "x1": 30, "y1": 40}
BOX = PartBox("nose", 1, 2, 30, 40)
HEADER = "key,part,x0,y0,x1,y1\n"


def write_tar(place: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(place, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(place)


def accepted(place: str, kind: str | None = None) -> list[Image]:
    """The images of a collection as a run knows them, all of 60 x 50 pixels."""
    return [
        Image(-1, image_id(sample.data), sample.key, None, sample.ref, 60, 50)
        for sample in read_all(place, kind=kind)
        if sample.data is not None
    ]


def by_key(place: str, kind: str | None = None) -> tuple[dict[str, list[PartBox]], list[str]]:
    images = accepted(place, kind)
    found, notes = parts.of_records(images, kind)
    assert set(found) <= {image.id for image in images}
    return {image.key: list(found.get(image.id, ())) for image in images}, notes


def test_rendered_creatures_carry_their_boxes(tmp_path: Path) -> None:
    creatures.write(tmp_path, count=5, seed=4, shard_size=2)
    sized = [
        Image(-1, image.id, image.key, None, image.ref, creatures.SIZE, creatures.SIZE)
        for image in accepted(str(tmp_path))
    ]
    found, notes = parts.of_records(sized)
    assert notes == []
    for index, image in enumerate(sized):
        expected = {
            PartBox(box.part, box.x0, box.y0, box.x1, box.y1, box.discriminative)
            for box in creatures.render(4, index).boxes
        }
        assert set(found[image.id]) == expected
        assert sum(box.discriminative for box in found[image.id]) <= 1


def test_records_of_every_format(tmp_path: Path) -> None:
    """A record beside an image in a tar, before or behind it, in a folder, and a column."""
    record = json.dumps({"parts": [NOSE], "class": 3}).encode()
    tar = {"a.json": record, "a.jpg": b"1", "b.jpg": b"2", "b.json": record, "c.jpg": b"3"}
    expected = {"a": [BOX], "b": [BOX], "c": []}
    assert by_key(write_tar(tmp_path / "t.tar", tar)) == (expected, [])

    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in tar.items():
        (folder / name).write_bytes(data)
    assert by_key(str(folder)) == ({"a.jpg": [BOX], "b.jpg": [BOX], "c.jpg": []}, [])

    images = [{"bytes": bytes([at]), "path": key} for at, key in enumerate("abc")]
    rows = pa.table({"image": images, "parts": [[NOSE], [NOSE], None]})
    pq.write_table(rows, tmp_path / "t.parquet", row_group_size=2)
    assert by_key(str(tmp_path / "t.parquet")) == (expected, [])
    pq.write_table(rows.drop(["parts"]), tmp_path / "none.parquet")
    assert by_key(str(tmp_path / "none.parquet")) == ({"a": [], "b": [], "c": []}, [])


def test_a_tar_is_walked_once_and_no_pixels_are_read(tmp_path: Path, monkeypatch) -> None:
    creatures.write(tmp_path, count=12, seed=0, shard_size=6)
    images = accepted(str(tmp_path))
    opened: list[str] = []
    longest = 0

    def watched(uri: str, real=files.open_file, **options: int):
        opened.append(uri)
        handle = real(uri, **options)
        read = handle.read

        class Watched:
            def __getattr__(self, name: str):
                return getattr(handle, name)

            def __enter__(self):
                return self

            def __exit__(self, *_: object) -> None:
                handle.close()

            def read(self, size: int = -1) -> bytes:
                nonlocal longest
                longest = max(longest, size if size >= 0 else 1 << 30)
                return read(size)

        return Watched()

    monkeypatch.setattr(files, "open_file", watched)
    found, _ = parts.of_records(images[:1] + images[6:])
    assert 0 < len(found) <= 7
    assert sorted(opened) == sorted({image.ref.uri for image in images})
    assert longest < 1500  # a record; a rendered JPEG has several thousand bytes


HOSTILE = {
    "not JSON": b"{",
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
    "a number": b'{"parts": 7}',
    "of numbers": b'{"parts": [7]}',
    "no name": b'{"parts": [{"x0": 1, "y0": 1, "x1": 2, "y1": 2}]}',
    "name of a row": json.dumps({"parts": [NOSE | {"part": "random"}]}).encode(),
    "long name": json.dumps({"parts": [NOSE | {"part": "n" * 101}]}).encode(),
    "no text": json.dumps({"parts": [NOSE | {"part": "\ud800"}]}).encode(),
    "not a number": json.dumps({"parts": [NOSE | {"x0": "left"}]}).encode(),
    "true": json.dumps({"parts": [NOSE | {"x0": True}]}).encode(),
    "null": json.dumps({"parts": [NOSE | {"x0": None}]}).encode(),
    "NaN": json.dumps({"parts": [NOSE | {"x0": float("nan")}]}).encode(),
    "infinite": json.dumps({"parts": [NOSE | {"x1": float("inf")}]}).encode(),
    "huge": b'{"parts": [{"part": "a", "y0": 1, "x1": 2, "y1": 2, "x0": -1' + b"0" * 400 + b"}]}",
    "digits": b'{"parts": [{"x0": 1' + b"0" * 10_000 + b"}]}",
    "empty": json.dumps({"parts": [NOSE | {"x1": 1}]}).encode(),
    "inverted": json.dumps({"parts": [NOSE | {"y1": 0}]}).encode(),
    "outside right": json.dumps({"parts": [NOSE | {"x0": 60, "x1": 70}]}).encode(),
    "outside above": json.dumps({"parts": [NOSE | {"y0": -9, "y1": 0}]}).encode(),
    "odd flag": json.dumps({"parts": [NOSE | {"discriminative": "perhaps"}]}).encode(),
    "too long": json.dumps({"parts": [NOSE], "more": "x" * (1 << 20)}).encode(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_record_is_left_out_and_told(what: str, tmp_path: Path) -> None:
    good = json.dumps({"parts": [NOSE]}).encode()
    members = {"good.jpg": b"1", "good.json": good, "bad.jpg": b"2", "bad.json": HOSTILE[what]}
    found, notes = by_key(write_tar(tmp_path / "t.tar", members))
    assert found == {"good": [BOX], "bad": []}
    (note,) = notes
    assert note.startswith("parts: 1 boxes or records of images cannot be used, e.g. bad: ")
    for name, data in members.items():
        (tmp_path / name).write_bytes(data)
    again, notes = by_key(str(tmp_path / "*.jpg"))
    assert again == {"good.jpg": [BOX], "bad.jpg": []}
    assert len(notes) == 1


def test_the_rest_of_a_record_is_used(tmp_path: Path) -> None:
    listed = [NOSE, NOSE | {"x0": 0}, NOSE | {"part": "ears", "x1": 99}, NOSE | {"x0": "?"}]
    members = {"a.jpg": b"1", "a.json": json.dumps({"parts": listed}).encode()}
    found, (note,) = by_key(write_tar(tmp_path / "t.tar", members))
    assert found == {"a": [BOX, PartBox("ears", 1, 2, 99, 40)]}
    assert note == (
        "parts: 2 boxes or records of images cannot be used, e.g. a: part 'nose' is there twice"
    )


def test_records_that_say_nothing_of_parts_are_no_mistake(tmp_path: Path) -> None:
    members = {"a.jpg": b"1", "a.json": b'{"label": 3}', "b.jpg": b"2", "b.json": b"[1]"}
    assert by_key(write_tar(tmp_path / "t.tar", members)) == ({"a": [], "b": []}, [])


def test_a_file_that_is_gone_has_no_records(tmp_path: Path) -> None:
    refs = [
        ImageRef(str(tmp_path / "gone.tar"), 512, 9),
        ImageRef(str(tmp_path / "gone.jpg"), 0, 9),
    ]
    images = [Image(-1, str(at), "a", None, ref, 60, 50) for at, ref in enumerate(refs)]
    assert parts.of_records(images) == ({}, [])


def image(key: str, id_: str = "") -> Image:
    return Image(-1, id_ or key, key, None, ImageRef("nowhere"), 60, 50)


@pytest.mark.parametrize("flag", ["discriminative", "decides"])
def test_users_files_in_csv_and_parquet(flag: str, tmp_path: Path) -> None:
    text = HEADER.strip() + f",{flag},comment\na,nose,1,2,30,40,true,x\nb,ears,0.5,0,99,9,,\n"
    (tmp_path / "boxes.csv").write_text("\ufeff" + text, "utf-8")
    columns = {
        "key": ["a", "b"], "part": ["nose", "ears"], "x0": [1, 0.5], "y0": [2, 0],
        "x1": [30, 99], "y1": [40, 9], flag: [True, None], "other": [1, 2],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "boxes.parquet")
    for name in ("boxes.csv", "boxes.parquet"):
        rows = parts.table(str(tmp_path / name))
        found = parts.assign(rows, [image("b", "id of b"), image("c"), image("a", "id of a")])
        assert found == {
            "id of a": (PartBox("nose", 1, 2, 30, 40, True),),
            "id of b": (PartBox("ears", 0.5, 0, 99, 9),),
        }


MISTAKES = {
    "a,nose,1,2,thirty,40\n": "row 2: x1: 'thirty', expected a number of pixels",
    "a,nose,1,2,nan,40\n": "row 2: x1: 'nan', expected a number of pixels",
    "a,nose,1,2,30\n": "row 2: y1: None, expected a number of pixels",
    "a,nose,30,2,30,40\n": "row 2: x1: 30, expected more than x0, which is 30",
    "a,nose,1,40,30,2\n": "row 2: y1: 2, expected more than y0, which is 40",
    "a,,1,2,30,40\n": "row 2: part: '', expected a name of at most 100 characters",
    "a,random,1,2,30,40\n": "row 2: part: 'random', expected a name .* other than 'random'",
    ",nose,1,2,30,40\n": "row 2: key: '', expected the key of an image",
    "a,ears,60,2,70,40\n": r"row 2: x0: 60 to 70, expected a box inside of the 60 x 50 pixels of a",
    "a,nose,1,2,30,40\na,nose,1,2,30,41\n": "row 3: part: 'a' has 'nose' twice, expected one box",
    "twin,nose,1,2,30,40\n": "row 2: key: 2 of the images are called 'twin'",
}


@pytest.mark.parametrize("rows", MISTAKES)
def test_a_mistake_in_a_users_file_is_named(rows: str, tmp_path: Path) -> None:
    place = tmp_path / "boxes.csv"
    place.write_text(HEADER + "b,nose,1,2,30,40\n" + rows)
    images = [image("a"), image("b"), image("twin", "1"), image("twin", "2")]
    with pytest.raises(UsageError, match=f"parts: {place}: {MISTAKES[rows]}"):
        parts.assign(parts.table(str(place)), images)


def test_a_file_that_is_no_table_of_boxes(tmp_path: Path) -> None:
    place = tmp_path / "boxes.csv"
    place.write_text("key,part,left,y0,x1,y1\n")
    with pytest.raises(UsageError, match=r"boxes.csv: has no column x0, expected key, part, x0"):
        parts.table(str(place))
    place.write_bytes(b"")
    with pytest.raises(UsageError, match=r"has no column key.*it has none"):
        parts.table(str(place))
    place.write_bytes(bytes(range(128, 256)))
    with pytest.raises(UsageError, match=r"boxes.csv: cannot be read as Parquet .* or CSV"):
        parts.table(str(place))
    for name, data in (("boxes.parquet", b"no"), ("gone.csv", None)):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=rf"{name}: cannot be read"):
            parts.table(str(tmp_path / name))
    pq.write_table(pa.table({"key": [1], "part": ["a"]}), tmp_path / "short.parquet")
    with pytest.raises(UsageError, match=r"short.parquet: has no column x0.*it has 'key', 'part'"):
        parts.table(str(tmp_path / "short.parquet"))
    whole = {name: [1] for name in parts.COLUMNS}
    pq.write_table(pa.table(whole), tmp_path / "numbers.parquet")
    with pytest.raises(UsageError, match="row 1: key: 1, expected the key of an image, as text"):
        parts.table(str(tmp_path / "numbers.parquet"))
