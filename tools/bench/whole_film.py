"""Whole films of Open-Sora 2.0 at full size, by `kinora generate --video`: seconds of each part and memory of the GPU.

    python tools/bench/whole_film.py FOLDER KINORA --opensora FOLDER [--cases 256,256-fp8,…] [--out films.json]

makes a folder of the published layout with random weights (34 GB; the file names and shapes are what count, the films are
noise), then runs each case as a user would; --cases "" only makes the folder. Cases that end in the same name before `=`
must write the same bytes: that is how streamed weights are compared with resident ones. --opensora: as for compare_gpu.py.
--tiny tries the program on the CPU.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

import torch
from safetensors.torch import save_file

import compare_gpu_film as film
import compare_gpu_vae as vae

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL, LARGE = ("--resolution", "256px", "--frames", "129"), ("--resolution", "768px", "--frames", "129")
CASES = {
    "256": (*SMALL, "--steps", "50"),
    "256-fp8": (*SMALL, "--steps", "50", "--quantize", "fp8"),
    "256-short": (*SMALL, "--steps", "4"),
    "256-short=24GB": (*SMALL, "--steps", "4", "--max-memory", "24GB"),
    "256-short=12GB": (*SMALL, "--steps", "4", "--max-memory", "12GB"),
    "256-fp8-12GB": (*SMALL, "--steps", "4", "--quantize", "fp8", "--max-memory", "12GB"),
    "768-short": (*LARGE, "--steps", "2"),
    "768-short=24GB": (*LARGE, "--steps", "2", "--max-memory", "24GB"),
    "768-fp8-20GB": (*LARGE, "--steps", "2", "--quantize", "fp8", "--max-memory", "20GB"),
}
TINY = {"tiny": ("--width", "64", "--height", "32", "--frames", "9", "--steps", "2"),
        "tiny=300MB": ("--width", "64", "--height", "32", "--frames", "9", "--steps", "2", "--max-memory", "300MB")}


def clip_l(o, tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel
    ids = {k: tokenizer[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=1290) if o.tiny else \
        dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
    config = CLIPTextConfig(**size, **ids)
    return config, film.fill(CLIPTextModel(config).to(torch.bfloat16).eval(), "cpu")


def make(o):
    """The folder of the published files; made once."""
    folder = o.folder / ("film-tiny" if o.tiny else "film")
    if (folder / "kinora.json").exists():
        return folder
    for part in ("t5", "clip"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for file in (o.tokenizers / part).glob("tokenizer*"):
            shutil.copy(file, folder / part)
    film.write_mmdit(o, folder)
    config, model = film.t5(o)
    film.write_weights(folder / "t5" / "model.safetensors",
                       {k: v for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"})
    (folder / "t5" / "config.json").write_text(json.dumps({"model_type": "t5", **config.to_dict()}))
    del model
    film.free()
    config, model = clip_l(o, json.loads((o.tokenizers / "clip" / "config.json").read_text()))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "clip" / "model.safetensors")
    (folder / "clip" / "config.json").write_text(json.dumps(config.to_dict()))
    vae.make(folder, o.tiny)
    film.free()
    (folder / "kinora.json").write_text("{}")
    return folder


class Peak:
    """The most memory in use on the GPU, of all processes, above what was in use before; polled."""

    def __enter__(self):
        self.most, self.running, self.base = 0, True, self.used()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.running = False
        self.thread.join()

    def used(self):
        try:
            return int(subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"],
                                      capture_output=True, text=True).stdout)
        except (FileNotFoundError, ValueError):
            return 0

    def watch(self):
        while self.running:
            self.most = max(self.most, self.used() - self.base)
            time.sleep(0.1)


def draw(o, folder, name, flags):
    target = o.folder / f"{name.replace('=', '-')}.{o.container}"
    command = [o.kinora, "generate", "--video", "a yellow star moves from left to right", "--model", folder, "--device",
               "cpu" if o.tiny else "cuda", *flags, "--seed", "1", "-v", "-o", target]
    start = time.perf_counter()
    with Peak() as peak:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, "KINORA_LOG": "info"})
    row = {"seconds": time.perf_counter() - start, "gpu_peak_mib": peak.most}
    if done.returncode:
        return {**row, "failed": f"status {done.returncode}: {done.stderr.strip()[-300:]}"}
    for part, seconds in re.findall(r"(encoded|denoised|decoded) in ([0-9.]+) s", done.stderr + done.stdout):
        row[part] = float(seconds)
    return {**row, "bytes": target.read_bytes()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("kinora")
    p.add_argument("--cases", default="256,256-fp8,256-short,256-short=12GB")
    p.add_argument("--container", default="mp4", help="mp4, or webp where FFmpeg's libraries are not")
    p.add_argument("--tokenizers", type=pathlib.Path, default=ROOT / "models" / "kinora-mini-video", help="a folder with t5 and clip")
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--out", type=pathlib.Path)
    film.add_options(p)
    o = p.parse_args()
    film.complete(o)
    torch.set_grad_enabled(False)
    o.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    folder, cases, rows, films = make(o), TINY if o.tiny else CASES, {}, {}
    print(f"weights made in {time.perf_counter() - start:.0f} s\n\n| film | seconds | text | transformer | autoencoder | GPU memory | |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in cases if o.tiny else filter(None, o.cases.split(",")):
        row = draw(o, folder, name, cases[name])
        content, base, note = row.pop("bytes", None), name.split("=")[0], row.get("failed", "")
        if content and base in films:
            note = row["same_bytes"] = "the same bytes" if films[base] == content else "OTHER BYTES"
        films.setdefault(base, content)
        rows[name] = row
        part = lambda key: f"{row[key]:.2f} s" if key in row else "-"
        print(f"| {name} | {row['seconds']:.1f} | {part('encoded')} | {part('denoised')} | {part('decoded')} | {row['gpu_peak_mib']} MiB | "
              f"{note} |", flush=True)
        if o.out:
            o.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
