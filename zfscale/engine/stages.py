"""The analyses that a job asks for, in their order: names, kinds, options, and what each needs.

Reads the job file's entries and what its run knows; checks them once, before any work.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from zfscale import analyses
from zfscale.analysis import FILE, Analysis
from zfscale.errors import UsageError
from zfscale.job import Job, explain
from zfscale.records import Array, Block, array_path, published_name
from zfscale.runs.manifest import Manifest
from zfscale.storage import files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_RESERVED = frozenset({"gallery", "manifest", "segments"})
_NOT_OPTIONS = ("use", "needs")
"""Keys of an analysis in a job file that are no options of its kind."""


@dataclass(frozen=True)
class Stage:
    """A named analysis with its validated options, and which others it depends on.

    `needs` maps a kind to the name of the analysis in the run that serves it. `files` maps each
    option that names a file to the SHA-256 of its content.
    """

    analysis: Analysis[Any]
    needs: Mapping[str, str]
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of the analysis in the run."""
        return self.analysis.name

    @property
    def kind(self) -> str:
        """The kind of the analysis."""
        return self.analysis.kind

    def published_as(self, name: str) -> str:
        """How a table or array store of this analysis is called in the run."""
        return published_name(name, self.kind, self.name)

    def located(self, array: Array) -> Array:
        """An array of this analysis, at the path that it has in the run."""
        return replace(array, path=array_path(array.path, self.kind, self.name))

    def placed(self, block: Block) -> Block:
        """A block of an array of this analysis, at the path that it has in the run."""
        return replace(block, array=self.located(block.array))


def choose_stages(
    job: Job, images: tuple[str, ...], known: Manifest | None, replaced: tuple[str, ...]
) -> tuple[Stage, ...]:
    """The analyses of the job in their order, with those that they bring or that come first."""
    entries = {name: dict(given) for name, given in job.analyses.items()}
    kinds = kinds_of(job)
    for name in list(entries):
        for kind in kinds[name].brings:
            if not _is_brought(kind, name, entries, kinds):
                own = kind if name == kinds[name].kind else f"{name}-{kind}"
                place = list(entries).index(name) + 1
                entries = _inserted(entries, place, own, {"needs": {kinds[name].kind: name}})
                kinds[own] = analyses.load(kind)
    if any("index" in kind.needs for kind in kinds.values()):
        if not images:
            raise UsageError(f"images: missing, and no run at {job.run} knows them")
        given = {"images": images, "format": job.format}
        entries, kinds = {"index": given} | entries, {"index": analyses.load("index")} | kinds
    depends = {} if known is None else {
        name: (state.kind, dict(state.needs)) for name, state in known.analyses.items()
        if name not in replaced
    }  # fmt: skip
    stages: list[Stage] = []
    for name, given in entries.items():
        analysis = kinds[name]
        needs = _needs(name, analysis, given.get("needs"), depends)
        options = _options(name, analysis, given)
        stages.append(Stage(analysis(options, name), needs, _contents(name, analysis, options)))
        depends[name] = (analysis.kind, needs)
    _check_tables(stages, known)
    return tuple(stages)


def kinds_of(job: Job) -> dict[str, type[Analysis[Any]]]:
    """The kind of each analysis that a job names. Raises UsageError for a wrong name or kind."""
    for name in job.analyses:
        _check_name(name)
    return {name: _kind(name, given) for name, given in job.analyses.items()}


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise UsageError(
            f"analyses.{name}: expected a name of letters, digits, - and _, which begins with a "
            f"letter or digit and is none of {', '.join(sorted(_RESERVED))}"
        )
    if name == "index":
        raise UsageError(
            "analyses.index: the collection is indexed by itself: say `images` and `format` "
            "at the top of the job file"
        )


def _kind(name: str, given: Mapping[str, Any]) -> type[Analysis[Any]]:
    kind = given.get("use", name)
    if not isinstance(kind, str):
        raise UsageError(f"analyses.{name}.use: {kind!r:.80}: expected the kind of an analysis")
    if kind not in analyses.names():
        place = f"analyses.{name}" if kind == name else f"analyses.{name}.use: {kind}"
        raise UsageError(
            f"{place}: there is no such kind of analysis; there are {', '.join(analyses.names())}. "
            f"An analysis under a name of its own says its kind: `{name}: {{use: KIND}}`"
        )
    if name != kind and name in analyses.names():
        raise UsageError(
            f"analyses.{name}.use: {kind}: {name} is a kind of analysis itself: give this one "
            "another name"
        )
    return analyses.load(kind)


def _is_brought(
    kind: str,
    name: str,
    entries: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, type[Analysis[Any]]],
) -> bool:
    """Whether the job itself names an analysis of `kind` that works on the one called `name`."""
    for other, given in entries.items():
        needs = given.get("needs")
        if kinds[other].kind == kind and (not isinstance(needs, dict) or name in needs.values()):
            return True
    return False


