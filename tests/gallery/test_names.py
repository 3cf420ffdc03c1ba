"""Untrusted names as file names and script data; values as text."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfscale.gallery.names import number, percent, script_json, slugs


@pytest.mark.parametrize("name", ["conv1", "features.0", "layer4.2.conv3", "a-b_c"])
def test_a_plain_name_is_its_own_slug(name: str) -> None:
    assert slugs([name]) == {name: name}


def test_names_that_would_meet_stay_apart() -> None:
    names = ["a/b", "a b", "A_B", "..", "", "...", "a_b-2"]
    found = slugs(names)
    assert found["a/b"] == "a_b"
    assert len({slug.casefold() for slug in found.values()}) == len(names)


@given(st.lists(st.text(), unique=True, max_size=8))
def test_no_slug_leaves_its_folder_or_needs_escaping(names: list[str]) -> None:
    found = slugs(names)
    assert list(found) == names
    assert len({slug.casefold() for slug in found.values()}) == len(names)
    for slug in found.values():
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", slug)
        assert len(slug) < 100


@given(st.dictionaries(st.text(), st.text() | st.none() | st.integers()))
def test_script_json_holds_no_markup_and_says_the_same(value: dict[str, object]) -> None:
    text = script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert text.isascii()
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (4567.8, "4,568"),
        (0.0, "0"),
        (None, "–"),  # noqa: RUF001
        (math.nan, "–"),  # noqa: RUF001
        (-math.inf, "–"),  # noqa: RUF001
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_percent() -> None:
    assert percent(0.4567) == "45.7 %"
    assert percent(None) == "–"  # noqa: RUF001
