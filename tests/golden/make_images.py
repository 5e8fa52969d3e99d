"""Writes images.safetensors: Pillow's Lanczos resizing, for tests/io/image_test.cpp. Usage: python make_images.py"""
import pathlib

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

picture = np.random.default_rng(2).integers(0, 256, (23, 37, 3), dtype=np.uint8)
out = {"in": picture}
for width, height in ((16, 16), (64, 50), (37, 10), (5, 23)):
    out[f"{width}x{height}"] = np.asarray(Image.fromarray(picture).resize((width, height), Image.LANCZOS))
save_file(out, pathlib.Path(__file__).parent / "images.safetensors")
