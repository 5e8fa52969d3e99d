"""Kinora against PyTorch (diffusers) on this machine's CPU: same random weights, same threads, one after the other.

    python tools/bench/compare_cpu.py FOLDER [--threads N] [--size 1024] [--dtypes float32,bfloat16]

FOLDER receives a Sana-Sprint 0.6B checkpoint with random weights (a text encoder of one layer; it is not compared) and
is used again when it is there. Prints a Markdown table. Each program runs in a process of its own; memory is its peak.
"""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

PEER = """
import json, resource, sys, time, torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
folder, what, dtype, threads, size = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
torch.set_grad_enabled(False); torch.set_num_threads(threads)
kind = SanaTransformer2DModel if what == "transformer" else AutoencoderDC
model = kind.from_pretrained(folder, subfolder="transformer" if what == "transformer" else "vae", torch_dtype=dtype).eval()
n = size // 32
x, text = torch.zeros(1, 32, n, n, dtype=dtype), torch.zeros(1, 300, 2304, dtype=dtype)
one = torch.ones(1, dtype=dtype)
def run():
    if what == "transformer":
        model(x, encoder_hidden_states=text, timestep=one * 0.5, guidance=one * 0.45, return_dict=False)
    else:
        model.decode(x, return_dict=False)
times = []
for i in range(3):
    start = time.perf_counter(); run(); times.append(time.perf_counter() - start)
print(json.dumps([sorted(times[1:])[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def make(folder):
    import torch
    from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
    from transformers import AutoTokenizer, Gemma2Config, Gemma2Model
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=32, out_channels=32, num_attention_heads=36, attention_head_dim=32, num_layers=28, num_cross_attention_heads=16,
        cross_attention_head_dim=72, cross_attention_dim=1152, caption_channels=2304, mlp_ratio=2.5, sample_size=32, patch_size=1,
        qk_norm="rms_norm_across_heads", guidance_embeds=True).bfloat16()
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    vae = AutoencoderDC(
        latent_channels=32, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024), decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3), decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)), decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        downsample_block_type="Conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.41407).bfloat16()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/kinora-mini/tokenizer")
    text = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), hidden_size=2304, intermediate_size=9216, num_hidden_layers=1,
                                    num_attention_heads=8, num_key_value_heads=4, head_dim=256)).bfloat16()
    SanaSprintPipeline(tokenizer, text, vae, transformer, SCMScheduler(prediction_type="trigflow", sigma_data=0.5)).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    o = parser.parse_args()
    if not (pathlib.Path(o.folder) / "model_index.json").exists():
        make(o.folder)
    print("| component | dtype | Kinora | PyTorch | times faster | Kinora's peak | PyTorch's peak |\n|---|---|---|---|---|---|---|")
    for dtype in o.dtypes.split(","):
        for component in ("transformer", "vae.decode"):
            arguments = ["bench", "--model", o.folder, "--dtype", dtype, "--size", str(o.size), "--threads", str(o.threads),
                         "--repeats", "2", "--json", "--component", component]
            ours = json.loads(subprocess.run([ROOT / "build/kinora", *arguments], check=True, capture_output=True).stdout)
            row = ours["rows"][0]
            peer = subprocess.run([sys.executable, "-c", PEER, o.folder, component, dtype, str(o.threads), str(o.size)], check=True,
                                  capture_output=True)
            seconds, peak = json.loads(peer.stdout)
            print(f"| {component}, {o.size}² | {dtype} | {row['best_s']:.2f} s | {seconds:.2f} s | {seconds / row['best_s']:.2f} | "
                  f"{row['peak_mib']:.0f} MiB | {peak:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
