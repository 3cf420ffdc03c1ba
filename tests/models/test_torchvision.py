"""Networks of torchvision: preprocessing of their weights, downloads, GoogLeNet's own input."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from zfscale import models
from zfscale.errors import UsageError
from zfscale.models.sources import torchvision as _torchvision

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def hub(monkeypatch, tmp_path: Path) -> Path:
    """An empty store of downloaded weights, and no network."""

    def offline(*args, **kwargs) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("name", "parameters"), [("alexnet", 61_100_840), ("resnet18", 11_689_512)]
)
def test_a_seed_gives_the_networks_own_initialisation(name: str, parameters: int) -> None:
    network = models.load(f"torchvision:{name}", "seed:4")
    torch.manual_seed(4)
    own = torchvision.models.get_model(name, weights=None).state_dict()
    found = network.module.state_dict()
    assert own.keys() == found.keys()
    assert all(torch.equal(own[key], found[key]) for key in own)
    assert sum(p.numel() for p in network.module.parameters()) == parameters


def test_vgg16_bn_from_a_seed() -> None:
    network = models.load("torchvision:vgg16_bn", "seed:0")
    assert sum(p.numel() for p in network.module.parameters()) == 138_365_992
    assert network.preprocessing.crop == (224, 224)


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "googlenet", "inception_v3", "densenet121", "resnet50"]
)
def test_a_seed_keeps_every_layer_awake(name: str) -> None:
    network = models.load(f"torchvision:{name}", "seed:0")
    spreads: list[float] = []
    for layer in network.module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _module, _in, out: spreads.append(float(out.std())))
    with torch.inference_mode():
        network.module(torch.randn(1, 3, 96, 96))
    assert all(0.05 < spread < 500 for spread in spreads), spreads


@pytest.mark.parametrize(
    ("name", "resize", "crop", "interpolation"),
    [
        ("resnet18", 256, 224, "bilinear"),
        ("squeezenet1_1@DEFAULT", 256, 224, "bilinear"),
        ("inception_v3", 342, 299, "bilinear"),
        ("mobilenet_v3_small@IMAGENET1K_V1", 256, 224, "bilinear"),
        ("mobilenet_v2@IMAGENET1K_V2", 232, 224, "bilinear"),
        ("efficientnet_b0", 256, 224, "bicubic"),
    ],
)
def test_preprocessing_is_that_of_the_weights(
    name: str, resize: int, crop: int, interpolation: str, hub: Path
) -> None:
    given = models.load(f"torchvision:{name}", "seed:0").preprocessing
    assert (given.resize, given.crop, given.interpolation) == (resize, (crop, crop), interpolation)
    assert (given.mean, given.std) == IMAGENET
    assert (given.scale, given.order) == (1 / 255, "RGB")
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_an_own_map_of_the_input_becomes_preprocessing(name: str) -> None:
    network = models.load(f"torchvision:{name}@IMAGENET1K_V1", "seed:0")
    given = network.preprocessing
    assert network.module.transform_input is False
    assert given.mean == pytest.approx((0.5, 0.5, 0.5), abs=1e-7)
    assert given.std == pytest.approx((0.5, 0.5, 0.5), abs=1e-7)

    pixels = torch.randint(256, (2, 3, 96, 96)).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    mine = [torch.tensor(values).view(3, 1, 1) for values in (given.mean, given.std)]
    with torch.inference_mode():
        found = network.module((pixels * given.scale - mine[0]) / mine[1])
        network.module.transform_input = True
        expected = network.module((pixels / 255 - mean) / std)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_input_is_not_mapped_for_weights_of_ones_own() -> None:
    network = models.load("torchvision:googlenet", "seed:0")
    assert network.module.transform_input is False
    assert (network.preprocessing.mean, network.preprocessing.std) == IMAGENET


def test_published_weights_are_loaded_without_auxiliary_classifiers(hub: Path) -> None:
    full = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    url = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.url
    torch.save(full.state_dict(), hub / Path(url).name)
    module = models.load("torchvision:googlenet@DEFAULT", None).module
    assert torch.equal(module.fc.weight, full.fc.weight)
    assert module.aux1 is None
    assert not any(key.startswith("aux") for key in module.state_dict())


def test_a_failed_download_is_a_usage_error(hub: Path) -> None:
    with pytest.raises(UsageError, match=r"could not be downloaded.*Set weights to a local file"):
        models.load("torchvision:squeezenet1_1@DEFAULT", None)


def test_weights_of_ones_own_bring_their_classes(tmp_path: Path) -> None:
    own = torchvision.models.squeezenet1_1(num_classes=5)
    torch.save(own.state_dict(), tmp_path / "w.pt")
    module = models.load("torchvision:squeezenet1_1", str(tmp_path / "w.pt")).module
    assert module.classifier[1].out_channels == 5
    assert torch.equal(module.classifier[1].weight, own.classifier[1].weight)


def test_no_weights_are_not_random_weights() -> None:
    with pytest.raises(UsageError, match=r"torchvision:alexnet: no weights.*@DEFAULT.*seed:0"):
        models.load("torchvision:alexnet", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "no such classification network; it has e.g. resnet"),
        ("xyz", "it has e.g. alexnet, vgg16, resnet50"),
        # A network for something else than classes.
        ("fcn_resnet50", "no such classification network"),
        ("alexnet@IMAGENET", "no such weights; there are IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_unknown_names_are_told_with_known_ones(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.load(f"torchvision:{name}", "seed:0")


def test_without_torchvision_the_way_out_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UsageError, match="pip install torchvision"):
        models.load("torchvision:alexnet", "seed:0")
    assert models.load("zfscale:cifar", "seed:0").name == "zfscale:cifar"


def test_transforms_of_every_network_can_be_read() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(name):
            given = _torchvision._preprocessing(weights)
            assert given.resize >= given.crop[0] > 0
            assert given.interpolation in {"bilinear", "bicubic"}
