"""Networks by name, their weights, and every way in which these can be wrong."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from zfscale import models
from zfscale.engine.worker import load_network
from zfscale.errors import UsageError
from zfscale.job import Job
from zfscale.models import checkpoint as _checkpoint
from zfscale.models import networks
from zfscale.models.networks import cifar
from zfscale.models.sources import zfscale as _zfscale

SEEDED = "zfscale:cifar"


def state(classes: int = 10) -> dict[str, torch.Tensor]:
    return cifar.build(classes).state_dict()


def saved(path: Path, content: object) -> str:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def test_names_are_the_public_modules(monkeypatch, tmp_path: Path) -> None:
    assert {"alexnet", "caffenet", "cifar", "vgg16", "zfnet"} <= set(_zfscale.names())
    for name in ("my_net.py", "other.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr(networks, "__path__", [str(tmp_path)])
    assert _zfscale.names() == ["my-net", "other"]


@pytest.mark.parametrize("name", _zfscale.names())
def test_every_network_keeps_the_convention(name: str) -> None:
    description = _zfscale._find(name)
    assert description.__doc__
    assert "build" in vars(description)
    shipped = getattr(description, "WEIGHTS", None)
    assert shipped is None or (_zfscale._SHIPPED / shipped).is_file()


def test_a_loaded_network_is_ready_to_observe() -> None:
    network = models.load(SEEDED, "seed:0")
    assert network.name == SEEDED
    assert network.preprocessing == cifar.PREPROCESSING
    assert not network.module.training
    weight = network.module.get_submodule("conv4").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_seed_is_reproducible_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = models.fingerprint(models.load(SEEDED, "seed:0"))
    torch.manual_seed(2)
    assert models.fingerprint(models.load(SEEDED, "seed:0")) == first
    assert models.fingerprint(models.load(SEEDED, "seed:1")) != first


def test_a_seed_is_reproducible_in_another_process() -> None:
    code = (
        "import torch; torch.manual_seed(5); from zfscale import models; "
        f"print(models.fingerprint(models.load({SEEDED!r}, 'seed:3')))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == models.fingerprint(models.load(SEEDED, "seed:3"))


@pytest.mark.parametrize("source", ["seed:0", "file"])
def test_loading_leaves_the_global_generator_alone(source: str, tmp_path: Path) -> None:
    weights = saved(tmp_path / "w.pt", state()) if source == "file" else source
    before = torch.get_rng_state()
    models.load(SEEDED, weights)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", ["seed:", "seed:abc", "seed:-1", "seed:1.5", f"seed:{2**63}"])
def test_a_wrong_seed_is_named(seed: str) -> None:
    with pytest.raises(UsageError, match=f"{seed}: expected seed:N"):
        models.load(SEEDED, seed)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_make_a_round_trip(name: str, tmp_path: Path) -> None:
    given = state()
    loaded = models.load(SEEDED, saved(tmp_path / name, given)).module.state_dict()
    assert given.keys() == loaded.keys()
    assert all(torch.equal(given[key], loaded[key]) for key in given)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {f"module.{key}": value for key, value in s.items()},
        lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}},
    ],
    ids=["state_dict", "model", "parallel", "both"],
)
def test_checkpoints_are_unwrapped(wrap, tmp_path: Path) -> None:
    given = state()
    loaded = models.load(SEEDED, saved(tmp_path / "w.pt", wrap(given))).module.state_dict()
    assert all(torch.equal(given[key], loaded[key]) for key in given)


def test_classes_are_those_of_the_file(tmp_path: Path) -> None:
    network = models.load(SEEDED, saved(tmp_path / "w.pt", state(classes=7)))
    assert network.module.get_submodule("fc6").out_features == 7


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    half = {key: value.half() if value.ndim else value for key, value in state().items()}
    network = models.load(SEEDED, saved(tmp_path / "w.pt", half))
    assert network.module.get_submodule("conv1").weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ""])
def test_weights_at_a_url_are_told_by_their_content(name: str, ending: str, tmp_path: Path) -> None:
    """What comes from a URL lies in a local file without an ending, and names may be wrong."""
    content = state(7)
    called = f"net/{name}{ending}"  # Each its own: local copies live as long as the process.
    fsspec.filesystem("memory").pipe(
        f"/{called}", Path(saved(tmp_path / name, content)).read_bytes()
    )
    spec = {"run": str(tmp_path), "model": SEEDED, "weights": f"memory://{called}"}
    try:
        network = load_network(Job.model_validate(spec | {"analyses": {"scan": {}}}), "cpu")
    finally:
        fsspec.filesystem("memory").rm("/net", recursive=True)
    assert network.classes == 7
    for key, value in network.module.state_dict().items():
        assert torch.equal(value, content[key])


def test_weights_that_ship_with_a_network_are_its_default(monkeypatch, tmp_path: Path) -> None:
    given = state()
    saved(tmp_path / "cifar.safetensors", given)
    monkeypatch.setattr(_zfscale, "_SHIPPED", tmp_path)
    monkeypatch.setattr(cifar, "WEIGHTS", "cifar.safetensors", raising=False)
    loaded = models.load(SEEDED, None).module.state_dict()
    assert torch.equal(loaded["conv1.weight"], given["conv1.weight"])


def test_no_weights_are_not_random_weights() -> None:
    with pytest.raises(UsageError, match=r"zfscale:cifar comes without weights.*seed:0"):
        models.load(SEEDED, None)


def without(key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state().items() if name != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("conv2.weight"), "missing: conv2.weight"),
        (without("fc6.weight"), "missing: fc6.weight"),
        (state() | {"extra.bias": torch.zeros(1)}, "unexpected: extra.bias"),
        (
            state() | {"conv1.weight": torch.zeros(8, 3, 3, 3)},
            r"wrong shape: conv1.weight is \(8, 3, 3, 3\) instead of \(32, 3, 3, 3\)",
        ),
        ({f"x{i}": torch.zeros(1) for i in range(7)}, "x4 and 2 more"),
        ({}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (cifar.build(), "not a safetensors file, nor a state dict"),
    ],
    ids=[
        "missing",
        "no last layer",
        "unexpected",
        "shape",
        "many",
        "empty",
        "list",
        "numbers",
        "pickled module",
    ],
)
def test_weights_that_do_not_fit_are_refused(content, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", content)
    with pytest.raises(UsageError, match=message) as caught:
        models.load(SEEDED, path)
    assert path in str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 and then nothing"])
def test_a_broken_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a safetensors file"):
        models.load(SEEDED, str(path))


def _files() -> list[bytes]:
    """A few weights in each of the three formats."""
    content = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    found = [save(content)]
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        found.append(buffer.getvalue())
    return found


@given(
    content=st.sampled_from(_files()),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    left=st.floats(0, 1),
)
def test_a_damaged_file_is_read_or_refused(
    content: bytes, damage: list[tuple[float, int]], left: float
) -> None:
    data = bytearray(content)
    for place, value in damage:
        data[int(place * len(data))] = value
    with tempfile.NamedTemporaryFile() as file:
        file.write(data[: round(left * len(data))])
        file.flush()
        try:
            found = _checkpoint.read(file.name)
        except UsageError:
            return
    assert all(isinstance(value, torch.Tensor) for value in found.values())


@pytest.mark.parametrize("name", ["absent.pt", "."])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        models.load(SEEDED, str(tmp_path / name))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    with pytest.raises(UsageError, match="not a safetensors file, nor a state dict"):
        models.load(SEEDED, saved(tmp_path / "w.pt", {"conv1.weight": Trap()}))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    bad = state()
    bad["conv3.weight"][5, 0, 0, 1] = value
    with pytest.raises(UsageError, match=r"conv3\.weight holds 1 values that are NaN or Inf"):
        models.load(SEEDED, saved(tmp_path / "w.safetensors", bad))


@pytest.mark.parametrize("model", ["", "zfnet", "zfscale:", ":zfnet", "zfscale"])
def test_a_model_needs_an_origin_and_a_name(model: str) -> None:
    with pytest.raises(UsageError, match=r"expected torchvision:NAME.*, zfscale:NAME or package"):
        models.load(model, "seed:0")


@pytest.mark.parametrize("name", ["nonesuch", "_checkpoint", "../zfnet", "zfnet.build"])
def test_an_unknown_network_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"there is no such network; there are alexnet, caffenet"):
        models.load(f"zfscale:{name}", "seed:0")


def test_the_fingerprint_covers_every_parameter_and_buffer() -> None:
    network = models.load(SEEDED, "seed:0")
    first = models.fingerprint(network)
    for name, tensor in network.module.state_dict().items():
        last = tensor[(-1,) * tensor.ndim].clone()
        tensor[(-1,) * tensor.ndim] += 1
        assert models.fingerprint(network) != first, name
        tensor[(-1,) * tensor.ndim] = last
    assert models.fingerprint(network) == first


def test_the_fingerprint_covers_layers_and_preprocessing(monkeypatch) -> None:
    network = models.load(SEEDED, "seed:0")
    first = models.fingerprint(network)
    network.module.get_submodule("pool1").stride = 1
    assert models.fingerprint(network) != first

    darker = replace(cifar.PREPROCESSING, mean=(100.0, 100.0, 100.0))
    monkeypatch.setattr(cifar, "PREPROCESSING", darker)
    assert models.fingerprint(models.load(SEEDED, "seed:0")) != first


def test_the_fingerprint_is_blind_to_the_memory_format() -> None:
    network = models.load(SEEDED, "seed:0")
    first = models.fingerprint(network)
    network.module.to(memory_format=torch.contiguous_format)
    assert network.module.get_submodule("conv4").weight.is_contiguous()
    assert models.fingerprint(network) == first


def test_the_fingerprint_does_not_mix_up_tensors() -> None:
    """Two buffers of equal shape that change places are another network."""
    network = models.load(SEEDED, "seed:0")
    first = models.fingerprint(network)
    bn: nn.BatchNorm2d = network.module.get_submodule("bn3")
    bn.running_mean, bn.running_var = bn.running_var, bn.running_mean
    assert models.fingerprint(network) != first
