"""The parts of compare_gpu.py that belong to films: Open-Sora 2.0's transformer and T5-XXL, at full size.

Weights are drawn on the GPU and streamed to one file, tensor by tensor. Errors are measured on a transformer with fewer
blocks of the same width, where float32 fits and is quick; times on the whole one. The peer is Open-Sora's own model code
under cuDNN attention, with its fused helpers (Liger's RMSNorm and rotation, FlashAttention's signature) replaced by the
same arithmetic in PyTorch.
"""
import contextlib
import functools
import gc
import importlib
import json
import pathlib
import struct
import subprocess
import sys
import types

import torch
from safetensors.torch import load_file, save_file

WIDTH = dict(hidden_size=3072, num_heads=24, context_in_dim=4096, vec_in_dim=768, axes_dim=[16, 56, 56])
T5_XXL = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128)
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
bf16 = torch.bfloat16


def stand_in(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


@functools.cache
def opensora_code(folder):
    """The module opensora.models.mmdit.model of the package in `folder`, without the rest of the package."""
    import torch.nn.functional as F

    class Rope:
        @staticmethod
        def apply(q, k, cos, sin):
            half = q.shape[-1] // 2
            turn = lambda x: torch.cat((-x[..., half:], x[..., :half]), -1)
            cos, sin = cos[:, None].to(q.dtype), sin[:, None].to(q.dtype)
            return q * cos + turn(q) * sin, k * cos + turn(k) * sin

    class Norm:
        @staticmethod
        def apply(x, weight, eps, *_):
            return F.rms_norm(x, (x.shape[-1],), weight, eps)

    class Registry:
        def register_module(self, _):
            return lambda fn: fn

    if not (pathlib.Path(folder) / "opensora" / "models" / "mmdit" / "model.py").exists():
        raise FileNotFoundError(f"{folder} holds no opensora package (give its folder with --opensora)")
    stand_in("flash_attn", flash_attn_func=lambda q, k, v: F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2))
    for name in ("liger_kernel", "liger_kernel.ops"):
        stand_in(name)
    stand_in("liger_kernel.ops.rope", LigerRopeFunction=Rope)
    stand_in("liger_kernel.ops.rms_norm", LigerRMSNormFunction=Norm)
    for name in ("opensora", "opensora.models", "opensora.models.mmdit"):
        stand_in(name).__path__ = [f"{folder}/{name.replace('.', '/')}"]
    for name in ("opensora.acceleration", "opensora.utils"):
        stand_in(name)
    stand_in("opensora.acceleration.checkpoint", auto_grad_checkpoint=lambda block, *args: block(*args))
    stand_in("opensora.registry", MODELS=Registry())
    stand_in("opensora.utils.ckpt", load_checkpoint=None)
    code = importlib.import_module("opensora.models.mmdit.model")
    for name in [n for n in sys.modules if n.split(".")[0] in ("flash_attn", "liger_kernel")]:
        del sys.modules[name]  # transformers would take them for the real ones
    return code


def fill(model, device, seed=0):
    """Every weight anew: small enough that activations stay in bounds through all blocks, none zero."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 1 and ("norm" in name or name.endswith("scale")):
            p.uniform_(0.8, 1.2, generator=generator)
        else:
            p.normal_(0, 0.02 if p.ndim > 1 else 0.01, generator=generator)
    return model


def mmdit(o, depth, single_depth):
    code, kinds = opensora_code(o.opensora), dict(fused_qkv=False, use_liger_rope=True, guidance_embed=False, cond_embed=True)
    config = code.MMDiTConfig(from_pretrained="", cache_dir="", in_channels=64, mlp_ratio=4.0, theta=10000, qkv_bias=True,
                              depth=depth, depth_single_blocks=single_depth, **kinds, **o.width)
    torch.set_default_dtype(bf16)
    with torch.device(o.device):
        model = code.MMDiTModel(config).eval()
    torch.set_default_dtype(torch.float32)
    return fill(model, o.device)


def t5(o):
    from transformers import T5Config, T5EncoderModel
    config = T5Config(feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, **o.t5)
    with torch.device(o.device):
        return config, fill(T5EncoderModel(config).to(bf16).eval(), o.device)


def write_weights(path, tensors):
    """A safetensors file, one tensor on the host at a time."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path.with_suffix(".part"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(memoryview(tensor.detach().contiguous().cpu().view(torch.uint8).flatten().numpy()))
    path.with_suffix(".part").rename(path)


