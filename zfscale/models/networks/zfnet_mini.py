"""ZFNet at half the input and a twelfth of the width, trained on the `parts` data set.

The same layers under the same names as `zfnet` (Zeiler & Fergus, ECCV 2014, Fig. 3), for
112 x 112 pixels: feature maps of 54, 27, 12, 6, 6, 6 and 3, so 576 inputs to layer 6. The weights
that ship with it are those of jobs/train-zfnet-mini.yaml.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from zfscale.records import Preprocessing

PREPROCESSING = Preprocessing(
    resize=112, crop=(112, 112), mean=(129.0, 129.0, 131.0), std=(49.0, 49.0, 49.0)
)
WEIGHTS = "zfnet_mini.safetensors"


def build(classes: int = 10) -> nn.Module:
    """The network for input (B, 3, 112, 112)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 24, 7, stride=2, padding=1),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        norm1=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
        conv2=nn.Conv2d(24, 64, 5, stride=2),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        norm2=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
        conv3=nn.Conv2d(64, 96, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(96, 96, 3, padding=1),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(96, 64, 3, padding=1),
        relu5=nn.ReLU(inplace=True),
        pool5=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        flatten=nn.Flatten(),
        fc6=nn.Linear(64 * 3 * 3, 256),
        relu6=nn.ReLU(inplace=True),
        drop6=nn.Dropout(0.25),
        fc7=nn.Linear(256, 256),
        relu7=nn.ReLU(inplace=True),
        drop7=nn.Dropout(0.25),
        fc8=nn.Linear(256, classes),
    )
    return nn.Sequential(layers)
