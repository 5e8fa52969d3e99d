"""Goldens of the film autoencoders: small random modules of Open-Sora 2.0, their inputs and outputs in float32.

    git clone https://github.com/hpcaitech/Open-Sora && pip install einops omegaconf
    python tests/golden/make_video_ae.py Open-Sora tests/golden

Weights are rounded to bfloat16 and stored so; the modules run on the rounded values in float32. What Open-Sora's models
import only for training (ColossalAI, mmengine) is replaced by empty modules. Seeds are fixed; versions are in README.md.
"""
import importlib.machinery
import json
import sys
import types

import torch
from safetensors.torch import save_file


def replace(name, path=None, **members):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=path is not None)
    if path:
        module.__path__ = [path]
    for key, value in members.items():
        setattr(module, key, value)
    sys.modules[name] = module


def open_opensora(root):
    class Registry:
        def register_module(self, name):
            return lambda f: f

    for package in ("", ".models", ".models.hunyuan_vae", ".models.vae", ".models.dc_ae"):
        replace("opensora" + package, f"{root}/opensora{package.replace('.', '/')}")
    replace("opensora.registry", MODELS=Registry())
    replace("opensora.utils", f"{root}/none")
    replace("opensora.utils.ckpt", load_checkpoint=None)
    replace("opensora.acceleration", f"{root}/none")
    replace("opensora.acceleration.checkpoint", auto_grad_checkpoint=lambda f, *x: f(*x), checkpoint=None)


def randomise(module, seed, scale=0.25):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            fan = p[0].numel() if p.dim() > 1 else 1
            value = noise * (scale if p.dim() == 1 else fan**-0.5)
            p.copy_((value + (1.0 if "norm" in name and name.endswith("weight") else 0.0)).bfloat16().float())
    return module.eval()


def save(path, config, module=None, **tensors):
    out = {f"w.{k}": v.bfloat16().contiguous() for k, v in module.state_dict().items()} if module is not None else {}
    out |= {k.replace("_", ".", 1): v.contiguous() for k, v in tensors.items()}
    save_file(out, path, {"config": json.dumps(config)})
    print(path, {k: (tuple(v.shape), float(v.abs().max())) for k, v in tensors.items()})


def hunyuan(folder):
    from opensora.models.hunyuan_vae.autoencoder_kl_causal_3d import AutoEncoder3DConfig, AutoencoderKLCausal3D

    config = dict(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
                  sample_size=32, sample_tsize=16)
    model = randomise(AutoencoderKLCausal3D(AutoEncoder3DConfig(from_pretrained=None, **config)), 200)
    g = torch.Generator().manual_seed(201)
    film = lambda *size: torch.rand(1, 3, *size, generator=g) * 2 - 1
    with torch.no_grad():
        x, one, z = film(9, 32, 24), film(1, 24, 32), torch.randn(1, 4, 3, 3, 4, generator=g)
        mode, posterior = model.encode(x, sample_posterior=False, return_posterior=True)
        torch.manual_seed(7)
        noise = torch.randn(mode.shape)
        torch.manual_seed(7)
        save(f"{folder}/vae3d.safetensors", config, model, in_film=x, in_picture=one, in_latents=z, in_noise=noise,
             out_moments=posterior.parameters, out_latents=mode, out_sampled=model.encode(x),
             out_picture_latents=model.encode(one, sample_posterior=False), out_film=model.decode(z))
        model.enable_spatial_tiling()
        x, z = film(5, 40, 56), torch.randn(1, 4, 2, 5, 7, generator=g)
        spatial = dict(in_film=x, in_latents=z, out_latents=model.encode(x, sample_posterior=False), out_film=model.decode(z))
        model.enable_temporal_tiling()
        x, z = film(25, 24, 40), torch.randn(1, 4, 7, 3, 5, generator=g)
        both = dict(in_long=x, in_long_latents=z, out_long_latents=model.encode(x, sample_posterior=False),
                    out_long=model.decode(z))
        save(f"{folder}/vae3d_tiled.safetensors", config, **spatial, **both)


