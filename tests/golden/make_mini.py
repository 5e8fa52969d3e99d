"""More of what diffusers makes of kinora-mini, for tests/diffusion/pipeline_test.cpp, as latents in float32 on the CPU: two
pictures at once with a negative prompt, the Euler sampler, and image to image, for which diffusers has the scheduler's and
the autoencoder's parts but no pipeline of Sana's. Usage: python tests/golden/make_mini.py models/kinora-mini tests/golden
"""
import sys

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from safetensors.torch import save_file

PROMPT, NEGATIVE = "a red apple left of a yellow star on a blue background", "a cat"


@torch.no_grad()
def image_to_image(pipeline, picture, strength, steps, guidance, seed):
    """StableDiffusion3Img2ImgPipeline's steps with Sana's parts."""
    scheduler, vae = pipeline.scheduler, pipeline.vae
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    clean = vae.encode(x).latent * vae.config.scaling_factor
    scheduler.set_timesteps(steps)
    first = int(max(steps - min(steps * strength, steps), 0))
    scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    latents = scheduler.add_noise(clean, noise, timesteps[:1])
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(PROMPT, True, negative_prompt=NEGATIVE, max_sequence_length=48)
    for t in timesteps:
        v = pipeline.transformer(torch.cat([latents] * 2), encoder_hidden_states=torch.cat([negative, embeds]),
                                 encoder_attention_mask=torch.cat([negative_mask, mask]), timestep=t.expand(2), return_dict=False)[0]
        plain, prompted = v.chunk(2)
        latents = scheduler.step(plain + guidance * (prompted - plain), t, latents, return_dict=False)[0]
    return latents


def main(model, folder):
    pipeline = SanaPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.text_encoder.set_attn_implementation("eager")
    pipeline.set_progress_bar_config(disable=True)
    arguments = dict(negative_prompt=NEGATIVE, num_inference_steps=3, guidance_scale=2.5, max_sequence_length=48,
                     complex_human_instruction=None, use_resolution_binning=False, output_type="latent")
    out = {}
    generators = [torch.Generator().manual_seed(s) for s in (5, 6)]
    out["two"] = pipeline(PROMPT, num_images_per_prompt=2, height=128, width=192, generator=generators, **arguments).images
    picture = np.random.default_rng(3).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    out["picture"] = torch.from_numpy(picture)
    out["img2img0.5"] = image_to_image(pipeline, picture, 0.5, 6, 2.5, 9)
    out["img2img0.8"] = image_to_image(pipeline, picture, 0.8, 4, 2.5, 9)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=pipeline.scheduler.config.flow_shift)
    out["euler"] = pipeline(PROMPT, height=64, width=64, generator=torch.Generator().manual_seed(7), **arguments).images
    save_file({k: v.contiguous() for k, v in out.items()}, f"{folder}/mini_more.safetensors")
    print({k: tuple(v.shape) for k, v in out.items()})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
