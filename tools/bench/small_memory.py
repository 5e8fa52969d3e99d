"""How much memory a Sana-Sprint 0.6B picture needs with quantized weights: random weights of the published shapes.

    python small_memory.py FOLDER [--kinora PROGRAM] [--formats nvfp4,int8] [--size 1024] [--layers 26]

Makes FOLDER/bf16 once (6 GB: transformer, DC-AE, Gemma-2 2B; names and shapes come from diffusers and transformers, which
are needed for that), quantizes it into FOLDER/<format>, draws a picture of two steps with each, and prints the largest
resident set of the process (mapped files included).
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve()
ROOT = HERE.parents[2]


def write_random(path, model):
    """All weights of a model on the meta device as bfloat16, from one buffer of random numbers."""
    import numpy as np
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    noise = (np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * 0.02).view(np.uint32)
    noise = (noise >> 16).astype(np.uint16)
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = int(np.prod(shape, dtype=np.int64))
            while left:
                part = min(left, len(noise))
                file.write(noise[:part].tobytes())
                left -= part


def make(folder, layers):
    import shutil
    import torch
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    channels, scales = (128, 256, 512, 512, 1024, 1024), ((), (), (), (5,), (5,), (5,))
    with torch.device("meta"):
        transformer = SanaTransformer2DModel(
            in_channels=32, out_channels=32, num_attention_heads=36, attention_head_dim=32, num_layers=28, num_cross_attention_heads=16,
            cross_attention_head_dim=72, cross_attention_dim=1152, caption_channels=2304, mlp_ratio=2.5, sample_size=32, patch_size=1,
            qk_norm="rms_norm_across_heads", guidance_embeds=True)
        vae = AutoencoderDC(
            latent_channels=32, encoder_block_types=blocks, decoder_block_types=blocks, encoder_block_out_channels=channels,
            decoder_block_out_channels=channels, encoder_layers_per_block=(2, 2, 2, 3, 3, 3), decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
            encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales, downsample_block_type="Conv",
            upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407)
        text = Gemma2Model(Gemma2Config(vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=layers,
                                        num_attention_heads=8, num_key_value_heads=4, head_dim=256))
    for name, model, base in (("transformer", transformer, "diffusion_pytorch_model"), ("vae", vae, "diffusion_pytorch_model"),
                              ("text_encoder", text, "model")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        config = dict(model.config) if name != "text_encoder" else model.config.to_dict()
        if name != "text_encoder":
            config["_class_name"] = type(model).__name__
        (folder / name / "config.json").write_text(json.dumps(config, default=str))
        write_random(folder / name / f"{base}.safetensors", model)
    shutil.copytree(ROOT / "models/kinora-mini/tokenizer", folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(
        json.dumps({"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5}))
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "SanaSprintPipeline", "scheduler": ["diffusers", "SCMScheduler"], "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizerFast"], "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"]}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kinora", default=ROOT / "build/kinora")
    parser.add_argument("--formats", default="nvfp4,int8")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=26, help="of the text encoder")
    arguments = parser.parse_args()
    if not (arguments.folder / "bf16/model_index.json").exists():
        make(arguments.folder / "bf16", arguments.layers)
    for form in arguments.formats.split(","):
        folder = arguments.folder / form
        if not folder.exists():
            made = subprocess.run([arguments.kinora, "quantize", arguments.folder / "bf16", "--to", form, "-o", folder, "--quiet"], text=True,
                                  capture_output=True)
            print(made.stdout or made.stderr, end="", flush=True)
        drawn = subprocess.run([arguments.kinora, "generate", "a cat", "--model", folder, "--steps", "2", "-W", str(arguments.size), "-H",
                                str(arguments.size), "-o", arguments.folder / f"{form}.png", "-v", "--quiet"], text=True, capture_output=True)
        found = re.search(r"at most (\d+) MiB", drawn.stderr)
        if not found:
            sys.exit(drawn.stderr)
        print(f"{form}: {arguments.size}x{arguments.size}, at most {found[1]} MiB of memory", flush=True)


if __name__ == "__main__":
    main()