def _inserted(
    entries: dict[str, dict[str, Any]], place: int, name: str, given: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    items = list(entries.items())
    return dict([*items[:place], (name, given), *items[place:]])


def _needs(
    name: str,
    kind: type[Analysis[Any]],
    said: Any,
    depends: Mapping[str, tuple[str, Mapping[str, str]]],
) -> dict[str, str]:
    """Which analysis, of those before it or in the run, serves each kind that this one needs."""
    if said is None:
        said = {}
    if not isinstance(said, dict) or set(said) - set(kind.needs):
        raise UsageError(
            f"analyses.{name}.needs: {said!r:.80}: expected the names of other analyses by kind, "
            f"of {', '.join(kind.needs) or 'no kind, since it needs none'}"
        )
    chosen: dict[str, str] = {}
    for needed in kind.needs:
        candidates = [other for other, (its_kind, _) in depends.items() if its_kind == needed]
        if needed in said:
            _check_said(name, needed, said[needed], candidates, chosen, depends)
            chosen[needed] = said[needed]
            continue
        # One that itself rests on what was chosen already: the switches of that scan.
        fitting = [
            other
            for other in candidates
            if all(chosen.get(k, v) == v for k, v in depends[other][1].items())
        ]
        if needed in fitting:
            chosen[needed] = needed
        elif len(fitting) == 1:
            chosen[needed] = fitting[0]
        elif fitting:
            raise UsageError(
                f"analyses.{name}: it works on the results of a {needed}, of which there are "
                f"{', '.join(fitting)}: say which with `needs: {{{needed}: NAME}}`"
            )
        else:
            raise UsageError(
                f"analyses.{name}: it works on the results of {needed}, which neither the run has "
                f"nor the job before it: add `{needed}: {{}}` before {name}"
            )
    return chosen


def _check_said(
    name: str,
    needed: str,
    said: Any,
    candidates: list[str],
    chosen: Mapping[str, str],
    depends: Mapping[str, tuple[str, Mapping[str, str]]],
) -> None:
    """Refuse a name that is none of a kind, or of what rests on other analyses than `chosen`."""
    place = f"analyses.{name}.needs.{needed}: {said!r:.80}"
    if said not in candidates:
        raise UsageError(
            f"{place}: expected the name of a {needed} of this run or before it in the job; there "
            f"are {', '.join(candidates) or 'none'}"
        )
    for kind, other in depends[said][1].items():
        if chosen.get(kind, other) != other:
            raise UsageError(
                f"{place} rests on the {kind} {other}, not on {chosen[kind]}: name a {needed} of "
                f"{chosen[kind]}, or say `{kind}: {other}` as well"
            )


def _options(name: str, kind: type[Analysis[Any]], given: Mapping[str, Any]) -> BaseModel:
    """The options of an analysis, with files at places that everybody else will find."""
    places = {
        key: files.canonical(given[key])
        for key in option_files(kind) & given.keys()
        if isinstance(given[key], str)
    }
    return options_of(name, kind, {**given, **places})


def options_of(name: str, kind: type[Analysis[Any]], given: Mapping[str, Any]) -> BaseModel:
    """The options of an analysis as they are written in a job file.

    Raises UsageError naming key, value and what was expected.
    """
    own = {key: value for key, value in given.items() if key not in _NOT_OPTIONS}
    try:
        return kind.Options.model_validate(own)
    except ValidationError as error:
        place = f"analyses.{name}." if name != "index" else ""
        raise UsageError(explain(error, kind.Options, place)) from error


def option_files(kind: type[Analysis[Any]]) -> set[str]:
    """Options of a kind that name a file."""
    properties = kind.Options.model_json_schema().get("properties", {})
    return {key for key, described in properties.items() if described.get("format") == FILE}


def _contents(name: str, kind: type[Analysis[Any]], options: BaseModel) -> dict[str, str]:
    """The SHA-256 of each file that the options name."""
    hashes = {}
    for key in sorted(option_files(kind)):
        place = getattr(options, key)
        if place is not None:
            try:
                content = files.read_whole(place)
            except OSError as error:
                raise UsageError(
                    f"analyses.{name}.{key}: {place}: cannot be read: {error}"
                ) from error
            hashes[key] = hashlib.sha256(content).hexdigest()
    return hashes


def _check_tables(stages: list[Stage], known: Manifest | None) -> None:
    """Refuse two analyses of one run that would publish under one name."""
    owners: dict[str, str] = {}
    if known is not None:
        for name, state in known.analyses.items():
            owners |= {file.path.partition("/")[0]: name for file in state.published.values()}
    for stage in stages:
        for table in stage.analysis.tables:
            published = stage.published_as(table.name)
            owner = owners.setdefault(published, stage.name)
            if owner != stage.name:
                raise UsageError(
                    f"analyses.{stage.name}: its table {published} would be called like one of "
                    f"{owner}: give it another name"
                )
