"""Puts the results of train.py together as a diffusers folder: python export.py --trained FOLDER --out models/kinora-mini"""
import argparse
import json
import pathlib

import torch
from diffusers import DPMSolverMultistepScheduler, SanaPipeline
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

import data
from models import TOKENS, make_autoencoder, make_text_encoder, make_transformer
from train import Generator

DEFAULTS = {"width": 256, "height": 256, "steps": 16, "guidance": 3.5, "max_sequence_length": TOKENS,
            "complex_human_instruction": False, "use_resolution_binning": False, "license": "Apache-2.0"}


def main(trained, out):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(f"{trained}/tokenizer")
    generator = Generator(len(tokenizer))
    generator.load_state_dict(load_file(f"{trained}/generator.safetensors"))
    autoencoder = make_autoencoder()
    autoencoder.load_state_dict(load_file(f"{trained}/autoencoder.safetensors"))
    autoencoder.register_to_config(scaling_factor=float(pathlib.Path(f"{trained}/scaling_factor.txt").read_text()))
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)
    pipeline = SanaPipeline(tokenizer, generator.text_encoder.bfloat16(), autoencoder.bfloat16(), generator.transformer.bfloat16(), scheduler)
    pipeline.save_pretrained(out, max_shard_size="15MB")
    # transformers 5 names a class of its own; every version knows this one.
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):
        path = pathlib.Path(out) / name
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    (pathlib.Path(out) / "kinora.json").write_text(json.dumps(DEFAULTS | {"things": data.thing_names()}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trained", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    main(options.trained, options.out)
