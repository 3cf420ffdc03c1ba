"""Types of options that several analyses share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field


def _one_or_many(names: Any) -> Any:
    return (names,) if isinstance(names, str) else names


def each_once(names: Any) -> Any:
    """Refuse an empty list of names, and a name that stands in it twice; let all else pass."""
    if isinstance(names, tuple) and (not names or len(set(names)) < len(names)):
        raise ValueError("name at least one, and each once")
    return names


Names = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_one_or_many, json_schema_input_type=str | tuple[str, ...] | None),
    AfterValidator(each_once),
]
"""Names of layers: one, several, or None for the default ones."""

Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level] | Literal["mean"]
"""The colour of an occluder: RGB, or the mean one, which the network sees as zero."""
