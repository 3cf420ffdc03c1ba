"""CaffeNet: the BVLC Caffe reference model (Jia et al., "Caffe: Convolutional Architecture for
Fast Feature Embedding", ACM MM 2014; `bvlc_reference_caffenet`).

AlexNet with the pooling before the normalisation. Colours are in the order of Caffe, BGR, and
the mean is that of its ILSVRC 2012 mean image, so converted Caffe weights give its results.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from zfscale.records import Preprocessing

PREPROCESSING = Preprocessing(
    resize=256, crop=(227, 227), mean=(104.007, 116.669, 122.679), order="BGR"
)


def build(classes: int = 1000) -> nn.Module:
    """The network for input (B, 3, 227, 227)."""

    def norm() -> nn.Module:
        # Caffe divides alpha by the window, as torch does.
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 96, 11, stride=4),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2),
        norm1=norm(),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(3, stride=2),
        norm2=norm(),
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
