"""Kinora against PyTorch (diffusers) on this machine's CPU: same random weights, same threads, one program at a time.

    python compare_cpu.py OUTPUT [--kinora PROGRAM] [--threads 2,16] [--size 1024] [--dtypes float32,bfloat16]
                          [--repeats 5] [--parts transformer,vae.decode,mini]

Needs torch, diffusers, transformers and safetensors; of Kinora only the program and models/kinora-mini, as they lie in the
repository (build/kinora) or in an unpacked bundle (bin/kinora beside tools/). OUTPUT receives a Sana-Sprint 0.6B checkpoint
with random weights (used again when it is there), results.json and results.md; the table is printed too.

For every row both programs first run once on the same input and their results are compared: in float32 they must agree,
in bfloat16 Kinora must be no further from PyTorch's float32 result than twice PyTorch's bfloat16 is. Only then are both timed,
in processes of their own: one warm-up, then the median of --repeats runs (fewer when a run takes long). Memory is the largest
resident set of the process, mapped files included (VmHWM).
"""
import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve()
ROOT = HERE.parents[2]
TOKENS, CAPTION = 300, 2304
PROMPT = "a red apple left of a yellow star on a blue background"


def make(folder):
    """The published shapes of Sana-Sprint 0.6B and its DC-AE; a text encoder of one layer, which is not compared."""
    import torch
    from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
    from transformers import AutoTokenizer, Gemma2Config, Gemma2Model
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=32, out_channels=32, num_attention_heads=36, attention_head_dim=32, num_layers=28, num_cross_attention_heads=16,
        cross_attention_head_dim=72, cross_attention_dim=1152, caption_channels=CAPTION, mlp_ratio=2.5, sample_size=32, patch_size=1,
        qk_norm="rms_norm_across_heads", guidance_embeds=True).bfloat16()
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    channels, scales = (128, 256, 512, 512, 1024, 1024), ((), (), (), (5,), (5,), (5,))
    vae = AutoencoderDC(
        latent_channels=32, encoder_block_types=blocks, decoder_block_types=blocks, encoder_block_out_channels=channels,
        decoder_block_out_channels=channels, encoder_layers_per_block=(2, 2, 2, 3, 3, 3), decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
        encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales, downsample_block_type="Conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407).bfloat16()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/kinora-mini/tokenizer")
    text = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), hidden_size=CAPTION, intermediate_size=9216, num_hidden_layers=1,
                                    num_attention_heads=8, num_key_value_heads=4, head_dim=256)).bfloat16()
    SanaSprintPipeline(tokenizer, text, vae, transformer, SCMScheduler(prediction_type="trigflow", sigma_data=0.5)).save_pretrained(folder)


def write_inputs(folder, size):
    import torch
    from safetensors.torch import save_file
    g = torch.Generator().manual_seed(1)
    n = size // 32
    save_file({"hidden_states": torch.randn(1, 32, n, n, generator=g), "encoder_hidden_states": torch.randn(1, TOKENS, CAPTION, generator=g),
               "timestep": torch.tensor([0.5]), "guidance": torch.tensor([0.45])}, folder / "transformer.in.safetensors")
    save_file({"latent": torch.randn(1, 32, n, n, generator=g)}, folder / "vae.decode.in.safetensors")


# --- PyTorch's side: run in a process of its own by `peer` below ---

def peak_mib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024