def write_mmdit(o, folder):
    """The transformer's weights, and how deep it is."""
    write_weights(folder / "Open_Sora_v2.safetensors", mmdit(o, *o.depths).state_dict())
    free()
    (folder / "Open_Sora_v2.json").write_text(json.dumps(dict(o.width, depth=o.depths[0], depth_single_blocks=o.depths[1])))


def mmdit_inputs(o, frames, height, width):
    g = torch.Generator().manual_seed(4)
    n, text = frames * height * width, o.text_tokens
    grid = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    x = {"img": torch.randn(1, n, 64, generator=g), "img_ids": torch.stack(grid, -1).reshape(1, n, 3).float(),
         "txt": torch.randn(1, text, o.width["context_in_dim"], generator=g), "timesteps": torch.full((1,), 0.5),
         "y_vec": torch.randn(1, o.width["vec_in_dim"], generator=g), "cond": torch.randn(1, n, 68, generator=g)}
    return {k: v if k == "img_ids" else v.to(bf16).float() for k, v in x.items()}


def call_mmdit(fn, x, device, dtype=bf16):
    x = {k: v.to(device) if k == "img_ids" else v.to(device, dtype) for k, v in x.items()}
    args = (x["img"], x["img_ids"], x["txt"], torch.zeros(1, x["txt"].shape[1], 3, device=device), x["timesteps"], x["y_vec"], x["cond"])
    return lambda: fn(*args)


@contextlib.contextmanager
def peer_attention(o):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    if o.device != "cuda":
        yield
        return
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        yield


def free():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def eval_kinora(o, folder, component, inputs, repeats, *flags):
    """The output, and what `kinora eval` says of its times."""
    source, target = o.folder / "in.safetensors", o.folder / "out.safetensors"
    save_file({k: v.contiguous() for k, v in inputs.items()}, source)
    command = [o.kinora, "eval", folder, component, source, "-o", target, "--device", o.device, "--dtype", "bfloat16",
               "--repeats", repeats] + (["--by-op"] if o.by_op else []) + (["--attention", o.attention] if o.attention else []) + [*flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"kinora eval ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    first, *profile = done.stdout.splitlines()
    if profile:
        print("\n".join(profile[:40]), flush=True)
    report = json.loads(first)
    return next(iter(load_file(target).values())), {
        "kinora_ms": report["median_s"] * 1000, "kinora_peak_mib": report["device_peak_mib"], "attention": report["attention"]}


def relative(a, b):
    a, b = a.float().cpu(), b.float().cpu()
    return ((a - b).norm() / b.norm()).item()


class Mmdit:
    """A forward of Open-Sora 2.0's transformer."""

    def __init__(self, title, grid, shallow, compiled):
        self.title, self.grid, self.shallow, self.compiled = title, grid, shallow, compiled

    def errors(self, o):
        """PyTorch's and Kinora's bfloat16 error on `shallow` blocks of both kinds."""
        folder, row = o.folder / "mmdit-shallow", {}
        folder.mkdir(parents=True, exist_ok=True)
        model = mmdit(o, *self.shallow)
        write_weights(folder / "Open_Sora_v2.safetensors", model.state_dict())
        x = mmdit_inputs(o, *(o.grid or self.grid))
        with peer_attention(o):
            low = call_mmdit(model, x, o.device)()
        exact = call_mmdit(model.float(), x, o.device, torch.float32)().float().cpu()
        row["peer_error"] = relative(low, exact)
        del model, low
        free()
        out, _ = eval_kinora(o, folder, "mmdit", x, 1)
        row["kinora_error"] = relative(out, exact)
        (folder / "Open_Sora_v2.safetensors").unlink()
        return row

    def formats(self, o, names):
        """A row for each format, bfloat16 first; FORMAT+attention is with --attention fp8 too."""
        folder, x, rows, base = o.folder / "mmdit-{}-{}".format(*o.depths), mmdit_inputs(o, *(o.grid or self.grid)), [], None
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "Open_Sora_v2.safetensors").exists():
            write_mmdit(o, folder)
        for name in ("bfloat16", *names):
            format, _, attention = name.partition("+")
            flags = (["--quantize", format] if format != "bfloat16" else []) + (["--attention", "fp8"] if attention else [])
            out, times = eval_kinora(o, folder, "mmdit", x, min(o.repeats, 5), *flags)
            base = out if base is None else base
            rows.append({"format": name, "ms": times["kinora_ms"], "weights_mib": times["kinora_peak_mib"], "attention": times["attention"],
                         "error_against_bfloat16": relative(out, base)})
        return rows

    def run(self, o, median_ms):
        torch.backends.cuda.matmul.allow_tf32 = False
        row = {} if o.no_peer else self.errors(o)
        folder = o.folder / "mmdit"
        folder.mkdir(parents=True, exist_ok=True)
        weights, x = folder / "Open_Sora_v2.safetensors", mmdit_inputs(o, *(o.grid or self.grid))
        if not o.no_peer or not weights.exists():
            model = mmdit(o, *o.depths)
            if not weights.exists():
                write_weights(weights, model.state_dict())
            if not o.no_peer:
                few = dict(repeats=3, warmup=1)
                with peer_attention(o):
                    row["eager_ms"] = median_ms(call_mmdit(model, x, o.device), **few)
                    if self.compiled and not o.no_compile:
                        row["compiled_ms"] = median_ms(call_mmdit(torch.compile(model), x, o.device), repeats=5, warmup=2)
                        torch._dynamo.reset()
            del model
            free()
        row.update(eval_kinora(o, folder, "mmdit", x, min(o.repeats, 10 if self.compiled else 3))[1])
        return row