def flux(folder):
    from opensora.models.vae.autoencoder_2d import AutoEncoder, AutoEncoderConfig

    config = dict(ch=32, ch_mult=[2, 1], num_res_blocks=1, z_channels=4)
    model = randomise(AutoEncoder(AutoEncoderConfig(from_pretrained=None, cache_dir=None, resolution=32, in_channels=3, out_ch=3,
                                                    scale_factor=0.3611, shift_factor=0.1159, sample=False, **config)), 210)
    g = torch.Generator().manual_seed(211)
    x, z = torch.rand(2, 3, 1, 16, 24, generator=g) * 2 - 1, torch.randn(2, 4, 1, 8, 6, generator=g)
    with torch.no_grad():
        save(f"{folder}/flux_ae.safetensors", config, model, in_picture=x[:, :, 0], in_latents=z[:, :, 0],
             out_latents=model.encode(x)[:, :, 0], out_picture=model.decode(z)[:, :, 0])


def dc_ae(folder):
    from opensora.models.dc_ae.models.dc_ae import DCAE, DCAEConfig, DecoderConfig, EncoderConfig

    config = dict(width_list=[8, 16, 32, 32], encoder_depth_list=[1, 1, 1, 1], decoder_depth_list=[1, 2, 1, 1],
                  block_type=["ResBlock", "ResBlock", "EViTS5_GLU", "EViTS5_GLU"], temporal_downsample=[False, True, True, False],
                  latent_channels=8, scaling_factor=0.493, spatial_tile_size=32, temporal_tile_size=16)
    side = dict(in_channels=3, latent_channels=8, width_list=config["width_list"], block_type=config["block_type"],
                norm="rms3d", is_video=True)
    model = DCAE(DCAEConfig(
        latent_channels=8, time_compression_ratio=4, spatial_compression_ratio=8, scaling_factor=0.493, spatial_tile_size=32,
        temporal_tile_size=16,
        encoder=EncoderConfig(**side, depth_list=config["encoder_depth_list"], downsample_block_type="Conv",
                              temporal_downsample=config["temporal_downsample"]),
        decoder=DecoderConfig(**side, depth_list=config["decoder_depth_list"], upsample_block_type="InterpolateConv", act="silu",
                              out_norm="rms3d", temporal_upsample=config["temporal_downsample"])))
    model.decoder.disc_off_grad_ckpt = False
    randomise(model, 220)
    g = torch.Generator().manual_seed(221)
    film = lambda *size: torch.rand(1, 3, *size, generator=g) * 2 - 1
    latents = lambda *size: torch.randn(1, 8, *size, generator=g)
    with torch.no_grad():
        x, one, z = film(8, 32, 24), film(1, 24, 32), latents(2, 3, 4)
        z1 = latents(1, 2, 3)
        save(f"{folder}/dcae_video.safetensors", config, model, in_film=x, in_picture=one, in_latents=z, in_latents1=z1,
             out_latents=model.encode(x), out_picture_latents=model.encode(one), out_film=model.decode(z),
             out_picture=model.decode(z1))
        model.use_spatial_tiling = model.use_temporal_tiling = True
        x, z = film(20, 24, 40), latents(5, 3, 5)
        save(f"{folder}/dcae_video_tiled.safetensors", config, in_film=x, in_latents=z, out_latents=model.encode(x),
             out_film=model.decode(z))


def names(folder):
    """The names and shapes of all tensors of the published sizes."""
    from opensora.models.dc_ae.ae_model_zoo import create_dc_ae_model_cfg
    from opensora.models.dc_ae.models.dc_ae import DCAE
    from opensora.models.hunyuan_vae.autoencoder_kl_causal_3d import AutoEncoder3DConfig, AutoencoderKLCausal3D
    from opensora.models.vae.autoencoder_2d import AutoEncoder, AutoEncoderConfig

    with torch.device("meta"):
        models = dict(hunyuan=AutoencoderKLCausal3D(AutoEncoder3DConfig(from_pretrained=None)),
                      flux=AutoEncoder(AutoEncoderConfig(from_pretrained=None, cache_dir=None, resolution=256, in_channels=3,
                                                         ch=128, out_ch=3, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=16,
                                                         scale_factor=0.3611, shift_factor=0.1159)),
                      dc_ae=DCAE(create_dc_ae_model_cfg("dc-ae-f32t4c128")))
    table = {k: {name: list(t.shape) for name, t in m.state_dict().items()} for k, m in models.items()}
    with open(f"{folder}/video_ae_names.json", "w") as file:
        json.dump(table, file, separators=(",", ":"))
    print({k: sum(t.numel() for t in m.state_dict().values()) for k, m in models.items()})


if __name__ == "__main__":
    open_opensora(sys.argv[1])
    names(sys.argv[2])
    hunyuan(sys.argv[2])
    flux(sys.argv[2])
    dc_ae(sys.argv[2])
