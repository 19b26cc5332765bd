"""Something small to train, alone and in several processes: a network that learns to undo noise on vectors."""

import json

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ldmkit.noise import Noise
from ldmkit.training.loop import train
from ldmkit.training.optim import constant
from ldmkit.training.run import Run

WIDTH = 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.fixed = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.drop = nn.Dropout(0.0)

    def forward(self, batch, seeds, step):
        x = batch["x"]
        noisy = x + Noise(tuple(seeds)).constant(x)
        for layer in self.layers:
            noisy = self.drop(layer(noisy).tanh())
        self.seen += 1
        return (self.fixed(noisy) - x).square().mean(1)


class Small:
    """A trainee of one network, whose calls are counted."""

    def __init__(self, dropout=0.0):
        self.net = Net()
        self.net.drop.p = dropout
        self.phases = {"net": self.net}
        self.begun = 0
        self.shown = []

    def begin(self, read):
        self.begun += 1
        self.first = read(3)

    def prepare(self, records, seeds):
        return {"x": torch.stack([record["x"] for record in records])}

    def show(self, step):
        self.shown.append((step, self.net.training))
        loss = self.net({"x": torch.zeros(2, WIDTH)}, (0, 1), step)
        return {"loss": loss.clamp(0, 1).view(2, 1, 1, 1)}

    def export(self, path, notes):
        tensors = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        del tensors["seen"]
        save_file(tensors, path, {"notes": json.dumps(notes)})


class Late(nn.Module):
    """A phase that sits out the first four steps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch, seeds, step):
        loss = (self.weight - 1).square().repeat(len(seeds))
        return loss if step >= 4 else torch.zeros(len(seeds))


class Both(Small):
    """Two phases."""

    def __init__(self):
        super().__init__()
        self.late = Late()
        self.phases = {"net": self.net, "late": self.late}

    def export(self, path, notes):
        tensors = {**dict(self.net.named_parameters()), "late": self.late.weight}
        save_file({name: value.detach().clone() for name, value in tensors.items()}, path)


class Vectors:
    """Records of one vector each."""

    def __init__(self, count=10, bad=()):
        x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))
        x[list(bad)] = float("nan")
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, place):
        return {"x": self.x[place], "place": place}


def run(out, steps=6, **options):
    """A run of small steps."""
    given = {"batch": 4, "rate": constant(0.02), "save_every": 2, "log_every": 2, "show_every": 4, "progress": False}
    return Run(out=out, steps=steps, **{**given, **options})


def trained(out, steps=6, data=None, dropout=0.0, **options):
    """The exported weights of such a run."""
    return load_file(train(Small(dropout), data or Vectors(), run(out, steps, **options)))
