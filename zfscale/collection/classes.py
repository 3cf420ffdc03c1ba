"""Labels and the names of classes: how they are written beside images.

A label is a whole number from 0. Text that is not one gives None: the image itself is still good.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from zfscale.errors import UsageError
from zfscale.storage import files

FILES = ("classes.json", "classes.txt")


def label(text: bytes | str) -> int | None:
    """The label that a text says, or None."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    text = text.strip()
    # int() would also take "1_0" and "-1"; 18 digits always fit 64 bits.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def known(value: Any) -> int | None:
    """The label that a value of a table or a record says, or None."""
    is_number = isinstance(value, int | str) and not isinstance(value, bool)
    return label(str(value)) if is_number else None


def json_label(text: bytes) -> int | None:
    """The label under the key `label` of a JSON object, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return known(value.get("label")) if isinstance(value, dict) else None


def beside(uri: str) -> str | None:
    """The file of class names in the folder that holds a shard, if there is one."""
    folder = files.parent(uri)
    if folder.startswith(("http://", "https://")):
        return None  # A web server cannot be trusted to say what is not there.
    return next((f"{folder}/{name}" for name in FILES if files.exists(f"{folder}/{name}")), None)


def names(uri: str) -> list[str]:
    """Names by label from a file: JSON list of strings, JSON list of objects with `name` (and
    `index`), or one name a line. Raises UsageError where it is none of these.
    """
    return [str(entry["name"]) for entry in _entries(uri)]


def labels_by_word(uri: str) -> dict[str, int]:
    """Label by each word that a file of class names has for a class: its name, its WordNet id."""
    words: dict[str, int] = {}
    for index, entry in enumerate(_entries(uri)):
        for key, word in entry.items():
            if key != "index":
                words.setdefault(str(word), index)
    return words


def numbers(class_folders: Sequence[str]) -> dict[str, int]:
    """Label by the name of a class folder: what the file of class names beside the folders says
    where it knows them all, else the place among the sorted names.
    """
    folders = sorted({files.name(uri) for uri in class_folders})
    listed = beside(class_folders[0]) if class_folders else None
    if listed is not None:
        words = labels_by_word(listed)
        if all(folder in words for folder in folders):
            return {folder: words[folder] for folder in folders}
    return {folder: number for number, folder in enumerate(folders)}


def _entries(uri: str) -> list[dict[str, Any]]:
    try:
        text = files.read_whole(uri).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{uri}: cannot read the class names: {error}") from error
    if not uri.endswith(".json"):
        return [{"name": line.strip()} for line in text.splitlines() if line.strip()]
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{uri}: not valid JSON: {error}") from error
    if not isinstance(values, list):
        raise UsageError(f"{uri}: expected a JSON list of names, found {values!r:.80}")
    entries = [value if isinstance(value, dict) else {"name": value} for value in values]
    if not all(isinstance(entry.get("name"), str) for entry in entries):
        raise UsageError(f'{uri}: expected strings, or objects with "name" and "index"')
    entries.sort(key=lambda entry: entry.get("index", 0))
    if any(entry.get("index", place) != place for place, entry in enumerate(entries)):
        raise UsageError(f"{uri}: the indices must be 0, 1, 2, … without a gap or repetition")
    return entries
