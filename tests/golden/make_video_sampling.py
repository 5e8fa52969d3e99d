"""What Open-Sora's own sampling code makes of the small models of make_mmdit.py: whole trajectories, schedules, sizes and
prompts, for tests/diffusion/video_test.cpp.

    python tests/golden/make_video_sampling.py OPENSORA tests/golden

Text encoders and autoencoder are stand-ins that give fixed random numbers; everything between them is the reference's:
opensora/utils/sampling.py, opensora/utils/inference.py and opensora/datasets/aspect.py.
"""
import importlib
import json
import os
import sys

import torch
from safetensors.torch import save_file

from make_mmdit import BASE, FLUX, build, import_model, stand_in

PROMPTS = ["raining, sea", "  A cat. ", "12 FPS.", "at 12 FPS.", "x FPS.", "", "caf\u00e9 \u2014 \u30c6\u30b9\u30c8.\u3000", "A dog!",
           "8 FPS. then", "many... "]


class Text(torch.nn.Module):
    """Random features, the same for the same text."""
    def __init__(self, *shape):
        super().__init__()
        self.shape, self.known = shape, {}

    def forward(self, prompts, added_tokens=0, seq_align=1):
        for p in prompts:
            if p not in self.known:
                g = torch.Generator().manual_seed(1000 + 17 * len(self.known) + len(self.shape))
                self.known[p] = torch.randn(*self.shape, generator=g)
        return torch.stack([self.known[p] for p in prompts])


