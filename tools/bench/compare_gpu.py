"""Kinora against PyTorch (diffusers, transformers) on one NVIDIA GPU: the same random weights at full size, side by side.

    python tools/bench/compare_gpu.py FOLDER KINORA [--parts sana-0.6b,…] [--no-peer] [--no-compile] [--out results.json]
    python tools/bench/compare_gpu.py FOLDER KINORA --quantize fp8,int8,nvfp4 [--parts …] [--out results.json]

FOLDER receives checkpoints with random weights, made on the spot and used again when they are there; KINORA is the
program. For each part, both programs first compute the same inputs, and each result's error against PyTorch's float32
result is printed: ours in bfloat16 should be no larger than PyTorch's in bfloat16. Then both are timed: medians of
device time after warm-up, PyTorch eager and compiled (with CUDA graphs). Needs diffusers on PYTHONPATH.

The parts of films are in compare_gpu_film.py (mmdit-256, mmdit-768, t5-xxl: the first two need --opensora FOLDER, the folder
that holds Open-Sora's `opensora` package, and 23 GB where FOLDER lies) and compare_gpu_vae.py (hunyuan-vae, hunyuan-vae-768:
they need bench_film beside the program). `--tiny` tries them, small, on the CPU.

With --quantize, Kinora alone: bfloat16 and then each format in turn, with its error against our bfloat16 result (and
against PyTorch's float32 result where an earlier run has kept that in FOLDER), and what the weights take on the GPU. For
the mmdit parts FORMAT+attention is with --attention fp8 too, the memory is all of it, and --depths 2,4 does with fewer blocks.
"""
import argparse
import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

import compare_gpu_film as film
import compare_gpu_vae as vae

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "models" / "kinora-mini" / "tokenizer"
BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
WIDTHS = (128, 256, 512, 512, 1024, 1024)
SCALES = ((), (), (), (5,), (5,), (5,))
VARIANTS = {  # heads, layers, cross-attention heads and width
    "0.6b": (36, 28, 16, 72), "1.6b": (70, 20, 20, 112), "4.8b": (70, 60, 20, 112)}


def transformer(name, **more):
    from diffusers import SanaTransformer2DModel
    heads, layers, cross, dim = VARIANTS[name]
    with torch.device("cuda"):
        return SanaTransformer2DModel(
            in_channels=32, out_channels=32, num_attention_heads=heads, attention_head_dim=32, num_layers=layers,
            num_cross_attention_heads=cross, cross_attention_head_dim=dim, cross_attention_dim=heads * 32,
            caption_channels=2304, mlp_ratio=2.5, patch_size=1, **more).to(torch.bfloat16).eval()


def autoencoder():
    from diffusers import AutoencoderDC
    with torch.device("cuda"):
        return AutoencoderDC(
            latent_channels=32, encoder_block_types=BLOCKS, decoder_block_types=BLOCKS, encoder_block_out_channels=WIDTHS,
            decoder_block_out_channels=WIDTHS, encoder_qkv_multiscales=SCALES, decoder_qkv_multiscales=SCALES,
            encoder_layers_per_block=(2, 2, 2, 3, 3, 3), decoder_layers_per_block=(3,) * 6, downsample_block_type="conv",
            upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
            scaling_factor=0.41407).to(torch.bfloat16).eval()


def gemma(layers=26):
    from transformers import Gemma2Config, Gemma2Model
    config = Gemma2Config(hidden_size=2304, intermediate_size=9216, num_hidden_layers=layers, num_attention_heads=8,
                          num_key_value_heads=4, head_dim=256, vocab_size=256000, attn_implementation="eager")
    with torch.device("cuda"):
        return Gemma2Model(config).to(torch.bfloat16).eval()


def write_index(folder, sprint, shift):
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    scheduler = {"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5} if sprint else {
        "_class_name": "DPMSolverMultistepScheduler", "flow_shift": shift, "use_flow_sigmas": True,
        "prediction_type": "flow_prediction", "algorithm_type": "dpmsolver++", "solver_order": 2}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "SanaSprintPipeline" if sprint else "SanaPipeline", "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "Gemma2Model"], "tokenizer": ["transformers", "GemmaTokenizerFast"],
        "transformer": ["diffusers", "SanaTransformer2DModel"], "vae": ["diffusers", "AutoencoderDC"]}))
    if not (folder / "tokenizer").exists():
        shutil.copytree(TOKENIZER, folder / "tokenizer")


