"""The grader of notebook 11, on the mistakes that students make."""

import copy
import math
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from grade import _advice, _problems_of_data, grade
from study import plot_networks
from utils import ROOT, Data, fit, load_run, mean_accuracy, parameters_by_layer, plot_layers

TASK = {"max_parameters": 7_999, "max_epochs": 5, "accuracy": 20.0, "last": 2, "fully_connected": False}


class Good(nn.Module):
    """A valid submission."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, 2))
        self.head = nn.Conv2d(16, 10, 1)
        self.average = partial(torch.mean, dim=(2, 3))
        self.last = nn.Identity()

    def forward(self, images):
        return self.last(self.average(self.head(self.features(images))))


def good_but(**changes):
    """Return what makes the valid network with one part replaced, a feature perhaps, or with something added."""

    def network():
        model = Good()
        for name, change in copy.deepcopy(changes).items():
            if name == "last":
                del model.last  # a layer, in whose place nothing but layers could be put
            setattr(*((model.features, name[-1]) if name.startswith("feature_") else (model, name)), change)
        return model

    return network


class ForgottenSuper(nn.Module):
    def __init__(self):
        self.head = nn.Conv2d(1, 10, 28)
