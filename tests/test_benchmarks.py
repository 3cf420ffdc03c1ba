"""Every benchmark runs, small: its figures are there, and those that do not depend on speed right.

How fast anything is, no test says.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import (
    _images,
    _report,
    contention,
    correspondence,
    decoding,
    end_to_end,
    evidence,
    invariance,
    memory,
    occlusion,
    peers,
    scan,
    switches,
)
from zfscale.convnet.incremental.inference import Grid
from zfscale.convnet.network import Network
from zfscale.engine.worker import Serial
from zfscale.models.networks.zfnet_mini import PREPROCESSING
from zfscale.records import Box, Preprocessing

MODEL = "zfscale:zfnet-mini"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def rendered_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No photographs, and the number of threads as it was."""
    monkeypatch.setenv("ZFSCALE_DATA", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", torch.get_num_threads)


def test_images_are_different_and_fit_the_network() -> None:
    files = _images.encoded(3)
    assert len(set(files)) == 3
    pixels = _images.decoded(2, PREPROCESSING)
    assert pixels.shape == (2, 3, *PREPROCESSING.crop)
    assert pixels.dtype == torch.uint8


def test_scan() -> None:
    report = scan.run((MODEL,), count=6, batch=4)
    assert report.rows[0][0] == MODEL
    assert float(report.rows[0][-1]) > 0


def test_decoding() -> None:
    report = decoding.run(count=2, rounds=1)
    assert report.rows[0][-1].startswith("1.00 ")
    assert len(report.rows) == 3


def test_pillow_decodes_to_the_same_size() -> None:
    assert decoding.pillow(_images.encoded(1)[0]).size == (224, 224)


def test_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "EXECUTORS", {"in process": Serial})
    (row,) = end_to_end.run((MODEL,), count=4, batch=2, rounds=1, shard=2).rows
    assert all(float(figure.split()[0]) > 0 for figure in row[1:])


@pytest.mark.slow
def test_memory_is_that_of_the_job() -> None:
    report = memory.run((4,), MODEL)
    ((images, peak, ratio),) = report.rows
    assert (images, ratio) == ("4", "1.000")
    assert int(peak.replace(",", "")) > 100  # torch alone takes more


def test_a_failing_job_is_told(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"run: {tmp_path}/run\nmodel: zfscale:none\nimages: {tmp_path}/images\n")
    with pytest.raises(RuntimeError, match="none"):
        memory.peak(job)


def test_switches_are_smaller_than_indices() -> None:
    *layers, whole = switches.run(MODEL, count=4, k=2, batch=2).rows
    assert layers[0][2:4] == ("0", "0")  # no pool below the first convolution
    indices, record, stored = (int(cell.replace(",", "")) for cell in whole[2:5])
    assert 0 < stored < record < indices / 8


def test_correspondence_counts_images_and_pairs() -> None:
    rows = correspondence.run(count=20, draws=1, batch=20).rows
    named = {(layer, part): cells for layer, part, *cells in rows}
    assert named["conv5", "ears"][:2] == ["20", "190"]
    assert named["relu7", "discriminative ears"][:2] == [
        "6",
        "15",
    ]  # hare, mouse and beetle, twice each
    assert len(rows) == 2 * 2 * (4 + 1)
    for part, random in (cells[4:] for cells in named.values() if cells[1]):
        assert 0 < float(part) <= 1.2
        assert 0 < float(random) <= 1.2


def test_peers_give_the_same_winners(capsys: pytest.CaptureFixture[str]) -> None:
    report = peers.run(count=10, k=2, batch=4, rounds=1)
    right = {row[0]: row[-1] for row in report.rows}
    assert right["zfscale"] == right["plain loop"] == right["captum"] == "100.0%"
    told = capsys.readouterr().err
    for name in {"semanticlens", "zennit crp"} - right.keys():
        assert name.split()[-1] in told


def test_occlusion_is_measured_beside_its_rivals() -> None:
    case = occlusion.Case(MODEL, 24, 40)
    ((name, *figures),) = occlusion.run((case,), rounds=1).rows
    assert name == "zfnet-mini, 24 px, stride 40"
    assert all(float(figure.split()[0].replace(",", "")) > 0 for figure in figures)


