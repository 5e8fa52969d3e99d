"""Trains kinora-mini in three stages on one GPU, each for a given time:

    python train.py autoencoder --data FOLDER --seconds 420 --out FOLDER
    python train.py classifier  --data FOLDER --seconds 420 --out FOLDER     (may run beside the first)
    python train.py diffusion   --data FOLDER --seconds 560 --out FOLDER     (needs FOLDER/autoencoder.safetensors)

Every stage writes its result to FOLDER every minute, so stopping early loses nothing; --resume continues from it.
"""
import argparse
import copy
import math
import pathlib
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import data
from classifier import Classifier
from models import TOKENS, make_autoencoder, make_text_encoder, make_tokenizer, make_transformer, seed_everything


class Scenes(torch.utils.data.IterableDataset):
    """Endless batches of (token ids, mask, things, background colour, labels), made by worker processes."""

    def __init__(self, names, batch, tokenizer=None, drop=0.0):
        self.names, self.batch, self.tokenizer, self.drop = names, batch, tokenizer, drop
        self.index = {name: i for i, name in enumerate(names)}

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        rng = random.Random(info.seed if info else 0)
        while True:
            prompts, things, colours = [], [], []
            for _ in range(self.batch):
                text, placed, background, _ = data.scene(rng, self.names)
                prompts.append("" if rng.random() < self.drop else text)
                things.append(data.jittered(rng, [(self.index[n], x, y, s) for n, x, y, s in placed]))
                shade = rng.uniform(-0.03, 0.03)
                colours.append([min(max(c / 255 + shade, 0), 1) for c in data.BACKGROUNDS[background]])
            out = {"things": torch.from_numpy(np.stack(things)), "colours": torch.tensor(colours)}
            if self.tokenizer:
                coded = self.tokenizer(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
                out |= {"ids": coded.input_ids, "mask": coded.attention_mask}
            yield out


def loader(scenes, workers, seed):
    generator = torch.Generator().manual_seed(seed)
    return iter(torch.utils.data.DataLoader(scenes, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None,
                                            generator=generator, pin_memory=True))


class Clock:
    """Learning rate by time spent: a short warm-up, then a cosine to zero. Also says when to save and stop."""

    def __init__(self, seconds, peak):
        self.begin, self.seconds, self.peak, self.saved, self.step = time.time(), seconds, peak, time.time(), 0

    def part(self):
        return min((time.time() - self.begin) / self.seconds, 1)

    def rate(self):
        self.step += 1
        return self.peak * min(self.step / 200, 1) * max(0.5 * (1 + math.cos(math.pi * self.part())), 0.01)

    def save_now(self):
        due = time.time() - self.saved > 60 or self.part() >= 1
        if due:
            self.saved = time.time()
        return due


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def save(module, path):
    state = {k: v.detach().to("cpu", torch.bfloat16 if v.is_floating_point() else v.dtype).contiguous() for k, v in module.state_dict().items()}
    save_file(state, f"{path}.tmp")
    pathlib.Path(f"{path}.tmp").rename(path)


def picture_loss(y, x):
    """L1 on the picture, on its edges and on smaller versions of it."""
    loss = (y - x).abs().mean()
    loss = loss + (y.diff(dim=2) - x.diff(dim=2)).abs().mean() + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
    for factor in (2, 4, 8):
        loss = loss + 0.5 * (F.avg_pool2d(y, factor) - F.avg_pool2d(x, factor)).abs().mean()
    return loss


def train_autoencoder(args):
    names, bank = data.load_things(args.data, args.device)
    model = make_autoencoder()
    if args.resume:
        model.load_state_dict(load_file(f"{args.out}/autoencoder.safetensors"))
    model = model.to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=args.device == "cuda")
    ema, clock, batches = copy.deepcopy(model), Clock(args.seconds, 1.5e-3), loader(Scenes(names, args.batch), args.workers, 1 + args.resume)
    while clock.part() < 1:
        set_rate(optimizer, clock.rate())
        batch = {k: v.to(args.device, non_blocking=True) for k, v in next(batches).items()}
        x = data.compose(bank, batch["things"], batch["colours"])
        if clock.part() < 0.85:  # windows around a thing teach more than plain background; whole pictures finish
            x = windows(x, batch["things"][:, 0, 1:3])
        elif args.batch > 48:
            x = x[:48]
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(args.device, torch.bfloat16):
            z = model.encode(x, return_dict=False)[0].float()
            # A little noise makes the decoder forgive what the diffusion gets slightly wrong.
            noisy = z + torch.randn_like(z) * z.std().detach() * 0.06 * torch.rand(len(z), 1, 1, 1, device=z.device)
            y = model.decode(noisy, return_dict=False)[0].float()
        loss = picture_loss(y, x) + 1e-3 * z.pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        follow(ema, model, clock.step)
        if clock.step % 100 == 1:
            print(f"autoencoder {clock.step} {time.time() - clock.begin:.0f}s loss {loss.item():.4f} l1 {(y - x).abs().mean().item():.4f} "
                  f"std {z.std().item():.3f}", flush=True)
        if clock.save_now():
            save(ema, f"{args.out}/autoencoder.safetensors")
            pathlib.Path(f"{args.out}/scaling_factor.txt").write_text(str(1 / z.std().item()))


