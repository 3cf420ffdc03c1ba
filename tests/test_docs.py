"""The documents are true: examples run, lists are complete, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from types import ModuleType

import click
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
from zfscale.storage import open_storage

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("deploy/*.md")])
README = (ROOT / "README.md").read_text()
FORMATS = (DOCS / "formats.md").read_text()
QUESTIONS = (DOCS / "how-to" / "questions.md").read_text()
OWN_MODEL = (DOCS / "how-to" / "own-model.md").read_text()
SEVERAL = (DOCS / "how-to" / "several-analyses.md").read_text()
TUTORIAL = (DOCS / "tutorial.md").read_text()
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a document, by their language."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in fences if name == language]


def block(document: str, start: str, language: str) -> str:
    """The first block of a document that begins with `start`."""
    return next(text for text in blocks(document, language) if text.startswith(start))


def generator() -> ModuleType:
    """docs/generate.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def carry_out(text: str, *overrides: str) -> Summary:
    """Run a job file in this process; its paths are relative to the current directory."""
    resolved = resolve.resolve(job.parse(text, "test", overrides))
    return driver.run(resolved, Serial, lambda event: None)


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


def in_pandas(code: str, names: dict[str, object] | None = None) -> list[object]:
    """What the expressions of a block give, one by one, as a notebook shows them.

    `names` are those that earlier blocks have left behind, and take those of this one.
    """
    names = {} if names is None else names
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
    by_pandas = in_pandas(block(QUESTIONS, "import pandas", "python"))
    by_duckdb = in_duckdb(block(QUESTIONS, "CREATE VIEW", "sql"))
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
    winners, projection, patches, switches = in_pandas(block(QUESTIONS, "import zfscale", "python"))
    assert isinstance(winners, pd.DataFrame)
    assert len(winners) == 9 * (24 + 64)
    assert projection.shape == patches.shape == (9, 112, 112, 3)  # type: ignore[attr-defined]
    assert projection.dtype == np.float32  # type: ignore[attr-defined]
    assert patches.dtype == np.uint8  # type: ignore[attr-defined]
    assert switches.shape == (64, 9, 64, 6, 6)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("in_demo")
def test_the_questions_of_the_readme_have_answers() -> None:
    selective, sensitive, projection, patches = in_pandas(block(README, "import pandas", "python"))
    assert len(selective) == 5  # type: ignore[arg-type]
    assert len(sensitive) == 4  # type: ignore[arg-type]
    assert projection.shape == patches.shape == (9, 112, 112, 3)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("in_demo")
def test_the_other_questions_have_answers() -> None:
    names: dict[str, object] = {}
    in_pandas(block(QUESTIONS, "import pandas", "python"), names)
    in_pandas(block(QUESTIONS, "import zfscale", "python"), names)
    (sensitive,) = in_pandas(block(QUESTIONS, "# Where is the class", "python"), names)
    (strong,) = in_pandas(block(QUESTIONS, "import pyarrow", "python"), names)
    assert list(sensitive.columns) == ["key", "y", "x"]  # type: ignore[attr-defined]
    assert 0 < len(strong) < 9 * (24 + 64)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("document", "tables"),
    [
        pytest.param(README, {"winners", "occlusion"}, id="README"),
        pytest.param(OWN_MODEL, {"winners"}, id="own-model"),
    ],
)
def test_a_model_of_your_own_runs_as_written(
    document: str,
    tables: set[str],
    parts_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    Path("mynet.py").write_text(block(document, "# mynet.py", "python"))
    Path("photographs").symlink_to(parts_images)
    text = block(document, "# mine.yaml", "yaml")
    summary = carry_out(text)
    assert summary.counts.images >= 60
    layers = yaml.safe_load(text)["analyses"]["scan"]["layers"]
    assert set(pd.read_parquet("runs/mine/winners")["layer"]) == set(layers)
    assert [table for table in tables if not Path("runs/mine", table).is_dir()] == []


def shell(line: str) -> None:
    """Carry out a command of a document, with this Python and in one process."""
    program, *arguments = shlex.split(line)
    before = {"python": [], "zfscale": ["-m", "zfscale"]}[program]
    alone = ["--serial"] if arguments[:1] == ["run"] else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "."])}
    command = [sys.executable, *before, *arguments, *alone]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}:\n{done.stderr}"