def test_possible_multiply_adds_are_those_counted_one_by_one() -> None:
    """A 3 x 3 convolution of 8 x 8 units and a linear layer, one pixel hidden in a corner."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 5))
    network = Network(module, Preprocessing(None, (8, 8), (0.0, 0.0, 0.0)))
    whole = 64 * 9 * 3 * 4 + 256 * 5
    changed = 4 * 3 * 4 + 4 * 4 * 5  # the pixel meets 4 outputs; these are 16 inputs of the next
    found = occlusion.multiply_adds(network, Grid(((0, 1),), ((0, 1),)), classify=True)
    assert found == pytest.approx(whole / changed)


@pytest.mark.slow
def test_contention_compares_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "ATTEMPTS", 1)
    monkeypatch.setattr(contention, "LOOP", "import time; time.sleep(600)")  # tests load nothing
    works = [contention.Work(MODEL, 2), contention.Work(MODEL, 2, deconvolve=True)]
    rows = contention.run(works, rounds=1).rows
    assert [row[0] for row in rows] == ["scan, zfnet-mini", "deconvolution, zfnet-mini"]
    assert all(float(figure.split()[0]) > 0 for row in rows for figure in row[1:])


class Scripted:
    """A process whose measurements are known beforehand."""

    def __init__(self, *measured: contention.Measured) -> None:
        self._left = list(measured)

    def measure(self, work: contention.Work, beside: Sequence[int]) -> contention.Measured:
        return self._left.pop(0)


def test_disturbed_measurements_are_repeated() -> None:
    work = contention.Work(MODEL, 1)
    noisy, quieter, quiet = (contention.Measured(1.0, "", others) for others in (0.9, 0.5, 0.05))
    assert contention.undisturbed(Scripted(noisy, quiet, quieter), work, ()) == quiet
    never = (noisy, noisy, quieter, noisy, noisy)
    assert len(never) == contention.ATTEMPTS
    assert contention.undisturbed(Scripted(*never), work, ()) == quieter


def test_a_setting_that_changes_results_is_no_figure() -> None:
    one, other = (Scripted(*[contention.Measured(1.0, digest, 0.0)] * 2) for digest in "ab")
    with pytest.raises(AssertionError, match="depend on the setting"):
        contention.compare({"before": one, "after": other}, contention.Work(MODEL, 1), (0,), 1)


def test_evidence_is_counted() -> None:
    rows = evidence.run(count=6).rows
    assert [row[1] for row in rows].count(evidence.ALL) == len(evidence.OCCLUDERS)
    assert rows[0][1] == evidence.ALL
    assert int(rows[0][2]) == sum(int(row[2]) for row in rows[1 : len(rows) // 2]) == 6


def test_a_hit_lies_in_the_box_by_the_occluders_centre() -> None:
    places = Grid(((0, 4), (4, 8)), ((0, 4), (4, 8)))
    values = np.array([[3.0, 1.0], [2.0, 5.0]])
    assert evidence.seen(places, values, [Box(0, 5, 3, 8)]) == (True, 0.25)
    assert evidence.seen(places, values, [Box(0, 0, 8, 5)]) == (False, 0.5)


def test_invariance_tells_no_change_from_change() -> None:
    amounts = {"vertical": [4], "scale": None, "rotation": [90]}
    report = invariance.run(count=6, batch=4, amounts=amounts)
    rows = {row[:2]: [float(cell) for cell in row[2:4]] for row in report.rows}
    wanted = {("vertical", "0"), ("vertical", "4"), ("rotation", "0"), ("rotation", "90")}
    assert rows.keys() == wanted
    assert rows["vertical", "0"] == rows["rotation", "0"] == [0, 0]
    assert rows["vertical", "4"][0] > rows["vertical", "4"][1] > 0
    drawing = ElementTree.fromstring(report.figure or "")
    lines = drawing.findall(".//{http://www.w3.org/2000/svg}path")
    assert len(lines) == 2 * 3  # two distances and a probability for each transform
    assert "NaN" not in (report.figure or "")


def test_agreement_sees_every_kind_of_wrong_list() -> None:
    maxima = [torch.tensor([[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]])]

    def agreement(*ids: list[int]) -> float:
        return peers.agreement([torch.tensor(ids)], maxima)

    assert agreement([0, 1], [0, 1]) == 1
    assert agreement([0, 1], [1, 0]) == 0.5  # another order
    assert agreement([0, 1], [0, 0]) == 0.5  # one image twice
    assert agreement([0, 1], [0, 2]) == 0.5  # another image
    assert agreement([0, 1], [0, -1]) == 0.5  # no image


def test_figures_go_between_their_marks(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("# Benchmarks\nProse.\n")
    _report.write(document, "scan", "Scan", "old")
    document.write_text(document.read_text() + "More prose.\n")
    _report.write(document, "memory", "Memory", "kept")
    _report.write(document, "scan", "Scan", "new")
    text = document.read_text()
    assert [text.count(part) for part in ("old", "new", "kept", "Prose.", "More prose.")] == [
        0, 1, 1, 1, 1,
    ]  # fmt: skip
    assert text.count("## Scan") == 1


def test_the_command_knows_its_benchmarks() -> None:
    assert {"scan", "end_to_end", "peers", "memory", "switches", "decoding"} <= {*command.names()}
    line = [sys.executable, "-m", "benchmarks", "nothing"]
    wrong = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "no benchmark nothing" in wrong.stderr
