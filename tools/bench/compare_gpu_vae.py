"""The parts of compare_gpu.py that decode films with HunyuanVideo's autoencoder, at full size.

PyTorch's time is taken on the tiles that Kinora uses (`eager_ms`) and on diffusers' own, which are short in time too
(`eager_default_ms`); errors are taken from a shorter film on the same tiles.
"""
import gc
import json
import pathlib
import subprocess
import time

import torch
from safetensors.torch import load_file, save_file

TINY = dict(block_out_channels=(16, 32, 32, 32), norm_num_groups=8, layers_per_block=1)


def make(folder, tiny):
    """The model in bfloat16, and its weights in the folder under the published name."""
    from diffusers import AutoencoderKLHunyuanVideo
    torch.manual_seed(0)
    with torch.device("cpu" if tiny else "cuda"):
        model = AutoencoderKLHunyuanVideo(**(TINY if tiny else {})).to(torch.bfloat16).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, folder / "hunyuan_vae.safetensors")
    (folder / "hunyuan_vae.json").write_text(json.dumps(TINY if tiny else {}))
    return model


def median_s(run, repeats):
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def relative(a, b):
    a, b = a.float().cpu(), b.float().cpu()
    return ((a - b).norm() / b.norm()).item()


def call(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


class Decode:
    def __init__(self, title, film, short, tiled):
        self.title, self.film, self.short, self.tiled = title, film, short, tiled  # film: frames, height, width

    def peer(self, o, model, device, long, short):
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        decode = lambda z: model.decode(z.to(device), return_dict=False)[0]
        if self.tiled:
            model.enable_tiling()
        model.use_framewise_decoding = False
        low, row, repeats = decode(short), {}, 1 if self.tiled else 3
        row["eager_ms"] = 1000 * median_s(lambda: decode(long), repeats)
        model.use_framewise_decoding = True
        row["eager_default_ms"] = 1000 * median_s(lambda: decode(long), repeats)
        model.use_framewise_decoding = False
        model.float()
        exact = decode(short.float()).cpu()
        row["peer_error"] = relative(low, exact)
        return row, exact

    def run(self, o, _):
        device = "cpu" if o.tiny else "cuda"
        folder = o.folder / ("hunyuan-tiny" if o.tiny else "hunyuan")
        frames, height, width = (9, 32, 272 if self.tiled else 48) if o.tiny else self.film
        short_frames = 5 if o.tiny else self.short
        g = torch.Generator().manual_seed(5)
        latents = lambda n: torch.randn(1, 16, (n - 1) // 4 + 1, height // 8, width // 8, generator=g).bfloat16()
        model, long, short = make(folder, o.tiny), latents(frames), latents(short_frames)
        scaling, (row, exact) = model.config.scaling_factor, ({}, None)
        if not o.no_peer:
            row, exact = self.peer(o, model, device, long, short)
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        given, made = o.folder / "in.safetensors", o.folder / "out.safetensors"
        save_file({"latent": (short.double() * scaling).float().contiguous()}, given)
        call(o.kinora, "eval", folder, "vae3d.decode", given, "-o", made, "--device", device,
             *([] if self.tiled else ["--tile-size", 0]))
        if exact is not None:
            row["kinora_error"] = relative(load_file(made)["sample"], exact)
        report = json.loads(call(pathlib.Path(o.kinora).with_name("bench_film"), folder, frames, height, width, "--device",
                                 device, "--repeats", 3, *([] if self.tiled else ["--tile", 0])))
        # A film in one piece is timed on the device, as PyTorch's is; one of several until all frames are on the host.
        row["kinora_ms"] = 1000 * report["decode_s" if self.tiled else "run_s"]
        row["kinora_to_host_ms"], row["kinora_piece_ms"] = 1000 * report["decode_s"], 1000 * report["run_s"]
        row["kinora_peak_mib"] = report["device_peak_mib"]
        return row


def parts():
    return {"hunyuan-vae": Decode("Hunyuan VAE decode, 129 frames, 192 × 352", (129, 192, 352), 33, False),
            "hunyuan-vae-768": Decode("Hunyuan VAE decode, 129 frames, 576 × 1024, tiled", (129, 576, 1024), 9, True)}
