"""Networks of the user's own: what a factory may return, and how a wrong one is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zfscale import models
from zfscale.errors import UsageError
from zfscale.models import factory as _factory
from zfscale.records import Preprocessing

SOURCE = """
import torch
from torch import nn
from zfscale.records import Preprocessing

number = 3
net = nn.Conv2d(3, 4, 3)

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

def complete():
    return plain(), Preprocessing(resize=None, crop=(20, 30), mean=(1.0, 2.0, 3.0))

def nothing():
    return None

def ending():
    raise SystemExit(3)

def half_right():
    return plain(), (0.5, 0.5, 0.5)

def late():
    import zfscale_test_helper
    return zfscale_test_helper.build()

def not_finite():
    module = plain()
    torch.nn.init.constant_(module[0].bias, float("nan"))
    return module

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 2, 1))
"""


@pytest.fixture(autouse=True)
def my_net(monkeypatch, tmp_path: Path):
    """A module beside the job file, in the current directory."""
    (tmp_path / "zfscale_test_net.py").write_text(SOURCE)
    (tmp_path / "zfscale_test_helper.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Conv2d(3, 1, 1))\n"
    )
    (tmp_path / "zfscale_test_needy.py").write_text("import zfscale_no_such_package\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    assert sys.path == before
    for name in [name for name in sys.modules if name.startswith("zfscale_test_")]:
        del sys.modules[name]


def load(attribute: str, weights: str | None = None):
    return models.load(f"zfscale_test_net:{attribute}", weights)


def test_a_module_gets_the_preprocessing_of_imagenet() -> None:
    network = load("plain")
    assert isinstance(network.module[0], nn.Conv2d)
    assert network.preprocessing == _factory.IMAGENET
    assert network.preprocessing.mean == (0.485, 0.456, 0.406)
    assert not network.module.training


def test_a_factory_may_give_its_own_preprocessing() -> None:
    expected = Preprocessing(resize=None, crop=(20, 30), mean=(1.0, 2.0, 3.0))
    assert load("complete").preprocessing == expected


def test_a_class_is_a_factory() -> None:
    assert load("Net").module[0].out_channels == 2


def test_a_factory_may_import_its_neighbours_late() -> None:
    assert load("late").module[0].out_channels == 1


def test_a_seed_makes_the_factory_reproducible() -> None:
    first = models.fingerprint(load("plain", "seed:0"))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert models.fingerprint(load("plain", "seed:0")) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert models.fingerprint(load("plain", "seed:1")) != first


def test_weights_of_a_file_are_put_into_the_module(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).state_dict()
    torch.save(own, tmp_path / "w.pt")
    assert torch.equal(load("plain", "w.pt").module[0].weight, own["0.weight"])
    torch.save({"0.weight": own["0.weight"]}, tmp_path / "less.pt")
    with pytest.raises(UsageError, match=r"less.pt: do not fit the model: missing: 0.bias"):
        load("plain", "less.pt")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("zfscale_test_absent:build", "No module named 'zfscale_test_absent'; run from the dir"),
        ("zfscale_test_needy:build", "No module named 'zfscale_no_such_package'"),
        ("zfscale_test_net:absent", r"zfscale_test_net \(.*zfscale_test_net.py\) has no 'absent'"),
        ("zfscale_test_net:number", "number is a int; expected a function"),
        ("zfscale_test_net:net", "net is a Conv2d; expected a function"),
        ("zfscale_test_net:nothing", "returned a NoneType; expected an nn.Module"),
        ("zfscale_test_net:ending", "calling it raised SystemExit: 3"),
        ("zfscale_test_net:half_right", r"returned \(Sequential, tuple\); expected an nn.Module"),
        ("zfscale_test_net:not_finite", "0.bias holds 4 values that are NaN or Inf"),
    ],
)
def test_a_wrong_factory_is_named(model: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        models.load(model, None)
    assert model in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"crop": 224}, r"crop 224: .*tuple"),
        ({"crop": (224, 0)}, r"crop \(224, 0\): above 0"),
        ({"resize": -1}, "resize -1: above 0"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (1, 0, 1)}, r"std \(1, 0, 1\): other than 0"),
        ({"scale": 0}, "scale 0: above 0"),
        ({"order": "GBR"}, "order 'GBR': .*'RGB' or 'BGR'"),
        ({"interpolation": "cubic"}, "interpolation 'cubic': .*'bicubic'"),
    ],
)
def test_a_wrong_preprocessing_is_named(changed: dict[str, Any], message: str) -> None:
    good = {"resize": None, "crop": (20, 30), "mean": (0.0, 0.0, 0.0)}
    with pytest.raises(UsageError, match=f"model: net: its preprocessing has {message}"):
        _factory._result("net", (nn.Conv2d(3, 1, 1), Preprocessing(**(good | changed))))
