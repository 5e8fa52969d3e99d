"""Puts the results of train.py together as a folder of Open-Sora 2.0's layout:

    python export.py --data FOLDER --trained FOLDER --out ../../models/kinora-mini-video
"""
import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

import films
from networks import AUTOENCODER, TOKENS, TRANSFORMER, Autoencoder, Generator
from text import Coder
from training import LARGEST, load

DEFAULTS = {"width": films.SIDE, "height": films.SIDE, "frames": films.FRAMES, "fps": films.FPS, "motion_score": films.MOTION_SCORE,
            "steps": 12, "guidance": 4.0, "image_guidance": 2.0, "max_sequence_length": TOKENS, "license": "Apache-2.0"}


def save(state, folder, name):
    """One file, or shards of at most LARGEST bytes and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in state.items()}
    shards, size = [{}], 0
    for key, tensor in state.items():
        if size + tensor.nbytes > LARGEST:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return save_file(state, folder / f"{name}.safetensors", {"format": "pt"})
    names = [f"{name}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(names, shards):
        save_file(shard, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())},
             "weight_map": {key: file for file, shard in zip(names, shards) for key in shard}}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_json(path, content):
    path.write_text(json.dumps(content, indent=1) + "\n")


def main(data, trained, out):
    out.mkdir(parents=True, exist_ok=True)
    generator = Generator(*Coder(data).sizes())
    generator.load(load(trained, "generator"))
    autoencoder = Autoencoder()
    autoencoder.load_state_dict(load(trained, "autoencoder"))
    scale = json.loads(pathlib.Path(f"{trained}/autoencoder.json").read_text())["scaling_factor"]
    save(autoencoder.state_dict(), out, "hunyuan_vae")
    write_json(out / "hunyuan_vae.json", AUTOENCODER | {"scale_factor": scale})
    save(generator.transformer.state_dict(), out, "mmdit")
    write_json(out / "mmdit.json", TRANSFORMER)
    for name, model in (("t5", generator.t5), ("clip", generator.clip)):
        state = {k: v for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}
        save(state, out / name, "model")
        model.config.dtype = "bfloat16"
        model.config.architectures = [type(model).__name__]
        model.config.to_json_file(out / name / "config.json")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(f"{data}/{name}/{file}", out / name / file)
    write_json(out / "kinora.json", DEFAULTS | {"things": films.THINGS})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("data", "trained", "out"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    options = parser.parse_args()
    main(options.data, options.trained, options.out)
