"""Goldens of the samplers: python tests/golden/make_schedulers.py tests/golden

A fake model v = 0.7 sin(3x + t/1000) - 0.2 x in float32 drives each scheduler of diffusers over a grid of settings. Per
setting the timesteps and the sample after every step are saved; for SCM also the noise that it drew.
"""
import sys

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler
from safetensors.torch import save_file

START = torch.randn(8, generator=torch.Generator().manual_seed(7))


def model(x, t):
    return 0.7 * torch.sin(3 * x + t / 1000) - 0.2 * x


def trace(scheduler, scale_t=1.0):
    x, samples = START.clone(), []
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.float() * scale_t), t, x, return_dict=False)[0]
        samples.append(x)
    return {"timesteps": scheduler.timesteps.float(), "samples": torch.stack(samples)}


def main(folder):
    out = {}
    for n in (1, 2, 3, 5, 10, 14, 15, 20, 28):
        for shift in (1.0, 3.0, 6.0, 8.0):
            for name, extra in {"default": {}, "order1": dict(solver_order=1), "heun": dict(solver_type="heun"),
                                "sigma_min": dict(final_sigmas_type="sigma_min"),
                                "second_to_the_end": dict(final_sigmas_type="sigma_min", lower_order_final=False),
                                "euler_at_final": dict(final_sigmas_type="sigma_min", euler_at_final=True, lower_order_final=False)}.items():
                s = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **extra)
                s.set_timesteps(n)
                for key, value in trace(s).items():
                    out[f"dpm/{name}/{n}/{shift:g}/{key}"] = value
            s = FlowMatchEulerDiscreteScheduler(shift=shift)
            s.set_timesteps(n)
            for key, value in trace(s).items():
                out[f"euler/default/{n}/{shift:g}/{key}"] = value
    for n in (1, 2, 3, 4):
        s = SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
        s.set_timesteps(n, max_timesteps=1.57080, intermediate_timesteps=1.3 if n == 2 else None)
        g, x, samples, noise = torch.Generator().manual_seed(n), START * 0.5, [], []
        replay = torch.Generator().manual_seed(n)
        for t in s.timesteps[:-1]:
            noise.append(torch.randn(8, generator=replay))
            x, clean = s.step(model(x, t), t, x, generator=g, return_dict=False)
            samples.append(torch.stack([x, clean]))
        out |= {f"scm/default/{n}/0/timesteps": s.timesteps, f"scm/default/{n}/0/samples": torch.stack(samples),
                f"scm/default/{n}/0/noise": torch.stack(noise)}
    save_file({"start": START} | {k: v.contiguous() for k, v in out.items()}, f"{folder}/schedulers.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
