"""Goldens of the video transformer: small random models of Open-Sora's own code and of diffusers' Flux, their inputs and
outputs in float32.

    python tests/golden/make_mmdit.py OPENSORA tests/golden

OPENSORA is a checkout of https://github.com/hpcaitech/Open-Sora (7ad6a96); einops 0.8 is needed besides what README.md
names. Its CUDA-only helpers are replaced by the same arithmetic in PyTorch (see `import_model`). Each file holds what
make_models.py's hold.
"""
import importlib
import json
import sys
import types

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

BASE = dict(in_channels=16, vec_in_dim=12, context_in_dim=20, hidden_size=32, mlp_ratio=3.0, num_heads=2, depth=1,
            depth_single_blocks=2, axes_dim=[4, 6, 6], theta=10000, qkv_bias=True, guidance_embed=False, cond_embed=True,
            fused_qkv=False, use_liger_rope=True, patch_size=2)
FLUX = dict(guidance_embed=True, cond_embed=False, fused_qkv=True, use_liger_rope=False)


def stand_in(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


def import_model(root):
    """opensora.models.mmdit.model, without flash-attn, Liger's kernels and the training framework."""
    class Rope:  # halves turned; the tables' halves are equal
        @staticmethod
        def apply(q, k, cos, sin):
            half = q.shape[-1] // 2
            turn = lambda x: torch.cat((-x[..., half:], x[..., :half]), -1)
            return tuple(x * cos[:, None] + turn(x) * sin[:, None] for x in (q, k))

    class Norm:
        @staticmethod
        def apply(x, weight, eps, *_):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    class Registry:
        def register_module(self, _):
            return lambda fn: fn

    torch.compile = lambda *a, **k: (lambda fn: fn)
    stand_in("flash_attn", flash_attn_func=lambda q, k, v: F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2))
    for name in ("liger_kernel", "liger_kernel.ops"):
        stand_in(name)
    stand_in("liger_kernel.ops.rope", LigerRopeFunction=Rope)
    stand_in("liger_kernel.ops.rms_norm", LigerRMSNormFunction=Norm)
    for name in ("opensora", "opensora.models", "opensora.models.mmdit", "opensora.utils", "opensora.datasets"):
        stand_in(name).__path__ = [f"{root}/{name.replace('.', '/')}"]
    stand_in("opensora.acceleration")
    stand_in("opensora.acceleration.checkpoint", auto_grad_checkpoint=lambda block, *args: block(*args))
    stand_in("opensora.registry", MODELS=Registry(), build_module=None)
    stand_in("opensora.utils.ckpt", load_checkpoint=None)
    return importlib.import_module("opensora.models.mmdit.model")