def windows(x, centres, side=128):
    """From each picture a square window that holds most of the thing at its centre (x, y)."""
    corner = (centres - side / 2 + torch.empty_like(centres).uniform_(-40, 40)).clamp(0, data.SIZE - side).long().tolist()
    return torch.stack([picture[:, top:top + side, left:left + side] for picture, (left, top) in zip(x, corner)])


@torch.no_grad()
def follow(ema, model, step, decay=0.999):
    """ema <- d·ema + (1 - d)·model, with a faster d at first."""
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - d)


def train_classifier(args):
    names, bank = data.load_things(args.data, args.device)
    model = Classifier(len(names)).to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    clock, batches = Clock(args.seconds, 2e-3), loader(Scenes(names, args.batch), args.workers, 2)
    while clock.part() < 1:
        set_rate(optimizer, clock.rate())
        batch = {k: v.to(args.device, non_blocking=True) for k, v in next(batches).items()}
        x = data.compose(bank, batch["things"], batch["colours"])
        # Blur and noise stand for what an autoencoder does to a picture.
        if random.random() < 0.5:
            x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        x = x + torch.randn_like(x) * random.uniform(0, 0.1)
        index = batch["things"][:, :, 0].long()
        target = torch.zeros(len(x), len(names) + 1, device=args.device).scatter_(1, torch.where(index < 0, len(names), index), 1)[:, :-1]
        with torch.autocast(args.device, torch.bfloat16):
            logits = model(x.contiguous(memory_format=torch.channels_last)).float()
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(8.0, device=args.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if clock.step % 100 == 1:
            found = (logits[target > 0] > 0).float().mean().item()
            false = (logits[target == 0] > 0).float().sum().item() / len(x)
            print(f"classifier {clock.step} {time.time() - clock.begin:.0f}s loss {loss.item():.5f} found {found:.4f} false/picture {false:.3f}", flush=True)
        if clock.save_now():
            save(model, f"{args.out}/classifier.safetensors")


class Generator(torch.nn.Module):
    """Text encoder and transformer, trained together."""

    def __init__(self, vocabulary):
        super().__init__()
        self.text_encoder = make_text_encoder(vocabulary)
        self.transformer = make_transformer()

    def forward(self, x, timestep, ids, mask):
        caption = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        return self.transformer(x, encoder_hidden_states=caption, timestep=timestep, encoder_attention_mask=mask, return_dict=False)[0]


def load_autoencoder(args):
    model = make_autoencoder()
    model.load_state_dict(load_file(f"{args.out}/autoencoder.safetensors"))
    factor = float(pathlib.Path(f"{args.out}/scaling_factor.txt").read_text())
    return model.to(args.device, torch.bfloat16, memory_format=torch.channels_last).eval(), factor


def diffusion_loss(model, clean, batch, args):
    noise = torch.randn_like(clean)
    sigma = torch.sigmoid(torch.randn(len(clean), device=clean.device))
    sigma = args.shift * sigma / (1 + (args.shift - 1) * sigma)
    s = sigma[:, None, None, None]
    with torch.autocast(args.device, torch.bfloat16):
        velocity = model((1 - s) * clean + s * noise, sigma * 1000, batch["ids"], batch["mask"])
    return F.mse_loss(velocity.float(), noise - clean)


def train_diffusion(args):
    names, bank = data.load_things(args.data, args.device)
    rng = random.Random(0)
    tokenizer = make_tokenizer([data.scene(rng, names)[0] for _ in range(60000)])
    tokenizer.save_pretrained(f"{args.out}/tokenizer")
    autoencoder, factor = load_autoencoder(args)
    model = Generator(len(tokenizer)).to(args.device)
    if args.resume:
        model.load_state_dict(load_file(f"{args.out}/generator.safetensors"))
    ema = copy.deepcopy(model)
    step_model = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=args.device == "cuda")
    clock, batches = Clock(args.seconds, args.rate), loader(Scenes(names, args.batch, tokenizer, drop=0.1), args.workers, 3 + args.resume)
    while clock.part() < 1:
        set_rate(optimizer, clock.rate())
        batch = {k: v.to(args.device, non_blocking=True) for k, v in next(batches).items()}
        with torch.no_grad():
            x = data.compose(bank, batch["things"], batch["colours"]).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
            clean = autoencoder.encode(x, return_dict=False)[0].float() * factor
        for _ in range(args.reuse):  # composing and encoding cost as much as a step, so each batch serves several
            loss = diffusion_loss(step_model, clean, batch, args)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            follow(ema, model, clock.step, 0.9995)
        if clock.step % 100 == 1:
            print(f"diffusion {clock.step} {time.time() - clock.begin:.0f}s loss {loss.item():.4f}", flush=True)
        if clock.save_now():
            save(ema, f"{args.out}/generator.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=["autoencoder", "classifier", "diffusion"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--shift", type=float, default=2.0)
    parser.add_argument("--reuse", type=int, default=3)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    pathlib.Path(options.out).mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    seed_everything(0)
    {"autoencoder": train_autoencoder, "classifier": train_classifier, "diffusion": train_diffusion}[options.stage](options)
