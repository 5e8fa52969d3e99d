"""Writes randn.safetensors: what torch.randn gives on a CPU, for tests/core/rng_test.cpp.

Names: "<seed>.<size>.<call>", two calls on one generator; "mixed.<n>" are calls of several sizes on one generator
(a spare value of a small call waits through a large one); "uniform" is torch.rand.
"""
import pathlib

import torch
from safetensors.torch import save_file

SEEDS = [0, 42, 2**32 - 1, 2**40 + 7]
SIZES = [1, 2, 15, 16, 17, 31, 32, 33, 100, 1000, 16387]

tensors = {}
for seed in SEEDS:
    for size in SIZES:
        generator = torch.Generator("cpu").manual_seed(seed)
        for call in range(2):
            tensors[f"{seed}.{size}.{call}"] = torch.randn(size, generator=generator)
generator = torch.Generator("cpu").manual_seed(7)
for n, size in enumerate([3, 40, 1, 16, 5]):
    tensors[f"mixed.{n}"] = torch.randn(size, generator=generator)
tensors["uniform"] = torch.rand(1000, generator=torch.Generator("cpu").manual_seed(42))
save_file(tensors, str(pathlib.Path(__file__).with_name("randn.safetensors")))
