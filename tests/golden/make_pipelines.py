"""Writes tiny_sprint/, a Sana-Sprint folder with random weights, and pipelines.safetensors: what diffusers makes of it, for
tests/diffusion/pipeline_test.cpp. Usage: python make_pipelines.py FOLDER_WITH_A_TOKENIZER"""
import pathlib
import shutil
import sys

import numpy as np
import torch
from diffusers import (AutoencoderDC, SanaSprintImg2ImgPipeline, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler)
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

HERE = pathlib.Path(__file__).parent
PROMPT = "  A Red Apple, by Candlelight "


def build(tokenizer):
    torch.manual_seed(5)
    transformer = SanaTransformer2DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=24, mlp_ratio=2.5, sample_size=4, patch_size=1,
        qk_norm="rms_norm_across_heads", guidance_embeds=True, guidance_embeds_scale=0.1)
    vae = AutoencoderDC(
        latent_channels=8, attention_head_dim=8, encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 16), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)), upsample_block_type="interpolate",
        downsample_block_type="Conv", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407)
    text = Gemma2Model(Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, query_pre_attn_scalar=12, sliding_window=64, attn_implementation="eager"))
    for model in (transformer, vae, text):
        for name, p in model.named_parameters():
            if "scale_shift_table" in name or p.dim() < 2:
                torch.nn.init.normal_(p, 0.0, 0.2)
    return text.eval(), vae.eval(), transformer.eval()


@torch.no_grad()
def main(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text, vae, transformer = build(tokenizer)
    scheduler = SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    pipeline = SanaSprintPipeline(tokenizer, text, vae, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    shutil.rmtree(HERE / "tiny_sprint", ignore_errors=True)
    pipeline.save_pretrained(HERE / "tiny_sprint")
    shutil.rmtree(HERE / "tiny_sprint" / "tokenizer")  # the test uses kinora-mini's
    side = 4 * (2 ** (len(vae.config.encoder_block_out_channels) - 1))
    out = {}
    embeds, mask = pipeline.encode_prompt(PROMPT, complex_human_instruction=INSTRUCTION)
    out["embeds"], out["mask"] = embeds, mask.float()
    common = dict(height=2 * side, width=2 * side, use_resolution_binning=False, output_type="latent")
    for steps in (1, 2, 4):
        arguments = dict(common, num_inference_steps=steps, guidance_scale=4.5)
        if steps != 2:
            arguments["intermediate_timesteps"] = None
        noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(3))
        out["noise"] = noise.clone()
        generator = torch.Generator().manual_seed(3)
        out[f"sprint{steps}"] = pipeline(PROMPT, generator=generator, **arguments).images
    picture = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2 * side, 2 * side, 3), dtype=np.uint8))
    out["picture"] = picture[None]
    other = SanaSprintImg2ImgPipeline(tokenizer, text, vae, transformer, SCMScheduler(prediction_type="trigflow", sigma_data=0.5))
    other.set_progress_bar_config(disable=True)
    for strength in (0.5, 0.75):
        out[f"img2img{strength}"] = other(
            PROMPT, image=Image.fromarray(picture.numpy()), strength=strength, num_inference_steps=4, intermediate_timesteps=None,
            generator=torch.Generator().manual_seed(3), guidance_scale=4.5, **common).images
    save_file({k: v.contiguous() for k, v in out.items()}, HERE / "pipelines.safetensors")


if __name__ == "__main__":
    import inspect
    INSTRUCTION = inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default
    main(sys.argv[1])
