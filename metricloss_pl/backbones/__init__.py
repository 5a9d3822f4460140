"""Networks from images to features, each a class with `num_features` and any number of `in_channels`."""

from metricloss_pl.backbones.base import Backbone
from metricloss_pl.backbones.cifar_resnet import CifarResNet
from metricloss_pl.backbones.lenet import LeNetPlusPlus
from metricloss_pl.backbones.preact_resnet import PreActResNet
from metricloss_pl.backbones.timm import TimmBackbone
from metricloss_pl.backbones.tiny import TinyConvNet
from metricloss_pl.backbones.torchvision import TorchvisionBackbone
from metricloss_pl.backbones.whitened import WhitenedConvNet

__all__ = [
    "Backbone",
    "CifarResNet",
    "LeNetPlusPlus",
    "PreActResNet",
    "TimmBackbone",
    "TinyConvNet",
    "TorchvisionBackbone",
    "WhitenedConvNet",
]
