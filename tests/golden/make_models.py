"""Goldens of the models: small random modules of diffusers and transformers, their inputs and outputs in float32.

    python tests/golden/make_models.py tests/golden

Each file holds the weights ("w." + checkpoint name), the inputs ("in."), the outputs ("out.") and, in its metadata, the
module's config as JSON. Seeds are fixed; versions are in README.md.
"""
import json
import sys

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2Model


def randomise(module, seed, scale=0.25):
    """Gives every parameter and buffer a value that is neither zero nor one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            fan = p[0].numel() if p.dim() > 1 else 1
            p.copy_(noise * (scale if p.dim() == 1 else fan**-0.5) + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        for name, b in module.named_buffers():
            if "running_mean" in name:
                b.copy_(torch.randn(b.shape, generator=g) * scale)
            if "running_var" in name:
                b.copy_(torch.rand(b.shape, generator=g) + 0.5)
    return module.eval()


def save(folder, name, module, config, inputs, outputs):
    tensors = {f"w.{k}": v.contiguous() for k, v in module.state_dict().items() if "num_batches" not in k}
    tensors |= {f"in.{k}": v.contiguous() for k, v in inputs.items()}
    tensors |= {f"out.{k}": v.contiguous() for k, v in outputs.items()}
    save_file(tensors, f"{folder}/{name}.safetensors", {"config": json.dumps(config)})
    print(name, {k: tuple(v.shape) for k, v in outputs.items()}, {k: float(v.abs().max()) for k, v in outputs.items()})


SANA = dict(in_channels=8, out_channels=8, num_attention_heads=3, attention_head_dim=32, num_layers=2,
            num_cross_attention_heads=2, cross_attention_head_dim=48, cross_attention_dim=96, caption_channels=40,
            mlp_ratio=2.5, sample_size=8)


def sana(folder, name, seed, height=6, width=5, **extra):
    config = SANA | extra
    model = randomise(SanaTransformer2DModel(**config), seed)
    g = torch.Generator().manual_seed(seed + 1)
    latents = torch.randn(2, 8, height, width, generator=g)
    caption = torch.randn(2, 7, 40, generator=g)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
    timestep = torch.tensor([999.0, 136.0]) if not config.get("guidance_embeds") else torch.tensor([0.98, 0.31])
    guidance = torch.tensor([0.45, 0.45]) if config.get("guidance_embeds") else None
    with torch.no_grad():
        out = model(latents, encoder_hidden_states=caption, timestep=timestep, guidance=guidance,
                    encoder_attention_mask=mask, return_dict=False)[0]
    inputs = dict(latents=latents, caption=caption, mask=mask.float(), timestep=timestep)
    if guidance is not None:
        inputs["guidance"] = guidance
    save(folder, name, model, config, inputs, dict(sample=out))


def sana_fp16(folder, name, seed):
    """Weights in float16, and linear attention's output so large that float16's range clamps it."""
    model = randomise(SanaTransformer2DModel(**SANA), seed)
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.attn1.to_out[0].weight *= 1.5e5
            block.scale_shift_table *= 0.1
        model.time_embed.linear.weight *= 0.1
        model.time_embed.linear.bias *= 0.1
    model = model.half()
    g = torch.Generator().manual_seed(seed + 1)
    latents, caption = torch.randn(2, 8, 6, 5, generator=g), torch.randn(2, 7, 40, generator=g)
    mask, timestep = torch.ones(2, 7), torch.tensor([999.0, 136.0])
    with torch.no_grad():
        out = model(latents.half(), encoder_hidden_states=caption.half(), timestep=timestep, encoder_attention_mask=mask.long(),
                    return_dict=False)[0]
    save(folder, name, model, SANA, dict(latents=latents, caption=caption, mask=mask, timestep=timestep), dict(sample=out.float()))


DCAE = dict(in_channels=3, latent_channels=4, attention_head_dim=8, encoder_block_out_channels=(8, 16, 16),
            decoder_block_out_channels=(8, 16, 16), encoder_layers_per_block=(1, 1, 2), decoder_layers_per_block=(1, 2, 1),
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
            encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (3, 5), ()),
            upsample_block_type="interpolate", downsample_block_type="Conv", scaling_factor=0.41407)


def dcae(folder, name, seed, height=24, width=20, tile=None, **extra):
    config = DCAE | extra
    model = randomise(AutoencoderDC(**config), seed)
    if tile:
        model.enable_tiling(tile, tile, tile * 3 // 4, tile * 3 // 4)
    g = torch.Generator().manual_seed(seed + 1)
    ratio = model.spatial_compression_ratio
    picture = torch.rand(1, 3, height, width, generator=g) * 2 - 1
    latents = torch.randn(1, config["latent_channels"], height // ratio, width // ratio, generator=g)
    with torch.no_grad():
        outputs = dict(latents=model.encode(picture, return_dict=False)[0], picture=model.decode(latents, return_dict=False)[0])
    save(folder, name, model, config | ({"tile": tile} if tile else {}), dict(picture=picture, latents=latents), outputs)


def gemma2(folder, name, seed, softcap):
    config = dict(vocab_size=80, hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=16, sliding_window=5, query_pre_attn_scalar=24, attn_logit_softcapping=softcap,
                  rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh", max_position_embeddings=64)
    model = randomise(Gemma2Model(Gemma2Config(**config, attn_implementation="eager")), seed)
    g = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(4, 80, (2, 13), generator=g)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1, 8:] = 0
    with torch.no_grad():
        hidden = model(ids, attention_mask=mask).last_hidden_state
    # What stands at padding is no result: only kept tokens are compared.
    save(folder, name, model, config, dict(ids=ids.int(), mask=mask.float()), dict(hidden=hidden * mask[..., None]))


def main(folder):
    sana(folder, "sana_base", 10)
    sana(folder, "sana_qk_norm", 20, qk_norm="rms_norm_across_heads", attention_bias=True)
    sana(folder, "sana_sprint", 30, qk_norm="rms_norm_across_heads", guidance_embeds=True, guidance_embeds_scale=0.1)
    sana(folder, "sana_positions", 40, interpolation_scale=2.0, timestep_scale=0.5)
    sana(folder, "sana_patch2", 50, height=8, width=12, patch_size=2, interpolation_scale=1.0)
    sana_fp16(folder, "sana_fp16", 55)
    dcae(folder, "dcae_published", 60)
    dcae(folder, "dcae_shuffle", 70, upsample_block_type="pixel_shuffle", downsample_block_type="pixel_unshuffle",
         decoder_norm_types=("batch_norm", "rms_norm", "batch_norm"), decoder_act_fns=("relu", "silu", "silu"),
         encoder_out_shortcut=False, decoder_in_shortcut=False, decoder_conv_act_fn="silu")
    dcae(folder, "dcae_small", 80, height=8, width=8)  # few latents: the quadratic attention
    dcae(folder, "dcae_lite", 90, encoder_layers_per_block=(0, 1, 1), decoder_layers_per_block=(0, 1, 1),
         encoder_block_out_channels=(8, 16, 32), decoder_block_out_channels=(8, 16, 32))
    dcae(folder, "dcae_tiled", 100, height=40, width=56, tile=32)
    gemma2(folder, "gemma2_softcap", 110, 50.0)
    gemma2(folder, "gemma2_plain", 120, None)


if __name__ == "__main__":
    main(sys.argv[1])
