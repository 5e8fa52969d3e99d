"""What both stages of train.py need: processes, time, logs and files."""
import math
import os
import pathlib
import time

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

LARGEST = 15 << 20  # bytes of a file


class Group:
    """The processes that train together, each with a GPU of its own."""

    def __init__(self, device):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if device == "cuda" else torch.device("cpu")
        if device == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")

    def mean_gradients(self, parameters):
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        at = 0
        for g in gradients:
            g.copy_(flat[at:at + g.numel()].view_as(g))
            at += g.numel()

    def same(self, value):
        """Rank 0's number, on every rank."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return tensor.item()

    def share(self, module):
        for tensor in list(module.parameters()) + list(module.buffers()) if self.size > 1 else []:
            dist.broadcast(tensor.data, 0)


class Clock:
    """Time spent, as rank 0 sees it, and the learning rate: a short warm-up, then a cosine to almost zero."""

    def __init__(self, group, minutes, peak, warmup):
        self.group, self.begin, self.seconds, self.peak, self.warmup = group, time.time(), minutes * 60, peak, warmup
        self.step, self.part, self.due = 0, 0.0, {}

    def tick(self):
        """Once a step; asks rank 0 now and then only, as asking waits for the GPU."""
        self.step += 1
        if self.step % 5 == 1 or self.step < 10:
            self.part = self.group.same(min((time.time() - self.begin) / self.seconds, 1))
        return self.peak * min(self.step / self.warmup, 1) * max(0.5 * (1 + math.cos(math.pi * self.part)), 0.01)

    def every(self, name, seconds):
        """True when so many seconds have passed since it last was (on each rank at the same step)."""
        now = self.part * self.seconds
        due = now - self.due.get(name, 0) >= seconds
        if due:
            self.due[name] = now
        return due

    def spent(self):
        return f"step {self.step} {time.time() - self.begin:.0f}s"


class Log:
    def __init__(self, args, group):
        self.file = open(f"{args.out}/{args.stage}.log", "a") if group.rank == 0 else None

    def __call__(self, *words):
        if self.file:
            print(*words, flush=True)
            print(*words, flush=True, file=self.file)


def save(module, folder, name):
    """In bfloat16, in files of at most LARGEST bytes: NAME.safetensors, NAME.2.safetensors ..."""
    parts, size = [{}], 0
    for key, value in module.state_dict().items():
        tensor = value.detach().to("cpu", torch.bfloat16 if value.is_floating_point() else value.dtype).clone().contiguous()
        if size + tensor.nbytes > LARGEST:
            parts.append({})
            size = 0
        parts[-1][key] = tensor
        size += tensor.nbytes
    for i, part in enumerate(parts):
        path = pathlib.Path(folder) / (f"{name}.{i + 1}.safetensors" if i else f"{name}.safetensors")
        save_file(part, f"{path}.tmp")
        pathlib.Path(f"{path}.tmp").rename(path)


def load(folder, name):
    state = {}
    for path in sorted(pathlib.Path(folder).glob(f"{name}*.safetensors")):
        state |= load_file(path)
    if not state:
        raise SystemExit(f"there is no {name}.safetensors in {folder}")
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


@torch.no_grad()
def follow(ema, model, step, decay):
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - d)


def to_bytes(film):
    return ((film.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def write_sheet(path, rows):
    """Films [frames, h, w, 3], one a row, every fourth frame."""
    from PIL import Image

    Image.fromarray(torch.cat([torch.cat(list(to_bytes(film[::4])), 1) for film in rows], 0).numpy()).save(path)


def psnr(a, b):
    return float(-10 * torch.log10(((a.float() - b.float()) / 2).square().mean().clamp(min=1e-9)))
