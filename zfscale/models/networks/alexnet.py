"""AlexNet: Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional
Neural Networks" (NIPS 2012), section 3.5 and Fig. 2.

The two halves of the original's two GPUs are two groups in layers 2, 4 and 5. The response
normalisation of section 3.3 comes before the pooling. Input 227 without padding, the size that
gives the 55 x 55 maps of the paper (it says 224, which does not divide).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from zfscale.records import Preprocessing

PREPROCESSING = Preprocessing(resize=256, crop=(227, 227), mean=(123.68, 116.779, 103.939))


def build(classes: int = 1000) -> nn.Module:
    """The network for input (B, 3, 227, 227)."""

    def norm() -> nn.Module:
        # The paper adds 1e-4 times the sum of squares; torch divides alpha by the window of 5.
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 96, 11, stride=4),
        relu1=nn.ReLU(inplace=True),
        norm1=norm(),
        pool1=nn.MaxPool2d(3, stride=2),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=nn.ReLU(inplace=True),
        norm2=norm(),
        pool2=nn.MaxPool2d(3, stride=2),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
        relu5=nn.ReLU(inplace=True),
        pool5=nn.MaxPool2d(3, stride=2),
        flatten=nn.Flatten(),
        fc6=nn.Linear(256 * 6 * 6, 4096),
        relu6=nn.ReLU(inplace=True),
        drop6=nn.Dropout(),
        fc7=nn.Linear(4096, 4096),
        relu7=nn.ReLU(inplace=True),
        drop7=nn.Dropout(),
        fc8=nn.Linear(4096, classes),
    )
    return nn.Sequential(layers)