class T5:
    """T5-XXL's encoder on one prompt."""
    title = "T5-XXL encode, 512 tokens"

    def run(self, o, median_ms):
        torch.backends.cuda.matmul.allow_tf32 = False
        folder, row, exact = o.folder / "t5-xxl", {}, None
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "model.safetensors"
        ids = torch.randint(0, o.t5["vocab_size"], (1, o.text_tokens), generator=torch.Generator().manual_seed(5))
        if not o.no_peer or not weights.exists():
            config, model = t5(o)
            (folder / "config.json").write_text(json.dumps({"model_type": "t5", **config.to_dict()}))
            if not weights.exists():
                write_weights(weights, {k: v for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"})
            if not o.no_peer:
                run = lambda fn=model: fn(ids.to(o.device)).last_hidden_state
                low = run()
                row["eager_ms"] = median_ms(run)
                if not o.no_compile:
                    fn = torch.compile(model, mode="reduce-overhead")
                    row["compiled_ms"] = median_ms(lambda: run(fn))
                    torch._dynamo.reset()
                exact = model.float()(ids.to(o.device)).last_hidden_state.float().cpu()
                row["peer_error"] = relative(low, exact)
                del low
            del model
            free()
        out, times = eval_kinora(o, folder, "text_encoder", {"input_ids": ids}, o.repeats)
        if exact is not None:
            row["kinora_error"] = relative(out, exact)
        return {**row, **times}


def parts():
    return {"mmdit-256": Mmdit("Open-Sora 2 MMDiT, 8,316 + 512 tokens", (33, 12, 21), (2, 2), True),
            "mmdit-768": Mmdit("Open-Sora 2 MMDiT, 76,032 + 512 tokens", (33, 36, 64), (1, 1), False),
            "t5-xxl": T5()}


def add_options(p):
    p.add_argument("--opensora", help="folder with the opensora package, for mmdit-256 and mmdit-768")
    p.add_argument("--attention", help="as kinora's, for the film parts")
    p.add_argument("--depths", default="19,38", help="blocks of both kinds of MMDiT, for --quantize with fewer than all")
    p.add_argument("--by-op", action="store_true", help="also print where Kinora's time goes, for the film parts")


def complete(o):
    """The sizes, those of the published models; `tiny` ones, on the CPU, only try the script."""
    o.device, o.width, o.t5, o.text_tokens, o.grid = "cuda", WIDTH, T5_XXL, 512, None
    o.depths = tuple(int(n) for n in o.depths.split(","))
    if o.tiny:
        o.device, o.text_tokens, o.grid = "cpu", 16, (3, 2, 4)
        o.width = dict(hidden_size=256, num_heads=2, context_in_dim=64, vec_in_dim=32, axes_dim=[16, 56, 56])
        o.t5 = dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=1000)
        o.depths = (3, 3)
