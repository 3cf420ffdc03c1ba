"""Index files of DALI beside tars on an object store: used where right, refused where not."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import badfiles
import numpy as np
import pytest
from collected import collect, index

from zfscale import collection as sources

PHOTOGRAPH = 200_000
"""Bytes: so much that what lies between two labels is not read along."""


def wds2idx(path: Path, escape: bool = False) -> str:
    """What the tool of that name writes: regular members by sample; hidden ones are left out."""
    lines: list[list[str]] = []
    last = None
    with tarfile.open(path) as tar:
        for member in tar:
            dot = member.name.find(".", member.name.rfind("/") + 1)
            base, suffix = member.name[:dot], member.name[dot + 1 :]
            if not member.isreg() or not base or base.endswith("/"):
                continue
            if base != last:
                lines.append([])
                last = base
            name = member.name
            if escape:  # as GNU tar lists names that are not ASCII
                text = name.encode().decode("latin-1")
                name = "".join(c if ord(c) < 128 else f"\\{ord(c):03o}" for c in text)
            lines[-1].append(f"{suffix} {member.offset_data} {member.size} {name}")
    return f"v1.2 {len(lines)}\n" + "".join(f"{' '.join(line)}\n" for line in lines)


def write_tar(path: Path, count: int = 12, kind: int = tarfile.GNU_FORMAT) -> None:
    """Photographs with their labels, some in JSON, and members that no index file lists."""
    writer = badfiles.TarWriter(path)
    writer.tar.format = kind
    writer.special("set", tarfile.DIRTYPE)
    rng = np.random.default_rng(0)
    for number in range(count):
        key = f"set/{'long' * 30 if number == 3 else 'é' if number == 5 else ''}{number}"
        writer.add(f"{key}.jpg", rng.bytes(PHOTOGRAPH + number))
        if number == 4:
            writer.special("set/link.jpg", tarfile.SYMTYPE, "elsewhere")
            writer.add("set/.hidden", b"1")
        writer.add(
            f"{key}.{'json' if number % 2 else 'cls'}", b'{"label": 7}' if number % 2 else b"3"
        )
    writer.add("set/0.jpg", b"a key that comes again")
    writer.special("set/last.jpg", tarfile.SYMTYPE, "elsewhere")
    writer.tar.close()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    write_tar(tmp_path / "a.tar")
    return tmp_path / "a.tar"


def upload(store: Any, path: Path, text: str | bytes | None, name: str = "a.idx") -> str:
    store().pipe_file("counted://bucket/a.tar", path.read_bytes())
    if text is not None:
        data = text.encode() if isinstance(text, str) else text
        store().pipe_file(f"counted://bucket/{name}", data)
    store.requests.clear()
    return "counted://bucket/a.tar"


def columns(place: str | Path, warn: Any = None) -> dict[str, list[Any]]:
    (shard,) = sources.find([str(place)])
    rows = index(shard, warn)
    return {name: values.tolist() for name, values in rows.items() if name != "uri"}


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("escape", [False, True])
def test_equals_the_walk_and_reads_no_image(
    kind: int, escape: bool, tmp_path: Path, counted
) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, kind=kind)
    expected = columns(path)
    assert expected["reason"].count("not_a_file") == 2
    assert expected["reason"].count("duplicate_key") == 2
    place = upload(counted, path, wds2idx(path, escape))
    assert columns(place) == expected  # `index` fails on a warning
    fetched = sum(size for name, size in counted.requests if name == "a.tar")
    assert fetched < PHOTOGRAPH  # of twelve
    assert len(counted.requests) < 40


def test_samples_are_read_by_it(tar: Path, counted) -> None:
    (here,), (there,) = collect(tar), collect(upload(counted, tar, wds2idx(tar)))
    expected = here.read()
    assert [(s.key, s.label, s.data, s.reason) for s in there.read()] == [
        (s.key, s.label, s.data, s.reason) for s in expected
    ]
    assert [sample.reason for sample in expected].count(None) == 12


def test_names_with_dots(tar: Path, counted) -> None:
    """The tool cuts a name at its first dot; people cut off the ending."""
    for name in ("a.idx", "a.b.idx"):
        counted.store.clear()
        counted().pipe_file("counted://bucket/a.b.tar", tar.read_bytes())
        counted().pipe_file(f"counted://bucket/{name}", b"nonsense")
        warnings: list[str] = []
        columns("counted://bucket/a.b.tar", warnings.append)
        assert len(warnings) == 1
        assert name in warnings[0]


def _shifted(text: str) -> str:
    head, line, *rest = text.splitlines()
    suffix, offset, *others = line.split(" ")
    return "\n".join([head, " ".join([suffix, str(int(offset) + 512), *others]), *rest])


WRONG = {
    "empty": lambda text: "",
    "no text": lambda text: b"\xff\xfe\x00",
    "a web page": lambda text: "<html>404</html>",
    "another version": lambda text: text.replace("v1.2", "v1.1"),
    "cut": lambda text: text[: len(text) // 2],
    "another number of samples": lambda text: text.replace("v1.2 13", "v1.2 14"),
    "a name with a space": lambda text: text.replace("set/1.jpg", "set/1 .jpg"),
    "no number": lambda text: text.replace("jpg 1024", "jpg 1o24"),
    "not where a member can lie": lambda text: text.replace("jpg 1024", "jpg 1025"),
    "another place": _shifted,
    "beyond the end": lambda text: text.replace(f" {PHOTOGRAPH} ", f" {10**12} "),
    "another size": lambda text: text.replace(f" {PHOTOGRAPH} ", f" {PHOTOGRAPH - 1} "),
    "another name": lambda text: text.replace("set/0.jpg", "set/1.jpg"),
    "another order": lambda text: "\n".join([text.splitlines()[0], *text.splitlines()[:0:-1]]),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_that_is_wrong_is_not_used_and_the_user_is_told(case: str, tar: Path, counted) -> None:
    expected = columns(tar)
    good = wds2idx(tar)
    wrong = WRONG[case](good)
    assert wrong != good
    warnings: list[str] = []
    assert columns(upload(counted, tar, wrong), warnings.append) == expected
    (warning,) = warnings
    assert "bucket/a.idx: " in warning
    assert "a.tar is read as a whole instead" in warning


def test_what_it_leaves_out_is_found(tar: Path, counted) -> None:
    """A little is read along; more than a megabyte is a reason not to trust it."""
    expected = columns(tar)
    lines = wds2idx(tar).splitlines()[1:]
    for kept in (lines[1:], lines[:-1], lines[:4] + lines[5:]):
        text = "\n".join([f"v1.2 {len(kept)}", *kept])
        assert columns(upload(counted, tar, text)) == expected
    for kept in (lines[7:], lines[:4], [lines[0], lines[-1]]):
        text = "\n".join([f"v1.2 {len(kept)}", *kept])
        warnings: list[str] = []
        assert columns(upload(counted, tar, text), warnings.append) == expected
        assert len(warnings) == 1


def test_one_of_another_tar_is_not_used(tar: Path, tmp_path: Path, counted) -> None:
    """Of the same layout: only the names in the headers tell them apart."""
    other = tmp_path / "other.tar"
    other.write_bytes(tar.read_bytes().replace(b"set/0.", b"set/z."))
    data = bytearray(other.read_bytes())
    with tarfile.open(tar) as archive:
        headers = [member.offset for member in archive if member.name.startswith("set/0.")]
    for start in headers:
        header = data[start : start + 512]
        total = sum(header[:148]) + 8 * 32 + sum(header[156:])
        data[start + 148 : start + 156] = b"%06o\0 " % total
    other.write_bytes(data)
    warnings: list[str] = []
    found = columns(upload(counted, other, wds2idx(tar)), warnings.append)
    assert "set/z" in found["key"]
    assert "is called set/z.jpg" in warnings[0]


def test_a_damaged_tar_is_walked(tar: Path, counted) -> None:
    """Cut after its index file was written: what is missing is truncated, not invented."""
    text = wds2idx(tar)
    tar.write_bytes(tar.read_bytes()[: 3 * PHOTOGRAPH])
    warnings: list[str] = []
    found = columns(upload(counted, tar, text), warnings.append)
    assert found["reason"][-1] == "truncated"
    assert len(warnings) == 1


def test_beside_a_local_tar_it_is_not_needed(tar: Path) -> None:
    tar.with_suffix(".idx").write_text("nonsense")
    assert len(columns(tar)["key"]) == 16
