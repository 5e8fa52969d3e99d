"""Writes randn_cuda.safetensors: what torch.randn gives on a GPU. Needs torch and safetensors only.

usage: python make_randn_cuda.py [output file]

Names: "<seed>.<size>.<call>", two calls on one generator. The largest size keeps the first and the last 256 values
(512 in all). "multiprocessors" holds [number of multiprocessors, threads of each], which the layout depends on.
"""
import pathlib
import sys

import torch
from safetensors.torch import save_file

SEEDS = [0, 42, 2**40 + 7]
SIZES = [1, 5, 1000, 32768, 4 * 32 * 128 * 128]

gpu = torch.cuda.get_device_properties(0)
tensors = {"multiprocessors": torch.tensor([gpu.multi_processor_count, gpu.max_threads_per_multi_processor])}
for seed in SEEDS:
    for size in SIZES:
        generator = torch.Generator("cuda").manual_seed(seed)
        for call in range(2):
            values = torch.randn(size, generator=generator, device="cuda").cpu()
            if size > 100000:
                values = torch.cat([values[:256], values[-256:]])
            tensors[f"{seed}.{size}.{call}"] = values.contiguous()
default = pathlib.Path(__file__).with_name("randn_cuda.safetensors")
save_file(tensors, sys.argv[1] if len(sys.argv) > 1 else str(default), metadata={"gpu": gpu.name, "torch": torch.__version__})
