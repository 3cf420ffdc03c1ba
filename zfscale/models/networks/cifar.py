"""A small batch-normalised net for CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features
from Tiny Images", 2009): 32 x 32 input, four padded 3 x 3 convolutions.

Batch normalisation as in Ioffe & Szegedy (ICML 2015), between each convolution and its
rectification, so the convolutions need no bias. Mean and deviation are CIFAR-10's own.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from zfscale.records import Preprocessing

PREPROCESSING = Preprocessing(
    resize=32, crop=(32, 32), mean=(125.31, 122.95, 113.87), std=(62.99, 62.09, 66.70)
)


def build(classes: int = 10) -> nn.Module:
    """The network for input (B, 3, 32, 32)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 32, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(32),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(2, stride=2),
        conv2=nn.Conv2d(32, 64, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(64),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(2, stride=2),
        conv3=nn.Conv2d(64, 128, 3, padding=1, bias=False),
        bn3=nn.BatchNorm2d(128),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(128, 128, 3, padding=1, bias=False),
        bn4=nn.BatchNorm2d(128),
        relu4=nn.ReLU(inplace=True),
        pool4=nn.MaxPool2d(2, stride=2),
        flatten=nn.Flatten(),
        fc5=nn.Linear(128 * 4 * 4, 256),
        relu5=nn.ReLU(inplace=True),
        drop5=nn.Dropout(),
        fc6=nn.Linear(256, classes),
    )
    return nn.Sequential(layers)
