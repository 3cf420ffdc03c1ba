"""The job file: what to run, on what, with which options. YAML in, one frozen record out.

Knows the file's keys and their defaults; the keys under `analyses.NAME` belong to that analysis.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from zfscale.errors import UsageError

Schema = TypeVar("Schema", bound=BaseModel)


def _main_job() -> dict[str, dict[str, Any]]:
    return {"scan": {}, "deconvolve": {}}


class Job(BaseModel):
    """A job. A second job on the same run may leave out model, weights and images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(min_length=1, description="Directory or URL of the results.")
    model: str | None = Field(
        default=None,
        description="zfscale:NAME, torchvision:NAME[@WEIGHTS] or package.module:factory.",
    )
    weights: str | None = Field(
        default=None,
        description="File or URL (safetensors or a state dict), or seed:N for a reproducible "
        "random initialisation. Left out with @WEIGHTS or weights that ship with the model.",
    )
    images: tuple[str, ...] = Field(
        default=(), description="Glob, folder, file or URL, or a list of them."
    )
    format: str | None = Field(
        default=None,
        description="Format of the images, e.g. webdataset, parquet or folder; left out, the "
        "names of the files say it.",
    )
    classes: str | None = Field(
        default=None,
        description="File of class names: a JSON list, or one name a line. "
        "Left out, the names are taken from the images where these say them.",
    )
    batch: int = Field(default=32, ge=1, description="Images in a batch; part of the fingerprint.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to compute.")
    workers: int | Literal["auto"] = Field(
        default="auto", description="Workers; auto is as many as there are GPUs, or cores for."
    )
    threads_per_worker: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads that compute in a worker; part of the fingerprint. Left out, 4, or "
        "as many as the machine has cores.",
    )
    decode_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads that decode images in a worker; left out, as many as compute.",
    )
    max_quarantined: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Fraction of images that may be quarantined before the exit code says so.",
    )
    analyses: dict[str, dict[str, Any]] = Field(
        default_factory=_main_job,
        min_length=1,
        description="Analyses in their order, each with its options; {} is enough.",
    )

    @field_validator("images", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("analyses", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {} if options is None else options for name, options in value.items()}
        return value

    @field_validator("run", "images")
    @classmethod
    def _no_chains(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        places = (value,) if isinstance(value, str) else value
        for place in places:
            if not place or ("::" in place and "://" not in place):
                raise ValueError(f"expected a path or a URL, not {place!r}")
        return value

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value


def load(path: str | Path, overrides: tuple[str, ...] = ()) -> Job:
    """Read a job file and apply `KEY=VALUE` overrides by dotted path.

    Raises UsageError naming the file, the key, the value and what was expected.
    """
    return load_as(Job, path, overrides)


def parse(text: str, place: str, overrides: tuple[str, ...] = ()) -> Job:
    """A job from YAML text; `place` stands in error messages."""
    return parse_as(Job, text, place, overrides)


def load_as(schema: type[Schema], path: str | Path, overrides: tuple[str, ...] = ()) -> Schema:
    """As `load`, for a job file of another kind."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the job file: {error}") from error
    return parse_as(schema, text, str(path), overrides)


def parse_as(
    schema: type[Schema], text: str, place: str, overrides: tuple[str, ...] = ()
) -> Schema:
    """As `parse`, for a job file of another kind."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe one, see there)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{place}: expected keys such as model, images; found {data!r:.80}")
    keys = [override.partition("=")[0] for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if keys.count(key) > 1:
            raise UsageError(f"--set {override}: the key {key} is given {keys.count(key)} times")
        _override(data, override)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{place}: {explain(error, schema)}") from error


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML's would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below: no key of a job
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One line a mistake: key, value, what was expected; unknown keys with the known ones."""
    lines = []
    for mistake in error.errors():
        key = (prefix + ".".join(str(part) for part in mistake["loc"])).rstrip(".")
        if mistake["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; known are {', '.join(model.model_fields)}")
        elif mistake["type"] == "missing":
            lines.append(f"{key}: missing")
        else:
            lines.append(f"{key}: {mistake['input']!r:.80} is not accepted: {mistake['msg']}")
    return "; ".join(lines)


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {override}: expected KEY=VALUE, e.g. batch=64")
    *parents, last = key.split(".")
    place = data
    for part in parents:
        child = place.setdefault(part, {})
        if child is None:
            child = place[part] = {}
        if not isinstance(child, dict):
            raise UsageError(f"--set {override}: {part} holds {child!r:.80}, not keys")
        place = child
    try:
        place[last] = yaml.load(value, Loader=_Loader)  # noqa: S506 (a safe one, see there)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--set {override}: the value is not valid YAML: {error}") from error
