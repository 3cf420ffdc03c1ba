"""VGG16: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition" (ICLR 2015), Table 1, configuration D.

Layers have the names of the published model: conv1_1 to conv5_3, fc6 to fc8.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from zfscale.records import Preprocessing

PREPROCESSING = Preprocessing(resize=256, crop=(224, 224), mean=(123.68, 116.779, 103.939))

_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def build(classes: int = 1000) -> nn.Module:
    """The network for input (B, 3, 224, 224)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block, widths in enumerate(_BLOCKS, start=1):
        for index, width in enumerate(widths, start=1):
            layers[f"conv{block}_{index}"] = nn.Conv2d(channels, width, 3, padding=1)
            layers[f"relu{block}_{index}"] = nn.ReLU(inplace=True)
            channels = width
        layers[f"pool{block}"] = nn.MaxPool2d(2, stride=2)
    layers.update(
        flatten=nn.Flatten(),
        fc6=nn.Linear(512 * 7 * 7, 4096),
        relu6=nn.ReLU(inplace=True),
        drop6=nn.Dropout(),
        fc7=nn.Linear(4096, 4096),
        relu7=nn.ReLU(inplace=True),
        drop7=nn.Dropout(),
        fc8=nn.Linear(4096, classes),
    )
    return nn.Sequential(layers)