def randomise(module, seed, quiet=False):
    """Random parameters; `quiet`: small activations, so that the eps of the norms counts."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            one = 1.0 if name.endswith("scale") or "norm_" in name and name.endswith("weight") else 0.0
            p.copy_(noise * (0.2 if p.dim() == 1 else p.shape[1] ** -0.5) + one)
            if quiet and any(x in name for x in ("img_in", "txt_in", "cond_in", "q_proj", "k_proj")):
                p.mul_(1e-3)
    return module.eval()


def build(code, seed, quiet=False, **changes):
    config = {**BASE, **changes}
    return randomise(code.MMDiTModel(code.MMDiTConfig(from_pretrained="", cache_dir="", **config)), seed, quiet), config


def ids_of(frames, rows, columns):
    axes = [torch.as_tensor(a, dtype=torch.float32) for a in (frames, rows, columns)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, 3)


def inputs_of(config, seed, frames, rows, columns, batch=2, text=5):
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g)
    n = len(frames) * len(rows) * len(columns)
    inputs = dict(img=randn(batch, n, config["in_channels"]), img_ids=ids_of(frames, rows, columns).repeat(batch, 1, 1),
                  txt=randn(batch, text, config["context_in_dim"]), txt_ids=torch.zeros(batch, text, 3),
                  timesteps=torch.tensor([0.731, 0.104])[:batch], y_vec=randn(batch, config["vec_in_dim"]))
    if config["cond_embed"]:
        inputs["cond"] = randn(batch, n, config["in_channels"] + config["patch_size"] ** 2)
    if config["guidance_embed"]:
        inputs["guidance"] = torch.tensor([4.0, 2.5])[:batch]
    return inputs


GRADIENTS = ("img_in.weight", "double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks.0.txt_mlp.0.bias",
             "single_blocks.1.linear2.weight", "single_blocks.0.norm.key_norm.scale", "time_in.in_layer.bias")


def save(folder, name, weights, config, inputs, output, gradients=None):
    tensors = {f"w.{k}": v.detach().contiguous() for k, v in weights.items()}
    tensors |= {f"grad.{k}": v.contiguous() for k, v in (gradients or {}).items()}
    tensors |= {f"in.{k}": v.contiguous() for k, v in inputs.items() if k != "txt_ids"}
    tensors["out.velocity"] = output.detach().contiguous()
    save_file(tensors, f"{folder}/{name}.safetensors", metadata={"config": json.dumps(config)})


def opensora(code, folder, name, seed, frames=(0, 1, 2), rows=(0, 1), columns=(0, 1, 2), gradient=False, **changes):
    model, config = build(code, seed, **changes)
    inputs = inputs_of(config, seed + 1, frames, rows, columns)
    output, parameters = model(**inputs), dict(model.named_parameters())
    gradients = {}
    if gradient:  # of the loss (velocity · img).sum()
        (output * inputs["img"]).sum().backward()
        gradients = {k: parameters[k].grad for k in GRADIENTS}
    save(folder, name, model.state_dict(), config, inputs, output, gradients)


def flux_name(name):
    """A tensor's name in flux1-dev.safetensors, given diffusers'; q, k, v and MLP parts are joined by the caller."""
    for old, new in (("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
                     ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
                     ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
                     ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
                     ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
                     ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
                     ("context_embedder", "txt_in"), ("x_embedder", "img_in"), ("proj_out", "final_layer.linear"),
                     ("norm_out.linear", "final_layer.adaLN_modulation.1")):
        if name.startswith(old):
            return name.replace(old, new)
    if name.startswith("single_transformer_blocks."):
        name = name.replace("single_transformer_blocks.", "single_blocks.")
        for old, new in (("norm.linear", "modulation.lin"), ("attn.norm_q.weight", "norm.query_norm.scale"),
                         ("attn.norm_k.weight", "norm.key_norm.scale"), ("proj_out", "linear2")):
            name = name.replace(old, new)
        return name
    name = name.replace("transformer_blocks.", "double_blocks.")
    for old, new in (("norm1_context.linear", "txt_mod.lin"), ("norm1.linear", "img_mod.lin"),
                     ("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
                     ("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
                     ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
                     ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
                     ("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj"),
                     ("ff_context.net.0.proj", "txt_mlp.0"), ("ff_context.net.2", "txt_mlp.2"),
                     ("ff.net.0.proj", "img_mlp.0"), ("ff.net.2", "img_mlp.2")):
        name = name.replace(old, new)
    return name


@torch.no_grad()
def diffusers_flux(folder, name, seed):
    config = {**BASE, **FLUX, "mlp_ratio": 4.0}
    model = randomise(FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=20, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 6, 6)), seed)
    theirs, weights = model.state_dict(), {}
    joined = {"attn.to_": ("q", "k", "v"), "attn.add_": ("q_proj", "k_proj", "v_proj")}
    for key, value in theirs.items():
        if "attn.to_q." in key and key.startswith("single"):
            parts = [key] + [key.replace("to_q", other) for other in ("to_k", "to_v")] + [key.replace("attn.to_q", "proj_mlp")]
            weights[flux_name(key).replace("attn.to_q", "linear1")] = torch.cat([theirs[p] for p in parts])
        elif "attn.to_q." in key or "attn.add_q_proj." in key:
            stream = "img_attn.qkv" if "to_q" in key else "txt_attn.qkv"
            parts = [key.replace("to_q", f"to_{x}").replace("add_q", f"add_{x}") for x in "qkv"]
            weights[flux_name(key).replace("attn.to_q", stream).replace("attn.add_q_proj", stream)] = torch.cat(
                [theirs[p] for p in parts])
        elif any(x in key for x in ("attn.to_k.", "attn.to_v.", "attn.add_k_proj.", "attn.add_v_proj.", "proj_mlp.")):
            pass  # joined above
        elif key.startswith("norm_out.linear"):  # scale and shift change places
            weights[flux_name(key)] = torch.cat(value.chunk(2)[::-1])
        else:
            weights[flux_name(key)] = value
    inputs = inputs_of(config, seed + 1, (0,), (0, 1, 2), (0, 1, 2, 3))
    out = model(hidden_states=inputs["img"], encoder_hidden_states=inputs["txt"], pooled_projections=inputs["y_vec"],
                timestep=inputs["timesteps"], img_ids=inputs["img_ids"][0], txt_ids=inputs["txt_ids"][0],
                guidance=inputs["guidance"], return_dict=False)[0]
    save(folder, name, weights, config, inputs, out)


def main(root, folder):
    code = import_model(root)
    opensora(code, folder, "mmdit_opensora", 210, gradient=True)
    opensora(code, folder, "mmdit_patch1", 220, in_channels=8, patch_size=1, qkv_bias=False, axes_dim=[8, 4, 4])
    opensora(code, folder, "mmdit_fractions", 230, frames=(0, 0.4, 1.75, 7.5), rows=(0, 0.5), columns=(3, 4.25))
    opensora(code, folder, "mmdit_flux", 240, frames=(0,), rows=(0, 1, 2), columns=(0, 1, 2, 3), **FLUX)
    # Gradients without guidance: its features turn by 4000 radians, where the last bit of torch's expf would show.
    opensora(code, folder, "mmdit_flux_unguided", 245, rows=(0, 1, 2), gradient=True, **{**FLUX, "guidance_embed": False})
    opensora(code, folder, "mmdit_fused_halves", 250, fused_qkv=True, cond_embed=False, depth=2, depth_single_blocks=0)
    opensora(code, folder, "mmdit_split_pairs", 260, use_liger_rope=False, depth=0, guidance_embed=True, quiet=True)
    diffusers_flux(folder, "mmdit_flux_diffusers", 270)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