# Components that checkpoints share are made once and linked.
def make(root, name):
    variant, kind = name.rsplit("-", 1) if name.count("-") else (name, "1k")
    folder = root / name
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    shared = root / "shared"
    for part, build in (("vae", autoencoder), ("text_encoder", gemma)):
        if not (shared / part).exists():
            build().save_pretrained(shared / part)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / part).symlink_to((shared / part).resolve())
    more = {"1k": dict(sample_size=32), "2k": dict(sample_size=64, interpolation_scale=1.0),
            "4k": dict(sample_size=128, interpolation_scale=2.0), "v15": dict(sample_size=32, qk_norm="rms_norm_across_heads"),
            "sprint": dict(sample_size=32, qk_norm="rms_norm_across_heads", guidance_embeds=True)}[kind]
    transformer(variant, **more).save_pretrained(folder / "transformer", max_shard_size="4GB")
    write_index(folder, kind == "sprint", 6.0 if kind == "4k" else 3.0)
    return folder


def median_ms(run, repeats=10, warmup=3):
    if not torch.cuda.is_available():  # --tiny
        run()
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1000
    for _ in range(warmup):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def relative(a, b):
    a, b = a.float().cpu(), b.float().cpu()
    return ((a - b).norm() / b.norm()).item()


class Part:
    """One component: its model in PyTorch, its inputs by diffusers' names, and how PyTorch calls it."""

    def __init__(self, title, checkpoint, component, load, inputs, call, size=1024, mode="reduce-overhead"):
        self.title, self.checkpoint, self.component, self.load = title, checkpoint, component, load
        self.inputs, self.call, self.size, self.mode = inputs, call, size, mode


def parts():
    def sana_inputs(n, batch=2, guidance=False):
        g = torch.Generator().manual_seed(1)
        x = {"hidden_states": torch.randn(batch, 32, n, n, generator=g), "timestep": torch.full((batch,), 500.0),
             "encoder_hidden_states": torch.randn(batch, 300, 2304, generator=g), "encoder_attention_mask": torch.ones(batch, 300)}
        if guidance:
            x["guidance"] = torch.full((batch,), 0.45)
            x["timestep"] = torch.full((batch,), 0.5)
        return x

    def call_sana(fn, x):
        return fn(x["hidden_states"], encoder_hidden_states=x["encoder_hidden_states"], timestep=x["timestep"],
                  guidance=x.get("guidance"), encoder_attention_mask=x["encoder_attention_mask"], return_dict=False)[0]

    def load_sana(folder):
        from diffusers import SanaTransformer2DModel
        return SanaTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16).cuda().eval()

    def load_vae(folder):
        from diffusers import AutoencoderDC
        return AutoencoderDC.from_pretrained(folder / "vae", torch_dtype=torch.bfloat16).cuda().eval()

    def load_gemma(folder):
        from transformers import Gemma2Model
        return Gemma2Model.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16, attn_implementation="eager").cuda().eval()

    def sana(title, checkpoint, n, batch=2, mode="reduce-overhead"):
        sprint = checkpoint.endswith("sprint")
        return Part(title, checkpoint, "transformer", load_sana, lambda: sana_inputs(n, batch, sprint), call_sana, n * 32, mode)

    def latent(n):
        return {"latent": torch.randn(1, 32, n, n, generator=torch.Generator().manual_seed(2))}

    def tokens():
        ids = torch.randint(0, 256000, (2, 300), generator=torch.Generator().manual_seed(3))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return {
        "sana-0.6b": sana("Sana 0.6B, 1024², batch 2", "0.6b-1k", 32),
        "sana-1.6b": sana("Sana 1.6B, 1024², batch 2", "1.6b-1k", 32),
        "sana-1.6b-4k": sana("Sana 1.6B, 4096², batch 2", "1.6b-4k", 128, mode="default"),
        "sana-1.6b-2k": sana("Sana 1.6B, 2048², batch 2", "1.6b-2k", 64),
        "sana-1.5-1.6b": sana("Sana-1.5 1.6B, 1024², batch 2", "1.6b-v15", 32),
        "sana-1.5-4.8b": sana("Sana-1.5 4.8B, 1024², batch 2", "4.8b-v15", 32),
        "sprint-0.6b": sana("Sana-Sprint 0.6B, 1024², batch 1", "0.6b-sprint", 32, 1),
        "sprint-1.6b": sana("Sana-Sprint 1.6B, 1024², batch 1", "1.6b-sprint", 32, 1),
        "dcae": Part("DC-AE decode, 1024²", "1.6b-1k", "vae.decode", load_vae, lambda: latent(32),
                     lambda fn, x: fn.decode(x["latent"], return_dict=False)[0] if hasattr(fn, "decode") else fn(x["latent"]),
                     mode="default"),
        "gemma": Part("Gemma-2 2B encode, 2 × 300", "1.6b-1k", "text_encoder", load_gemma, tokens,
                      lambda fn, x: fn(x["input_ids"], attention_mask=x["attention_mask"]).last_hidden_state),
        **film.parts(),
        **vae.parts(),
    }


