"""Looking at models, job files and runs: `zfscale layers`, `verify`, `gallery` and their like."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--weights", metavar="FILE", help="File, URL or seed:N; the layers need none.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def layers(model: str, weights: str | None, as_json: bool) -> None:
    """List every layer of a network, and mark those that a scan observes by default."""
    from zfscale import models

    # Random weights have the same layers, and need no file.
    network = models.load(model, weights or (None if "@" in model else "seed:0"))
    rows = models.table(network)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    width = max(len(row.name) for row in rows)
    kinds = max(len(row.kind) for row in rows)
    click.echo(
        f"  {'layer':{width}}  {'kind':{kinds}}  channels       size     stride  receptive field"
    )
    for row in rows:
        size = _by((row.height, row.width))
        mark = "*" if row.observed else " "
        click.echo(
            f"{mark} {row.name:{width}}  {row.kind:{kinds}}  {row.channels:8,} {size:>10} "
            f"{_by(row.stride):>10}  {_by(row.field):>15}"
        )
    click.echo("* observed by a scan where the job names no layers")


def _by(pair: tuple[int, int] | None) -> str:
    return "?" if pair is None else f"{pair[0]} x {pair[1]}"


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(run: str, as_json: bool) -> None:
    """Print the analyses of a run: state, counts, size, time, and how to go on."""
    from zfscale.engine.progress import duration
    from zfscale.runs import manifest
    from zfscale.runs.summary import summarise
    from zfscale.storage import open_storage

    state = manifest.load(open_storage(run))
    analyses = summarise(state)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in analyses], indent=2))
        return
    name = max(8, *(len(each.name) for each in analyses))
    kind = max(4, *(len(each.kind) for each in analyses))
    click.echo(
        f"{'analysis':{name}}  {'kind':{kind}}  state        tasks      images        rows"
        "        size        time"
    )
    for each in analyses:
        click.echo(
            f"{each.name:{name}}  {each.kind:{kind}}  {each.state:11}  {each.tasks:5,}  "
            f"{each.counts.images:10,}  {each.rows:10,}  {_size(each.size or each.kept):>10}  "
            f"{duration(each.seconds):>10}"
        )
    for each in analyses:
        if each.state == "running":
            click.echo(
                f"\n{each.name} is under way, or its job was killed: the last commit was at "
                f"{state.written}"
            )
        if each.error is not None:
            click.echo(f"\n{each.name} {each.state}: {each.error}")
    for command in dict.fromkeys(each.command for each in analyses if each.command):
        click.echo(f"\nGo on with:\n  {command}")


def _size(size: float) -> str:
    """Bytes in words: 12 kB, 3.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@click.command()
@click.argument("run", metavar="RUN")
def verify(run: str) -> None:
    """Check manifest, hashes and accounting of a run, and print one digest of its results."""
    from zfscale.errors import IntegrityError
    from zfscale.runs import manifest
    from zfscale.runs.digest import digest
    from zfscale.runs.verify import check_accounting, check_record, find_damage
    from zfscale.storage import open_storage

    storage = open_storage(run)
    state = manifest.load(storage)
    damage = find_damage(storage, state)
    if damage:
        told = "\n".join(f"  {each}" for each in damage)
        raise IntegrityError(f"{run}: {len(damage)} files are not what was committed:\n{told}")
    check_record(storage, state)
    for name, counts in check_accounting(storage, state).items():
        click.echo(
            f"{name}: {counts.images:,} images = {counts.ok:,} ok + {counts.quarantined:,} "
            f"quarantined + {counts.duplicate:,} duplicate",
            err=True,
        )
    click.echo("every file is as it was committed", err=True)
    click.echo(digest(storage))


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", metavar="DIR", help="Where to write it; RUN/gallery if left out.")
def gallery(run: str, out: str | None) -> None:
    """Write the gallery of a run: static HTML that opens from the disk."""
    from tqdm import tqdm

    from zfscale.gallery.build import build

    with tqdm(unit=" files", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        index = build(run, out, progress)
    click.echo(index)


@click.group()
def images() -> None:
    """Make images."""


@images.command()
@click.option("--count", type=int, required=True, metavar="N", help="How many.")
@click.option("--out", required=True, metavar="DIR", help="Folder of the tars.")
@click.option("--seed", type=int, default=0, metavar="S", show_default=True)
def parts(count: int, out: str, seed: int) -> None:
    """Render creatures whose classes are told apart by parts, and where these are."""
    from zfscale.datasets import parts as dataset

    for shard in dataset.write(out, count, seed):
        click.echo(shard)


@click.command()
def schema() -> None:
    """Print the JSON Schema of a job file, the options of every analysis included."""
    from zfscale.engine.schema import job_schema

    click.echo(json.dumps(job_schema(), indent=2))


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--delete", is_flag=True, help="Delete; without it they are only listed.")
def gc(run: str, delete: bool) -> None:
    """List the files of a run that nothing refers to, or delete them."""
    from zfscale.runs.gc import collect, garbage
    from zfscale.storage import open_storage

    storage = open_storage(run)
    found = collect(storage) if delete else garbage(storage)
    for path, size, why in found:
        click.echo(f"{path}  {size:,} bytes  {why}")
    done = "deleted" if delete else "found; --delete deletes them"
    click.echo(f"{len(found):,} files, {sum(size for _, size, _ in found):,} bytes {done}")


COMMANDS = (layers, show, verify, gallery, images, schema, gc)
