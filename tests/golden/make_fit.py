"""Writes fit.safetensors: pictures and films cut to size as Open-Sora does it, with Pillow and torch, for
tests/io/video_test.cpp. Usage: python make_fit.py"""
import pathlib

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

g = torch.Generator().manual_seed(3)
film = torch.randint(0, 256, (2, 19, 33, 3), generator=g, dtype=torch.uint8)
out = {"in": film}
for width, height in ((16, 16), (48, 20), (24, 40), (33, 19), (17, 11)):
    h, w = film.shape[1:3]
    down, across = height / h, width / w
    wide, high = (round(w * down), height) if down > across else (width, round(h * across))
    large = np.array(Image.fromarray(film[0].numpy()).resize((wide, high), Image.BICUBIC))
    top, left = int(round((high - height) / 2.0)), int(round((wide - width) / 2.0))
    out[f"picture.{width}x{height}"] = torch.from_numpy(large[top : top + height, left : left + width].copy())
    x = torch.nn.functional.interpolate(film.permute(0, 3, 1, 2).float() / 255.0, size=(high, wide), mode="bilinear",
                                        align_corners=False)
    top, left = int(round(high - height) / 2.0), int(round(wide - width) / 2.0)
    x = (x[:, :, top : top + height, left : left + width] - 0.5) / 0.5
    out[f"film.{width}x{height}"] = x.permute(0, 2, 3, 1).contiguous()
save_file(out, pathlib.Path(__file__).parent / "fit.safetensors")