def peer(part, folder, inputs, compiled):
    """PyTorch's bfloat16 error against its own float32 result, its times, and that float32 result."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model = part.load(folder)
    cast = lambda dtype: {k: v.cuda() if v.dtype == torch.int64 else v.cuda().to(dtype) for k, v in inputs.items()}
    x = cast(torch.bfloat16)
    low = part.call(model, x)
    row = {"eager_ms": median_ms(lambda: part.call(model, x))}
    if compiled:
        fn = torch.compile(model.decoder if part.component == "vae.decode" else model, mode=part.mode)
        row["compiled_ms"] = median_ms(lambda: part.call(fn, x))
    torch._dynamo.reset()
    exact = part.call(model.float(), {k: v if v.dtype == torch.int64 else v.float() for k, v in x.items()})
    row["peer_error"] = relative(low, exact)
    return row, exact.float().cpu()


def kinora(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"kinora {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def evaluate(program, part, folder, inputs, scratch, *more):
    save_file({k: v.contiguous() if v.dtype == torch.int64 else v.to(torch.bfloat16).float().contiguous() for k, v in inputs.items()},
              scratch / "in.safetensors")
    kinora(program, "eval", folder, part.component, scratch / "in.safetensors", "-o", scratch / "out.safetensors", "--device", "cuda",
           *more)
    return next(iter(load_file(scratch / "out.safetensors").values()))


def bench(program, part, folder, inputs, repeats, *more):
    shape = [] if part.component == "text_encoder" else ["--size", part.size]
    batch = next(iter(inputs.values())).shape[0]
    report = json.loads(kinora(program, "bench", "-m", folder, "--device", "cuda", "--component", part.component, "--json",
                               "--batch", batch, "--repeats", repeats, *shape, *more))
    return report["rows"][0]


def ours(program, part, folder, inputs, exact, scratch, repeats):
    out = evaluate(program, part, folder, inputs, scratch)
    row = {"kinora_error": relative(out, exact)} if exact is not None else {}
    measured = bench(program, part, folder, inputs, repeats)
    row["kinora_ms"] = measured["median_s"] * 1000
    row["kinora_peak_mib"] = measured["device_peak_mib"]
    return row


def measure(part, name, o):
    folder, inputs, row = make(o.folder, part.checkpoint), part.inputs(), {}
    kept = o.folder / f"{name}.exact.safetensors"
    exact = load_file(kept)["exact"] if kept.exists() else None
    if o.quantize:
        return {"formats": formats_of(o.kinora, part, folder, inputs, exact, o.folder, o.repeats, o.quantize.split(","))}
    if not o.no_peer:
        measured, exact = peer(part, folder, inputs, not o.no_compile)
        row.update(measured)
        save_file({"exact": exact.contiguous()}, kept)
    gc.collect()
    torch.cuda.empty_cache()
    row.update(ours(o.kinora, part, folder, inputs, exact, o.folder, o.repeats))
    return row


def device_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def report(o, rows, name, row):
    rows[name] = row
    print(json.dumps(row), flush=True)
    if o.out:
        o.out.write_text(json.dumps({"device": device_name(), "torch": torch.__version__, "rows": rows}, indent=1))


def formats_of(program, part, folder, inputs, exact, scratch, repeats, formats):
    """One row a format, bfloat16 first and once more last: how far the two lie apart is the noise of the measurement."""
    rows, base = [], evaluate(program, part, folder, inputs, scratch)
    for name in ("bfloat16", *formats, "bfloat16"):
        flags = () if name == "bfloat16" else ("--quantize", name)
        out = evaluate(program, part, folder, inputs, scratch, *flags) if flags else base
        measured = bench(program, part, folder, inputs, repeats, *flags)
        row = {"format": name, "ms": measured["median_s"] * 1000, "best_ms": measured["best_s"] * 1000,
               "weights_mib": measured["device_peak_mib"] - measured["arena_mib"], "arena_mib": measured["arena_mib"],
               "error_against_bfloat16": relative(out, base)}
        if exact is not None:
            row["error"] = relative(out, exact)
        rows.append(row)
    return rows


def print_formats(title, rows):
    print(f"\n{title}\n\n| format | forward | times bfloat16 | error against bfloat16 | error against float32 | weights | of bfloat16's |")
    print("|---|---|---|---|---|---|---|")
    first = rows[0]
    for row in rows:
        error = f"{row['error']:.2e}" if "error" in row else "-"
        print(f"| {row['format']} | {row['ms']:.2f} ms | {first['ms'] / row['ms']:.2f} | {row['error_against_bfloat16']:.2e} | {error} | "
              f"{row['weights_mib']:.0f} MiB | {row['weights_mib'] / max(first['weights_mib'], 1):.2f} |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("kinora")
    p.add_argument("--parts", default=",".join(name for name in parts() if not name.startswith("mmdit")))
    p.add_argument("--no-peer", action="store_true", help="Kinora alone; errors need a float32 result kept in FOLDER")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--quantize", metavar="FORMATS", help="Kinora alone: these formats, separated by commas, against its bfloat16")
    p.add_argument("--repeats", type=int, default=20)
    p.add_argument("--out", type=pathlib.Path)
    p.add_argument("--tiny", action="store_true", help="the film parts alone, in little, on the CPU: does the script run?")
    film.add_options(p)
    o = p.parse_args()
    film.complete(o)
    torch.set_grad_enabled(False)
    o.folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in o.parts.split(","):
        part = parts()[name]
        row = {"part": part.title}
        try:
            if o.quantize and hasattr(part, "formats"):
                row["formats"] = part.formats(o, o.quantize.split(","))
            elif o.quantize and hasattr(part, "run"):
                raise ValueError("--quantize does not measure this part")
            else:
                row.update(part.run(o, median_ms) if hasattr(part, "run") else measure(part, name, o))
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
        report(o, rows, name, row)
    print(f"\n{device_name()}, PyTorch {torch.__version__}\n")
    if o.quantize:
        for row in rows.values():
            if "failed" in row:
                print(f"\n{row['part']} failed: {row['failed']}")
            else:
                print_formats(row["part"], row["formats"])
        return
    print("| work | PyTorch eager | compiled | Kinora | times compiled | times eager | PyTorch's error | Kinora's error | peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows.values():
        if "failed" in row:
            print(f"| {row['part']} | failed: {row['failed']} |")
            continue
        ms = lambda key: f"{row[key]:.2f} ms" if key in row else "-"
        ratio = lambda key: f"{row[key] / row['kinora_ms']:.2f}" if key in row else "-"
        error = lambda key: f"{row[key]:.2e}" if key in row else "-"
        print(f"| {row['part']} | {ms('eager_ms')} | {ms('compiled_ms')} | {ms('kinora_ms')} | {ratio('compiled_ms')} | "
              f"{ratio('eager_ms')} | {error('peer_error')} | {error('kinora_error')} | {row['kinora_peak_mib'] / 1024:.2f} GiB |")


if __name__ == "__main__":
    main()
