"""The project's promises about itself: light imports, modules that say what they are about."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata, util
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from zfscale import analyses
from zfscale.records import Table

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted((ROOT / "zfscale").rglob("*.py"))
DEVELOPER = ("s3", "test", "docs", "dev")
"""The extras that a developer installs."""
HEAVY = {"torch", "torchvision", "ray", "pandas", "pyarrow", "zarr"}
# Leftovers and places of one machine; written so that this file holds none of them.
LEFTOVERS = re.compile(
    r"py[p]i\.org|pythonhost[e]d|npm[j]s\.|de[b]\.debian|[/](?:wor[k]|far[m])/"
    r"|\bT[O]DO\b|\bFIXM[E]\b|\bXX[X]\b|raise NotImplemented[E]rror"
)


def relative(path: Path) -> str:
    """A path as it stands in a listing of the repository."""
    return path.relative_to(ROOT).as_posix()


def tracked_files() -> list[Path]:
    """All files that are, or are about to be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


def pins() -> dict[str, Version]:
    """constraints.txt: canonical name to version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def required() -> list[Requirement]:
    """What a developer installs, without what that needs in turn."""
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in DEVELOPER for text in extras[extra])]
    return [Requirement(text) for text in texts if not text.startswith("zfscale[")]


def needed(requirement: Requirement, seen: set[str]) -> set[str]:
    """Names of the installed distributions that a requirement pulls in, itself included."""
    name = canonicalize_name(requirement.name)
    key = f"{name}[{','.join(sorted(requirement.extras))}]"
    if key in seen:
        return set()
    seen.add(key)
    found = {name}
    for text in metadata.requires(name) or []:
        child = Requirement(text)
        contexts = [{"extra": extra} for extra in requirement.extras | {""}]
        if child.marker is None or any(child.marker.evaluate(context) for context in contexts):
            found |= needed(child, seen)
    return found


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter on this package."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )


HELP = "import sys; sys.argv = ['zfscale', '--help']; from zfscale.cli import main; main()"


@pytest.mark.parametrize("code", ["import zfscale", HELP], ids=["import", "help"])
def test_a_start_loads_nothing_heavy(code: str) -> None:
    times = run_python("-X", "importtime", "-c", code).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in times.splitlines()}
    assert "zfscale" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_opens_by_saying_what_it_is_about(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "a module opens with a docstring"
    # The docs list modules by this sentence, so it must stand by itself.
    sentence = " ".join(re.split(r"\n\n|(?<=\.)\s", docstring)[0].split())
    assert len(sentence.split()) >= 3
    assert sentence[-1] in ".?"
    assert len(sentence) <= 250


def test_no_leftovers() -> None:
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # pictures and weights
        found += [
            f"{relative(path)}:{i}" for i, line in enumerate(lines, 1) if LEFTOVERS.search(line)
        ]
    assert not found


def test_package_data_is_declared() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "zfscale"
    declared = {
        file for glob in setuptools["package-data"]["zfscale"] for file in package.glob(glob)
    }
    data = {path for path in tracked_files() if package in path.parents and path.suffix != ".py"}
    assert data <= declared


def test_every_package_is_a_package() -> None:
    assert all((path.parent / "__init__.py").exists() for path in MODULES)


def test_installed_versions_are_the_pinned_ones() -> None:
    seen: set[str] = set()
    names = set().union(*(needed(requirement, seen) for requirement in required()))
    installed = {name: Version(metadata.version(name)) for name in names}
    # A build may carry a local label, e.g. 2.15.0+cpu.
    wrong = {name: v for name, v in installed.items() if pins().get(name) != Version(v.public)}
    assert not wrong, "constraints.txt and the environment differ"


def test_lower_bounds_allow_the_pins() -> None:
    wrong = [str(r) for r in required() if pins()[canonicalize_name(r.name)] not in r.specifier]
    assert not wrong
    assert all(r.specifier for r in required())


def test_constraints_are_plain_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    plain = re.compile(r"#.*|[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*")
    assert [line for line in lines if not plain.fullmatch(line)] == []


def test_cluster_file_follows_rays_schema() -> None:
    ray = util.find_spec("ray")
    if ray is None or ray.origin is None:
        pytest.skip("Ray is not installed")
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/rayjob.yaml"])
def test_clusters_run_the_pinned_ray(name: str) -> None:
    text = (ROOT / name).read_text()
    versions = re.findall(r"""(?:rayproject/ray:|rayVersion: ")([0-9.]+)""", text)
    assert versions
    assert {Version(version) for version in versions} == {pins()["ray"]}


def test_deploy_names_the_version_of_the_package() -> None:
    version = importlib.import_module("zfscale").__version__
    for name in ["deploy/Dockerfile", "deploy/rayjob.yaml", "deploy/cronjob.yaml"]:
        assert set(re.findall(r"zfscale:([0-9][0-9.]*[0-9])", (ROOT / name).read_text())) == {
            version
        }
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_readme_stays_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") < 150


def test_the_release_takes_its_notes_from_the_changelog() -> None:
    version = importlib.import_module("zfscale").__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)


def declared_tables() -> list[Table]:
    """The tables of all analyses, those that only some options bring included."""
    kinds = {kind: analyses.load(kind) for kind in analyses.names()}
    some = {"index": {"images": ["x"]}, "occlusion": {"features": [0]}}
    return [
        table
        for kind, analysis in kinds.items()
        for table in analysis(analysis.Options.model_validate(some.get(kind, {}))).tables
    ]


def test_formats_explains_every_column() -> None:
    text = (ROOT / "docs" / "formats.md").read_text()
    tables = declared_tables()
    assert tables
    missing = []
    for table in tables:
        # A table's section reaches from its heading to the next one.
        section = re.search(
            rf"^#+ [^\n]*`?{table.name}`?[^\n]*\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL
        )
        body = section.group(1) if section else ""
        missing += [
            f"{table.name}.{column.name}"
            for column in table.columns
            if f"`{column.name}`" not in body
        ]
    assert not missing