def measure(run, repeats):
    start = time.perf_counter()
    run()
    repeats = max(1, min(repeats, int(60 / (time.perf_counter() - start)) + 1))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"median_s": sorted(seconds)[len(seconds) // 2], "best_s": min(seconds), "peak_mib": peak_mib(), "repeats": repeats}


def peer_main(job):
    import torch
    torch.set_grad_enabled(False)
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    if job["part"] == "mini":
        from diffusers import SanaPipeline
        start = time.perf_counter()
        pipeline = SanaPipeline.from_pretrained(job["model"], torch_dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        loaded = time.perf_counter() - start

        def run():
            return pipeline(PROMPT, num_inference_steps=16, guidance_scale=3.5, height=256, width=256, max_sequence_length=48,
                            complex_human_instruction=None, use_resolution_binning=False,
                            generator=torch.Generator().manual_seed(0)).images[0]
        if "output" in job:
            run().save(job["output"])
            return {}
        return measure(run, job["repeats"]) | {"load_s": loaded}
    from safetensors.torch import load_file, save_file
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    given = {k: v.to(dtype) for k, v in load_file(job["input"]).items()}
    if job["part"] == "transformer":
        model = SanaTransformer2DModel.from_pretrained(job["model"], subfolder="transformer", torch_dtype=dtype).eval()
        run = lambda: model(return_dict=False, **given)[0]
    else:
        model = AutoencoderDC.from_pretrained(job["model"], subfolder="vae", torch_dtype=dtype).eval()
        run = lambda: model.decode(given["latent"], return_dict=False)[0]
    if "output" in job:
        save_file({"sample": run().float().contiguous()}, job["output"])
        return {}
    return measure(run, job["repeats"])


def peer(**job):
    environment = dict(os.environ, OMP_NUM_THREADS=str(job["threads"]), MKL_NUM_THREADS=str(job["threads"]))
    done = subprocess.run([sys.executable, str(HERE), "--peer", json.dumps(job)], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"PyTorch's side failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- Kinora's side ---

def kinora(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"kinora {' '.join(map(str, arguments))} failed: {done.stderr[-500:]}")
    return done.stdout


def bench(program, model, part, dtype, threads, size, repeats):
    component = {"mini": "picture"}.get(part, part)
    out = json.loads(kinora(program, "bench", "--model", model, "--device", "cpu", "--dtype", dtype, "--size", size, "--threads", threads, "--repeats", repeats,
                            "--json", "--component", component))
    return out["rows"][0] | {"cpu": out["device"]}


def distance(a, b):
    return float((a - b).double().norm() / b.double().norm())


def compare(o, program, model, part, dtype, threads, folder):
    """Relative distance of Kinora's result from PyTorch's float32 result, and of PyTorch's in this dtype."""
    if part == "mini":
        import numpy
        from PIL import Image
        peer(part=part, dtype=dtype, threads=threads, model=model, output=str(folder / "peer.png"))
        kinora(program, "generate", PROMPT, "--model", model, "--device", "cpu", "--dtype", dtype, "--seed", 0, "-t", threads, "-q", "-o", folder / "ours.png")
        a, b = (numpy.asarray(Image.open(folder / name).convert("RGB")).astype(int) for name in ("ours.png", "peer.png"))
        worst = int(abs(a - b).max())
        # diffusers' default attention leaves out Gemma-2's soft-cap, so the prompt differs a little.
        return {"worst pixel": worst, "mean pixel": float(abs(a - b).mean()), "agree": float(abs(a - b).mean()) < 2}
    from safetensors.torch import load_file
    given = folder / f"{part}.in.safetensors"

    def peer_result(d):
        path = folder / f"{part}.{d}.peer.safetensors"
        if not path.exists():
            peer(part=part, dtype=d, threads=threads, model=str(model), input=str(given), output=str(path))
        return load_file(path)["sample"]
    reference = peer_result("float32")
    kinora(program, "eval", model, part, given, "-o", folder / "ours.safetensors", "--device", "cpu", "--dtype", dtype, "-t", threads)
    ours = distance(load_file(folder / "ours.safetensors")["sample"], reference)
    theirs = 0.0 if dtype == "float32" else distance(peer_result(dtype), reference)
    return {"kinora from float32": ours, "torch from float32": theirs, "agree": ours < (2e-4 if dtype == "float32" else 2 * theirs)}


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


HEADER = ("| part | dtype | threads | Kinora | PyTorch | times faster | Kinora's peak | PyTorch's peak | of it | results agree |\n"
          "|---|---|---|---|---|---|---|---|---|---|")


def line(row):
    ours, theirs = row["kinora"], row["torch"]
    return (f"| {row['part']} | {row['dtype']} | {row['threads']} | {ours['median_s']:.3f} s | {theirs['median_s']:.3f} s | "
            f"{theirs['median_s'] / ours['median_s']:.2f} | {ours['peak_mib']:.0f} MiB | {theirs['peak_mib']:.0f} MiB | "
            f"{ours['peak_mib'] / theirs['peak_mib']:.2f} | {'yes' if row['check']['agree'] else 'NO'} |")


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--peer":
        print(json.dumps(peer_main(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--kinora", help="the program (default: bin/kinora or build/kinora beside tools/)")
    parser.add_argument("--threads", default="2,16")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default="transformer,vae.decode,mini")
    o = parser.parse_args()
    candidates = [o.kinora] if o.kinora else [ROOT / "bin/kinora", ROOT / "build/kinora"]
    program = next((str(c) for c in candidates if pathlib.Path(c).exists()), None)
    if not program:
        parser.error("no kinora program found; build it or give --kinora")
    o.output.mkdir(parents=True, exist_ok=True)
    checkpoint, mini = o.output / "sprint-0.6b-random", ROOT / "models/kinora-mini"
    if not (checkpoint / "model_index.json").exists():
        print("making the checkpoint", file=sys.stderr)
        make(checkpoint)
    write_inputs(o.output, o.size)
    for old in o.output.glob("*.peer.safetensors"):
        old.unlink()
    import diffusers
    import torch
    cores = len(os.sched_getaffinity(0))
    about = {"processor": processor(), "cores": cores, "torch": torch.__version__, "diffusers": diffusers.__version__, "size": o.size,
             "kinora": kinora(program, "--version").strip()}
    rows = []
    print(HEADER, flush=True)
    for threads in [int(t) for t in o.threads.split(",")]:
        if threads > cores:
            print(f"{threads} threads left out: {cores} cores here", file=sys.stderr)
            continue
        for part in o.parts.split(","):
            model, size = (mini, 256) if part == "mini" else (checkpoint, o.size)
            for dtype in o.dtypes.split(","):
                check = compare(o, program, str(model), part, dtype, threads, o.output)
                theirs = peer(part=part, dtype=dtype, threads=threads, model=str(model), repeats=o.repeats,
                              input=str(o.output / f"{part}.in.safetensors"))
                ours = bench(program, model, part, dtype, threads, size, max(theirs["repeats"], 2))
                row = {"part": f"{part}, {size}²", "dtype": dtype, "threads": threads, "kinora": ours, "torch": theirs, "check": check}
                rows.append(row)
                print(line(row), flush=True)
                about["kinora's kernels"] = ours["cpu"]
                (o.output / "results.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    table = "\n".join([", ".join(f"{k} {v}" for k, v in about.items()), "", HEADER, *map(line, rows)]) + "\n"
    (o.output / "results.md").write_text(table)
    if not all(row["check"]["agree"] for row in rows):
        raise SystemExit("the results do not agree; see results.json")


if __name__ == "__main__":
    main()
