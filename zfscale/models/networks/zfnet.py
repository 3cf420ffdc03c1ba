"""ZFNet: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV 2014),
Fig. 3.

The pools keep the last, partial window (ceil mode), which is what gives the sizes of the figure:
110, 55, 26, 13, 13, 13 and 6, so 9,216 inputs to layer 6. The paper names the contrast
normalisation but not its constants; they are Krizhevsky's (2012, section 3.3).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from zfscale.records import Preprocessing

PREPROCESSING = Preprocessing(resize=256, crop=(224, 224), mean=(123.68, 116.779, 103.939))


def build(classes: int = 1000, normalisation: bool = True) -> nn.Module:
    """The network for input (B, 3, 224, 224); without contrast normalisation if so asked."""

    # Krizhevsky adds 1e-4 times the sum of squares; torch divides alpha by the window of 5.
    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 96, 7, stride=2, padding=1),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        norm1=norm(),
        conv2=nn.Conv2d(96, 256, 5, stride=2),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        norm2=norm(),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(384, 384, 3, padding=1),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(384, 256, 3, padding=1),
        relu5=nn.ReLU(inplace=True),
        pool5=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        flatten=nn.Flatten(),
        fc6=nn.Linear(256 * 6 * 6, 4096),
        relu6=nn.ReLU(inplace=True),
        drop6=nn.Dropout(),
        fc7=nn.Linear(4096, 4096),
        relu7=nn.ReLU(inplace=True),
        drop7=nn.Dropout(),
        fc8=nn.Linear(4096, classes),
    )
    if not normalisation:
        del layers["norm1"], layers["norm2"]
    return nn.Sequential(layers)
