"""What the pages of the docs take from the code when they are built: no list is kept by hand.

A page says where by a comment, `<!-- generated: NAME -->`, and the function of that name in
`GENERATED` gives the Markdown that stands there. MkDocs calls `on_page_markdown` (mkdocs.yml).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "zfscale"
SIMPLE = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "`null`",
    "object": "names, each with its options",
}
"""Types of JSON Schema in words."""
MARK = re.compile(r"^<!-- generated: ([a-z ]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated where the marks of a page say."""
    return MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)


def modules() -> list[Path]:
    """All modules of the package, each package before what is in it."""
    order = lambda path: (path.parent, path.stem != "__init__", path.name)  # noqa: E731
    return sorted(PACKAGE.rglob("*.py"), key=order)


def says(path: Path) -> str:
    """What a module is about: the first sentence of its docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph)[0]


def tree() -> str:
    """The package, folder by folder: a table of its modules with what each says of itself."""
    root = [path for path in modules() if path.parent == PACKAGE]
    lines = [*_rows([path for path in root if path.stem != "__init__"])]
    for package in sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        inside = [path for path in modules() if package in path.parents]
        lines += ["", f"## {package.name}/", says(package / "__init__.py"), ""]
        lines += _rows([path for path in inside if path != package / "__init__.py"])
    return "\n".join(lines)


def _rows(paths: list[Path]) -> Iterator[str]:
    if not paths:
        return
    yield "| module | what it is about |"
    yield "|---|---|"
    for path in paths:
        name = path.relative_to(PACKAGE).as_posix().removesuffix("__init__.py")
        yield f"| `{name}` | {_cell(says(path))} |"


def api(package: str) -> str:
    """The public functions and classes of every module below a package, by mkdocstrings."""
    lines = []
    for path in modules():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if f"{name}.".startswith(f"{package}.") and path.stem != "__init__":
            lines += [f"::: {name}", ""]
    return "\n".join(lines)


def schema() -> dict[str, Any]:
    """What `zfscale schema` prints: the JSON Schema of a job file with all analyses."""
    from click.testing import CliRunner

    from zfscale.cli import commands

    document: dict[str, Any] = json.loads(CliRunner().invoke(commands, ["schema"]).stdout)
    return document


def job() -> str:
    """The keys of a job file, and those of each analysis."""
    document = schema()
    kinds: dict[str, Any] = document["properties"]["analyses"].pop("properties")
    definitions: dict[str, Any] = document.get("$defs", {})
    lines = [*_keys(document, definitions), ""]
    for kind, options in kinds.items():
        lines += [f"## {kind}", ""]
        lines += (
            _keys(options, definitions)
            if options.get("properties")
            else ["It has no options: `{}`."]
        )
        lines += [""]
    return "\n".join(lines)


def _keys(described: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    yield "| key | what it takes | left out | what it says |"
    yield "|---|---|---|---|"
    required = described.get("required", ())
    for key, value in described["properties"].items():
        default = "must be given" if key in required else f"`{_default(value.get('default'))}`"
        kind = _cell(_type(value, definitions))
        yield f"| `{key}` | {kind} | {_cell(default)} | {_cell(value.get('description', ''))} |"


def _default(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _type(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A type of JSON Schema in words."""
    if "$ref" in value:
        return _type(definitions[value["$ref"].rpartition("/")[2]], definitions)
    choices = value.get("anyOf") or value.get("oneOf")
    if choices:
        return " or ".join(_type(each, definitions) for each in choices)
    if "enum" in value or "const" in value:
        return " or ".join(f"`{each}`" for each in value.get("enum") or [value["const"]])
    if value.get("type") == "array":
        some = value.get("prefixItems")
        one = _type(value.get("items", {}), definitions)
        return f"list of {len(some)} numbers" if some else f"list of {one}"
    if "properties" in value:
        return "`{" + ", ".join(f"{key}: …" for key in value["properties"]) + "}`"
    return _range(SIMPLE.get(value.get("type", ""), "anything"), value)


def _range(name: str, value: dict[str, Any]) -> str:
    said = {
        "minimum": "at least", "exclusiveMinimum": "above",
        "maximum": "at most", "exclusiveMaximum": "below",
    }  # fmt: skip
    limits = [f"{word} {value[key]:g}" for key, word in said.items() if key in value]
    return f"{name} {' and '.join(limits)}".rstrip()


def command_line() -> str:
    """Every command with its arguments and options, from click."""
    from zfscale.cli import commands

    return "\n".join(_command(commands, "zfscale"))


def _command(command: click.Command, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name}" if " " in name else "## Options of all commands"
    yield from ("", cleandoc(command.help or ""), "", "```", f"{name} {usage}", "```", "")
    options = [each for each in command.params if isinstance(each, click.Option)]
    options = [each for each in options if not each.hidden]
    if options:
        yield from ("| option | what it does |", "|---|---|")
        for option in options:
            # What click would print in the terminal, its names and its words.
            names, words = option.get_help_record(context) or (option.name, "")
            yield f"| `{names}` | {_cell(words)} |"
        yield ""
    for sub in sorted(getattr(command, "commands", {})):
        yield from _command(command.commands[sub], f"{name} {sub}")  # type: ignore[attr-defined]


def errors() -> str:
    """Every error that a user can meet, and the exit code of the process that it ends."""
    from zfscale import errors as module

    kinds = [each for each in vars(module).values() if isinstance(each, type)]
    kinds = [each for each in kinds if issubclass(each, module.ZfscaleError)]
    lines = ["| error | is a | exit code | when |", "|---|---|---|---|"]
    for kind in kinds:
        words = " ".join((kind.__doc__ or "").split())
        parent = "`Exception`" if kind.__base__ is Exception else f"`{kind.__base__.__name__}`"
        lines.append(f"| `{kind.__name__}` | {parent} | {kind.exit_code} | {_cell(words)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


GENERATED = {
    "tree": tree,
    "job": job,
    "command line": command_line,
    "errors": errors,
    "mathematics": lambda: api("zfscale.convnet"),
}
