"""What PyTorch makes of kinora-mini-video's weights in float32, for the film pipeline's test:

    python make_golden.py ../../models/kinora-mini-video ../../tests/golden/mini_video_e2e.safetensors

Of the seeds' noise (torch's CPU generator, drawn as Open-Sora draws it), with few steps: the latents, and two frames.
"""
import contextlib
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

import films
import sampling
from networks import Autoencoder, Generator
from text import Coder

PROMPT, SEED, STEPS = "a yellow star moves from left to right on a blue background", 3, 4


def load_model(folder):
    """The generator and the autoencoder of an exported folder, and the scaling factor."""
    state = {}
    for part, files in (("transformer", "mmdit*.safetensors"), ("t5", "t5/*.safetensors"), ("clip", "clip/*.safetensors")):
        for path in sorted(folder.glob(files)):
            state |= {f"{part}.{key}": value.float() for key, value in load_file(path).items()}
    state["t5.encoder.embed_tokens.weight"] = state["t5.shared.weight"]
    generator, autoencoder = Generator(*Coder(folder).sizes()), Autoencoder()
    generator.load(state)
    autoencoder.load_state_dict({k: v.float() for k, v in load_file(folder / "hunyuan_vae.safetensors").items()})
    return generator.eval(), autoencoder.eval(), json.loads((folder / "hunyuan_vae.json").read_text())["scale_factor"]


def main(folder, out):
    defaults = json.loads((folder / "kinora.json").read_text())
    generator, autoencoder, factor = load_model(folder)
    ids = Coder(folder)([films.video_prompt(PROMPT), ""])
    side, frames = films.SIDE // 8, (films.FRAMES - 1) // 4 + 1
    noise = torch.randn(1, 16, frames, side, side, generator=torch.Generator().manual_seed(SEED)).permute(0, 2, 3, 4, 1)
    z = sampling.sample(generator, ids, contextlib.nullcontext, STEPS, defaults["guidance"], noise=noise)
    with torch.no_grad():
        film = autoencoder.decode(z / factor)[0]
    frames = ((film[[0, films.FRAMES - 1]] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    save_file({"latents": z[0].contiguous(), "frames": frames.contiguous()}, out,
              {"prompt": PROMPT, "seed": str(SEED), "steps": str(STEPS), "guidance": str(defaults["guidance"])})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
