"""What diffusers draws with kinora-mini on given noise, in float32 on the CPU, for the pipeline test:

    python make_golden.py models/kinora-mini tests/golden/mini_e2e.safetensors
"""
import sys

import torch
from diffusers import SanaPipeline
from safetensors.torch import save_file

PROMPT = "a red apple left of a yellow star on a blue background"


def main(model, out):
    pipeline = SanaPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.text_encoder.set_attn_implementation("eager")  # the one that applies Gemma-2's soft-cap
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    arguments = dict(num_inference_steps=16, guidance_scale=3.5, height=256, width=256, max_sequence_length=48,
                     complex_human_instruction=None, use_resolution_binning=False)
    latents = pipeline(PROMPT, latents=noise, output_type="latent", **arguments).images
    picture = pipeline(PROMPT, latents=noise, output_type="pt", **arguments).images
    embeds, mask, _, _ = pipeline.encode_prompt(PROMPT, False, max_sequence_length=48)
    save_file({"noise": noise, "latents": latents, "picture": (picture * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(),
               "embeds": embeds.contiguous(), "mask": mask.float().contiguous()}, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