class Autoencoder(torch.nn.Module):
    def __init__(self, channels, temporal, spatial):
        super().__init__()
        self.one, self.size, self.encoded = torch.nn.Parameter(torch.ones(1)), (channels, temporal, spatial), []

    def encode(self, x):
        channels, t, s = self.size
        g = torch.Generator().manual_seed(2000 + len(self.encoded))
        frames = (x.shape[2] - 1) // t + 1
        self.encoded.append(torch.randn(1, channels, frames, x.shape[3] // s, x.shape[4] // s, generator=g))
        return self.encoded[-1]

    def decode(self, x):
        self.latents = x.clone()
        return x


def load_sampling(root):
    stand_in("mmengine")
    stand_in("mmengine.config", Config=dict)
    stand_in("peft", PeftModel=None)
    stand_in("opensora.models.text")
    stand_in("opensora.models.text.conditioner", HFEmbedder=object)
    sys.modules["opensora.datasets"].save_sample = None
    # A path is the number of frames of the film it stands for.
    stand_in("opensora.datasets.utils", rescale_image_by_path=None,
             read_from_path=lambda path, size, transform_name: torch.zeros(3, int(path), *size))
    stand_in("opensora.utils.logger", log_message=print)
    stand_in("opensora.utils.prompt_refine", refine_prompts=None)
    return importlib.import_module("opensora.utils.sampling")


@torch.no_grad()
def trajectory(sampling, tensors, cases, name, model, spatial=8, patch=2, cond_type="t2v", ref=None, seed=7, neg=None, **options):
    os.environ["AE_SPATIAL_COMPRESSION"] = str(spatial * patch)
    t5, clip, vae = Text(5, 20), Text(12), Autoencoder(model.in_channels // patch**2, 4, spatial)
    settings = dict(width=3 * spatial * patch, height=2 * spatial * patch, num_frames=9, num_steps=13, guidance=7.5, guidance_img=3.0,
                    text_osci=True, image_osci=True, scale_temporal_osci=True, temporal_reduction=4, is_causal_vae=True,
                    method="i2v") | options
    option = sampling.sanitize_sampling_option(sampling.SamplingOption(**settings))
    extra = {} if ref is None else dict(ref=[ref])
    sampling.prepare_api(model, vae, t5, clip, {})(option, cond_type, seed=seed, text=["a prompt"], neg=neg and [neg], patch_size=patch,
                                                   channel=model.in_channels, **extra)
    tensors[f"{name}.latents"] = vae.latents
    tensors[f"{name}.hidden"], tensors[f"{name}.pooled"] = (torch.stack(list(x.known.values())) for x in (t5, clip))
    for i, latents in enumerate(vae.encoded):
        tensors[f"{name}.reference{i}"] = latents
    cases.append(dict(settings, name=name, task=cond_type, seed=seed, spatial=spatial, patch=patch, height=option.height,
                      width=option.width, references=len(vae.encoded)))


def main(root, folder):
    code = import_model(root)
    sampling = load_sampling(root)
    inference, aspect = (importlib.import_module(f"opensora.{x}") for x in ("utils.inference", "datasets.aspect"))
    video, patch1 = build(code, 210)[0], build(code, 220, in_channels=8, patch_size=1, qkv_bias=False, axes_dim=[8, 4, 4])[0]
    flux = build(code, 240, **FLUX)[0]
    tensors, cases = {}, []
    run = lambda *a, **k: trajectory(sampling, tensors, cases, *a, **k)
    run("text", video)
    run("text_plain", video, num_steps=3, text_osci=False, image_osci=False, flow_shift=3.0, neg="bad", seed=123456789)
    run("no_shift", video, num_steps=2, shift=False, num_frames=1)
    run("head", video, cond_type="i2v_head", ref="1")
    run("head_no_ramp", video, cond_type="i2v_head", ref="1", num_steps=3, scale_temporal_osci=False)
    run("tail", video, cond_type="i2v_tail", ref="1;5", num_steps=3)
    run("loop", video, cond_type="i2v_loop", ref="1;1", num_steps=12, num_frames=13)
    run("extend_head", video, cond_type="v2v_head", ref="40", num_steps=3, num_frames=37)
    run("extend_tail", video, cond_type="v2v_tail", ref="33", num_steps=2, num_frames=41)
    run("extend_head_65", video, cond_type="v2v_head_easy", ref="65", num_steps=2, num_frames=69)
    run("extend_tail_65", video, cond_type="v2v_tail_easy", ref="70", num_steps=2, num_frames=69)
    run("patch1", patch1, spatial=32, patch=1, cond_type="i2v_head", ref="1", num_steps=3, num_frames=8)
    run("flux", flux, num_steps=4, num_frames=1, method="distill", guidance=4.0)

    os.environ["AE_SPATIAL_COMPRESSION"] = "16"
    tensors["noise"] = sampling.get_noise(1, 48, 32, 3, torch.device("cpu"), torch.float32, 42)
    small = torch.randn(1, 4, 3, 6, 10, generator=torch.Generator().manual_seed(3))
    tensors["resize.small"] = small
    for name, size in (("up", (12, 20)), ("odd", (9, 12)), ("down", (3, 5))):
        tensors[f"resize.{name}"] = torch.nn.functional.interpolate(small[0].transpose(0, 1), size=size, mode="bilinear").transpose(0, 1)[None]
    schedules = [dict(steps=s, tokens=n, frames=f, alpha=a) for s, n, f, a in (
        (50, 252, 33, None), (50, 2304, 33, None), (50, 576, 32, None), (7, 2304, 1, None), (30, 256, 1, 5.5), (1000, 6, 3, None))]
    for i, s in enumerate(schedules):
        tensors[f"schedule{i}"] = torch.tensor(sampling.get_schedule(s["steps"], s["tokens"], s["frames"], shift_alpha=s["alpha"]))
    sizes = [[resolution, name, training, *aspect.get_image_size(resolution, name, training)]
             for resolution in ("256px", "768px", "512px", "1024px", "480p", "720p") for training in (False, True)
             for name in aspect.get_aspect_ratios_dict(aspect.get_num_pexels_from_name(resolution), training)]
    prompts = [[p, inference.add_motion_score_to_text(inference.add_fps_info_to_text([p], fps=24), "4")[0]] for p in PROMPTS]
    # Names of safetensors metadata are texts alone.
    facts = dict(cases=cases, schedules=schedules, sizes=sizes, prompts=prompts)
    save_file({k: v.contiguous() for k, v in tensors.items()}, f"{folder}/video_sampling.safetensors",
              metadata={"config": json.dumps(facts)})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
