"""`python -m benchmarks [NAME...]`: run benchmarks, print their figures, write docs/benchmarks.md.

Without names all of them, one after the other, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import benchmarks
from benchmarks import _report

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def names() -> list[str]:
    """All benchmarks there are: the modules of this package, less its private helpers."""
    modules = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in modules if not name.startswith("_"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names()))
    parser.add_argument("--print", action="store_true", help=f"leave {DOCUMENT.name} as it is")
    arguments = parser.parse_args()
    chosen = arguments.names or names()
    if unknown := set(chosen) - set(names()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    if len(chosen) > 1:
        return _one_by_one(chosen, ["--print"] if arguments.print else [])
    module = importlib.import_module(f"benchmarks.{chosen[0]}")
    title = (module.__doc__ or chosen[0]).partition("\n")[0].rstrip(".")
    report = module.run()
    text = _report.markdown(report)
    print(f"## {title}\n{text}\n")
    if not arguments.print:
        _report.write(DOCUMENT, chosen[0], title, text)
        if report.figure is not None:
            DOCUMENT.with_name(f"{chosen[0]}.svg").write_text(report.figure, "utf-8")
    return 0


def _one_by_one(chosen: list[str], options: list[str]) -> int:
    """Run each in a new process, so that none inherits threads or memory; 1 if any failed."""
    command = [sys.executable, "-m", "benchmarks", *options]
    failed = [name for name in chosen if subprocess.run([*command, name], check=False).returncode]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