@pytest.mark.slow
def test_the_tutorial_comes_to_its_conclusion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Fewer images of each class, and as many steps of the optimiser.
    text = TUTORIAL
    for written, quick in [
        ('("train", 1, 300), ("test", 2, 40)', '("train", 1, 120), ("test", 2, 12)'),
        ("range(4)", "range(8)"),
        ("range(40)", "range(12)"),
    ]:
        assert text.count(written) == 1
        text = text.replace(written, quick)
    names: dict[str, object] = {}
    answers: list[object] = []
    for language, content in re.findall(
        r"^```(python|sh|yaml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        if file := re.match(r"# (\w[\w-]*\.(?:py|yaml))\n", content):
            Path(file[1]).write_text(content)
        elif language == "sh":
            for line in content.splitlines():
                shell(line)
        else:
            answers += in_pandas(content, names)
    selective, places, lowest, without = answers
    assert selective["top_class"].iloc[0] == 1  # type: ignore[index]
    assert places.iloc[0] == 1  # type: ignore[attr-defined]
    assert lowest[["y", "x"]].values.tolist() == [[80, 80]]  # type: ignore[index]
    assert without.sum() == 12  # type: ignore[attr-defined]
    assert without.get("pig", 0) < 6  # type: ignore[attr-defined]
    assert Path("runs/creatures/gallery/occlusion/index.html").is_file()


@pytest.mark.slow
def test_several_analyses_stand_in_one_run(
    parts_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    Path("mynet.py").write_text(block(OWN_MODEL, "# mynet.py", "python"))
    Path("photographs").symlink_to(parts_images)
    for text in [block(OWN_MODEL, "# mine.yaml", "yaml"), *blocks(SEVERAL, "yaml")]:
        carry_out(text)
    table, images, _ = in_pandas(block(SEVERAL, "import zfscale", "python"))
    assert len(images) == 10  # type: ignore[arg-type]
    assert len(table) > 10  # type: ignore[arg-type]
    assert Path("runs/mine/occlusion").is_dir()
    assert Path("runs/mine/top-16_winners").is_dir()


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_jobs_in_documents_are_valid(document: Path) -> None:
    for text in blocks(document.read_text(), "yaml"):
        if "--8<--" not in text:
            job.parse(text, relative(document))


def test_the_page_of_modules_lists_what_is_there_and_nothing_else() -> None:
    listed = re.findall(r"^\| `([^`]*)` \|", generator().tree(), re.MULTILINE)
    modules = {relative(path) for path in (ROOT / "zfscale").rglob("*.py")}
    tops = {f"zfscale/{path.name}" for path in (ROOT / "zfscale").iterdir() if path.is_dir()}
    wanted = {path.removesuffix("__init__.py").rstrip("/") for path in modules}
    assert {f"zfscale/{name}".rstrip("/") for name in listed} == wanted - {"zfscale"} - tops
    assert len(listed) == len(set(listed))


def test_the_reference_of_the_job_file_has_every_key() -> None:
    text = generator().job()
    listed = re.findall(r"^\| `([^`]*)` \|", text, re.MULTILINE)
    assert set(job.Job.model_fields) <= set(listed)
    for name in set(analyses.names()) - {"index"}:
        assert f"## {name}\n" in text
        assert set(analyses.load(name).Options.model_fields) <= set(listed)


def test_the_reference_of_the_command_line_has_every_command() -> None:
    from zfscale.cli import commands

    text = generator().command_line()
    for name, command in commands.commands.items():
        assert f"## zfscale {name}\n" in text
        options = [each for each in command.params if isinstance(each, click.Option)]
        assert all(each.opts[0] in text for each in options if not each.hidden)
        assert not any(f"`{each.name}`" in text for each in options if each.hidden)


@pytest.mark.parametrize("document", sorted(DOCS.rglob("*.md")), ids=relative)
def test_what_pages_generate_and_include_is_there(document: Path) -> None:
    text = document.read_text()
    marks = re.findall(r"<!-- generated: (.*) -->", text)
    assert [mark for mark in marks if mark not in generator().GENERATED] == []
    for name in re.findall(r'--8<-- "([^":]*)(?::\w+)?"', text):
        assert (ROOT / name).is_file(), name


@pytest.mark.slow
def test_the_site_takes_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        assert "<!-- generated:" not in text, page
        loads = r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"?(https?:)?//[^ >]*"
        assert re.search(loads, text) is None, page
    for sheet in tmp_path.rglob("*.css"):
        assert re.search(r"(?:url\(|@import)[\s\"']*(?:https?:)?//", sheet.read_text()) is None, (
            sheet
        )


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
        analyses.load(name).Options.model_validate(options)
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
    kinds = [analyses.load(kind) for kind in analyses.names() if kind != "index"]
    return [table for kind in kinds for table in kind(kind.Options()).tables]


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


def test_every_exit_code_is_explained() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ZfscaleError)
    ]
    page = (DOCS / "reference" / "errors.md").read_text()
    said = {int(row[0]) for row in cells(page) if row[0].isdecimal()}
    assert {kind.exit_code for kind in kinds} | {0, 130} == said


def test_formats_names_what_a_run_holds(demo: Path) -> None:
    storage = open_storage(str(demo / "runs" / "demo"))
    content = yaml.safe_load(storage.read("run.json"))
    said = {row[0].strip("`") for row in cells(section("run.json"))[1:]}
    said = {key for name in said - {"key"} for key in name.split("`, `")}
    assert said == set(content) | set(content["analyses"]["scan"])
    for part in content["fingerprint"]:
        assert re.search(rf"\b{part}\b", section("run.json"))
    shown = {tuple(row[:2]) for row in cells(section("Segments"))[1:]}
    written = set()
    for path in storage.list("segments"):
        _, stage, name = path.split("/")
        table = name.rsplit("-", 2)[1]
        written.add(("all with images" if table == "outcomes" else stage, table))
    assert written == shown
