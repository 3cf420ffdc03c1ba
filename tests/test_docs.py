"""The documents are true: examples run, lists are complete, links lead somewhere."""

from __future__ import annotations

import ast
import io
import re
import sys
import tarfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import yaml

from zfscale import analyses, errors, job, models
from zfscale.datasets import parts
from zfscale.engine import driver, resolve, training
from zfscale.engine.events import Summary
from zfscale.engine.worker import Serial
from zfscale.records import Reason, Table
from zfscale.runs.record import KEYS
from zfscale.storage import open_storage

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("deploy/*.md")])
README = (ROOT / "README.md").read_text()
FORMATS = (ROOT / "docs" / "formats.md").read_text()
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a document, by their language."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in fences if name == language]


def block(start: str, language: str) -> str:
    """The block of the README that begins with `start`."""
    (found,) = [text for text in blocks(README, language) if text.startswith(start)]
    return found


def carry_out(text: str, *overrides: str) -> Summary:
    """Run a job file in this process; its paths are relative to the current directory."""
    setup = resolve.resolve(job.parse(text, "test", overrides))
    return driver.run(setup, Serial, lambda event: None)


def write_odd_images(place: Path) -> None:
    """A tar with half an image, a page of HTML that calls itself one, and a wrong label."""
    jpeg = io.BytesIO()
    rendered = parts.render(seed=7, index=0)
    rendered.image.save(jpeg, "JPEG")
    data = jpeg.getvalue()
    members = {
        "half.jpg": data[: len(data) // 2],
        "page.jpg": b"<html></html>",
        "wrong.jpg": data,
        "wrong.cls": str(rendered.label + 1).encode(),
    }
    with tarfile.open(place, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def demo(parts_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with jobs/demo.yaml and jobs/explain.yaml carried out in it, on fewer layers,
    some odd images, and few images to explain.
    """
    folder = tmp_path_factory.mktemp("demo")
    (folder / "data").mkdir()
    (folder / "data" / "parts").symlink_to(parts_images)
    write_odd_images(folder / "odd.tar")
    with chdir(folder):
        carry_out(
            (ROOT / "jobs" / "demo.yaml").read_text(),
            "analyses.scan.layers=[conv1, conv5]",
            "images=[data/parts/*.tar, odd.tar]",
        )
        names = ("occlusion", "invariance", "correspondence")
        carry_out(
            (ROOT / "jobs" / "explain.yaml").read_text(),
            *(f"analyses.{name}.images.sample=4" for name in names),
            "analyses.occlusion.stride=40",
        )
    return folder


@pytest.fixture
def in_demo(demo: Path) -> Iterator[Path]:
    with chdir(demo):
        yield demo


def plain(answer: object) -> list[tuple[object, ...]]:
    """A table as sorted rows of rounded values, whatever it came from. Series show their index."""
    frame = answer.reset_index() if isinstance(answer, pd.Series) else answer
    assert isinstance(frame, pd.DataFrame)
    rows = frame.astype(object).itertuples(index=False, name=None)
    rounded = [tuple(round(v, 5) if isinstance(v, float) else v for v in row) for row in rows]
    return sorted(rounded, key=str)


def in_pandas(code: str) -> list[object]:
    """What the expressions of a block give, one by one, as a notebook shows them."""
    names: dict[str, object] = {}
    answers = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            answers.append(eval(ast.unparse(statement), names))
        else:
            exec(ast.unparse(statement), names)
    return answers


def in_duckdb(code: str) -> list[pd.DataFrame]:
    """What the queries of a block give."""
    connection = duckdb.connect()
    found = []
    for statement in connection.extract_statements(code):
        answer = connection.execute(statement).df()
        if statement.type == duckdb.StatementType.SELECT:
            found.append(answer)
    return found


@pytest.mark.usefixtures("in_demo")
def test_the_five_questions_have_the_same_answers_in_pandas_and_duckdb() -> None:
    by_pandas = in_pandas(block("import pandas", "python"))
    by_duckdb = in_duckdb(block("CREATE VIEW", "sql"))
    assert len(by_pandas) == len(by_duckdb) == 5
    for left, right in zip(by_pandas, by_duckdb, strict=True):
        assert plain(left) == plain(right)
    _, selective, shared, wrong, unusable = map(plain, by_pandas)
    assert len(selective) == 5
    assert [layer for layer, _ in shared] == ["conv1", "conv5"]
    assert all(1 <= mean <= 9 for _, mean in shared)  # type: ignore[operator]
    assert "wrong" in [key for key, _, _, _ in wrong]
    assert all(label != predicted for _, label, predicted, _ in wrong)
    assert unusable == [("not_an_image", 1), ("truncated", 1)]


@pytest.mark.usefixtures("in_demo")
def test_the_python_example_gives_what_its_comments_say() -> None:
    winners, projection, patches, switches = in_pandas(block("import zfscale", "python"))
    assert isinstance(winners, pd.DataFrame)
    assert len(winners) == 9 * (24 + 64)
    assert projection.shape == patches.shape == (9, 112, 112, 3)  # type: ignore[attr-defined]
    assert projection.dtype == np.float32  # type: ignore[attr-defined]
    assert patches.dtype == np.uint8  # type: ignore[attr-defined]
    assert switches.shape == (64, 9, 64, 6, 6)  # type: ignore[attr-defined]


def test_your_own_model_runs_as_the_readme_says(
    parts_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    Path("mynet.py").write_text(block("# mynet.py", "python"))
    Path("photographs").symlink_to(parts_images)
    summary = carry_out(block("# mine.yaml", "yaml"))
    assert summary.counts.ok == 60
    assert set(pd.read_parquet("runs/mine/winners")["layer"]) == {"conv1", "conv2"}
    assert Path("runs/mine/projections.zarr/conv2/zarr.json").is_file()


def listed() -> set[str]:
    """The files that the tree of the README names, by their indentation."""
    (tree,) = [text for text in blocks(README, "") if text.startswith("zfscale/\n")]
    folders: list[str] = []
    found = set()
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        found.add("".join(folders))
    return found


def test_the_tree_lists_what_is_there_and_nothing_else() -> None:
    modules = {relative(path) for path in (ROOT / "zfscale").rglob("*.py")}
    modules = {path for path in modules if not path.endswith("__init__.py")}
    names = listed()
    assert {name for name in names if name.endswith(".py")} == modules
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        file = (document.parent / place) if place else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("path", JOBS, ids=relative)
def test_job_files_are_valid_and_say_what_they_cost(path: Path) -> None:
    text = path.read_text()
    comment = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    assert len(comment) > 80
    if "held_out" in yaml.safe_load(text):
        training.load(path)
        return
    assert "Cost:" in comment
    loaded = job.load(path)
    if loaded.model is None:  # a further job on the run of another one
        assert (ROOT / "jobs" / f"{Path(loaded.run).name}.yaml").exists()
    else:
        assert loaded.run == f"runs/{path.stem}"
    for name, options in loaded.analyses.items():
        analyses.options(name, options)
    if loaded.model is not None and loaded.model.startswith("zfscale:"):
        network = models.load(loaded.model, "seed:0")
        network.choose(loaded.analyses["scan"].get("layers"))


def test_commands_in_documents_exist() -> None:
    from zfscale.cli import commands

    said = {
        (path.name, command)
        for path in [*DOCUMENTS, *JOBS]
        for command in re.findall(r"(?:^|`|/)zfscale ([a-z]+)", path.read_text(), re.MULTILINE)
    }
    assert len({command for _, command in said}) > 5
    assert [each for each in said if each[1] not in commands.commands] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_options_in_documents_exist(document: Path) -> None:
    from zfscale.cli import commands

    for line in document.read_text().splitlines():
        called = re.search(r"(?:^|`|/)zfscale ([a-z]+)( [^`]*)?", line)
        if called is None or called[1] not in commands.commands:
            continue
        command = commands.commands[called[1]]
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<= )--[a-z-]+", called[2] or "")) <= known | {
            option
            for sub in getattr(command, "commands", {}).values()
            for parameter in sub.params
            for option in parameter.opts
        }


def section(heading: str) -> str:
    """A section of formats.md, from its heading to the next one."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", FORMATS, re.MULTILINE | re.DOTALL
    )
    assert found is not None, heading
    return found[1]


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows]


def declared() -> list[Table]:
    modules = [analyses.load(name) for name in analyses.names()]
    return [t for m in modules for step in m.passes(m.Options()) for t in step.tables]


@pytest.mark.parametrize("table", declared(), ids=lambda table: table.name)
def test_formats_gives_version_key_and_types(table: Table) -> None:
    text = section(f"`{table.name}`")
    assert f"Version {table.version}." in text
    assert f"Key: {', '.join(table.key)}." in text
    assert ("By layer." in text) == table.by_layer
    types = {c.name: c.type.replace("list<", "list of ").rstrip(">") for c in table.columns}
    wanted = [
        (f"`{c.name}`", types[c.name] + (", null" if c.nullable else "")) for c in table.columns
    ]
    assert [(row[0], row[1]) for row in cells(text)[1:]] == wanted


def test_formats_lists_every_reason() -> None:
    rows = cells(section("Reasons"))[1:]
    assert [row[0] for row in rows] == [f"`{reason}`" for reason in Reason]


def test_formats_lists_every_exit_code() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ZfscaleError)
    ]
    said = {int(row[0]) for row in cells(section("Exit codes"))[1:]}
    assert {kind.exit_code for kind in kinds} | {0, 130} == said


def test_formats_names_what_a_run_holds(demo: Path) -> None:
    storage = open_storage(str(demo / "runs" / "demo"))
    content = yaml.safe_load(storage.read("run.json"))
    said = {row[0].strip("`") for row in cells(section("run.json"))[1:]}
    found = {re.sub(r"^published_.*", "published_PASS", name) for name in content}
    assert said >= KEYS
    assert said == found
    for part in content["fingerprint"]:
        assert re.search(rf"\b{part}\b", section("run.json"))
    shown = {tuple(row[:2]) for row in cells(section("Segments"))[1:]}
    written = set()
    for path in storage.list("segments"):
        _, stage, name = path.split("/")
        table = name.rsplit("-", 2)[1]
        written.add(("all with images" if table == "outcomes" else stage, table))
    assert written == shown
