"""Films from prompts as Open-Sora 2.0 samples them, for judging a model while it is trained (the program does the same)."""
import math

import torch
import torch.nn.functional as F

import films
from networks import AUTOENCODER, TRANSFORMER, pack, rope_tables, unpack


def flow_shift(tokens_per_frame, latent_frames):
    slope = 2 / (4096 - 256)
    return (slope * (tokens_per_frame - 256) + 1) * math.sqrt(latent_frames)


def guidance_at(step, steps, strength, image_strength, latent_frames, pictures):
    """Guidance by text and, for each latent frame, by picture: none on every other step from the eleventh on."""
    guided = step < 10 or step % 2 == 0
    text, image = (strength, image_strength) if guided else (1.0, 1.0)
    if image > 1 and pictures:
        last = image + (1 - image) * step / steps
        return text, torch.linspace(1, last, latent_frames)
    return text, torch.full((latent_frames,), float(image))


@torch.no_grad()
def sample(model, ids, autocast, steps=12, guidance=4.0, image_guidance=1.0, seed=0, first=None, noise=None):
    """ids: of T5 and of CLIP, one row a prompt and last the negative prompt's; first [prompts, 1, h, w, 16]: the scaled latents
    of pictures to begin with; noise [prompts, t, h, w, 16] if not of the seed -> scaled latents [prompts, t, h, w, 16]."""
    t, side, channels = (films.FRAMES - 1) // 4 + 1, films.SIDE // 8, AUTOENCODER["latent_channels"]
    count, device = len(ids[0]) - 1, ids[0].device
    if noise is None:
        noise = torch.randn(count, t, side, side, channels, generator=torch.Generator().manual_seed(seed))
    x = pack(noise.to(device))
    mask = torch.zeros(count, t, side, side, channels + 1, device=device)
    nothing = pack(mask)
    if first is not None:
        mask[:, :1] = F.pad(first, (1, 0), value=1.0)
    condition = pack(mask)
    tables = rope_tables(TRANSFORMER, ids[0].shape[1], t, side // 2, side // 2, device)
    shift, u = flow_shift(side * side // 4, t), torch.linspace(1, 0, steps + 1)
    levels = (shift * u / (1 + (shift - 1) * u)).tolist()
    with autocast():
        hidden, pooled = model.encode(*ids)
        negative = [v[-1:].expand(count, *v.shape[1:]) for v in (hidden, pooled)]

        def predict(text, given, level):
            return model.transformer(x, given, *text, torch.full((count,), level, device=device), tables).float()

        for i in range(steps):
            text, image = guidance_at(i, steps, guidance, image_guidance, t, first is not None)
            image = image.to(device).repeat_interleave(side * side // 4)[:, None]
            v = predict((hidden[:-1], pooled[:-1]), condition, levels[i])
            pictured = first is not None and bool((image != 1).any())
            if text != 1 or pictured:
                plain = predict(negative, condition, levels[i])
                v = v + (text - 1) * (v - plain)
                if pictured:
                    v = v + (image - 1) * (plain - predict(negative, nothing, levels[i]))
            x = x + (levels[i + 1] - levels[i]) * v
    z = unpack(x, t, side, side)
    if first is not None:
        z[:, :1] = first
    return z
