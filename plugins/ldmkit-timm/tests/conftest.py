"""One thread, one seed, no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True)
def known_randomness():
    torch.set_num_threads(1)
    torch.manual_seed(0)
