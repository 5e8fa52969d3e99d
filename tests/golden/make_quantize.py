"""Writes quantize.safetensors: PyTorch's conversions to and from float8_e4m3fn, and a product of int8 by torch._int_mm with a scale
for each row of both sides. The only seed is torch.manual_seed(0)."""
import pathlib

import torch
from safetensors.torch import save_file


def quantized(x):
    scale = x.abs().amax(1, keepdim=True) / 127
    return (x * (127 / x.abs().amax(1, keepdim=True))).round().clamp(-127, 127).to(torch.int8), scale


def main():
    torch.manual_seed(0)
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn)
    x, w = torch.randn(40, 96), torch.randn(24, 96)
    (xq, xs), (wq, ws) = quantized(x), quantized(w)
    product = torch._int_mm(xq, wq.t().contiguous()).float() * xs * ws.t()
    save_file({"e4m3_of_bf16": every.float().to(torch.float8_e4m3fn).view(torch.uint8), "value_of_e4m3": codes.float(), "x": x, "w": w,
               "x_codes": xq, "x_scale": xs.flatten(), "w_codes": wq, "w_scale": ws.flatten(), "product": product},
              pathlib.Path(__file__).parent / "quantize.safetensors")


if __name__ == "__main__":
    main()
