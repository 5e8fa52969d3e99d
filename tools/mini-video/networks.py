"""The networks of kinora-mini-video, with the tensor names of Open-Sora 2.0's files: the causal 3D autoencoder of
HunyuanVideo, the transformer (MMDiT) and, from transformers, the encoders T5 and CLIP."""
import math

import torch
import torch.nn.functional as F
from torch import nn

AUTOENCODER = dict(block_out_channels=[32, 32, 64, 96], layers_per_block=1, norm_num_groups=8, latent_channels=16,
                   time_compression_ratio=4, spatial_compression_ratio=8)
TRANSFORMER = dict(in_channels=64, patch_size=2, hidden_size=288, num_heads=4, mlp_ratio=3.5, depth=2, depth_single_blocks=5,
                   axes_dim=[16, 28, 28], theta=10000, qkv_bias=True, guidance_embed=False, cond_embed=True, fused_qkv=False,
                   use_liger_rope=True, context_in_dim=192, vec_in_dim=192)
TOKENS, CLIP_TOKENS = 32, 40  # of a prompt, padding included, for T5 and for CLIP


# The autoencoder. Films are channels last, [batch, frames, height, width, channels].

class NormSilu(torch.autograd.Function):
    """silu(group norm) or the norm alone, over all of a film; statistics in float32, few passes over memory."""

    mixed = True  # whether a kernel may read bfloat16 and float32 at once

    @staticmethod
    def line(x, slope, offset):
        shape = (x.shape[0], 1, 1, 1, x.shape[-1])
        slope, offset = slope.view(shape), offset.view(shape)
        if NormSilu.mixed:
            return torch.addcmul(offset, x, slope, out=torch.empty_like(x))
        return torch.addcmul(offset.to(x.dtype), x, slope.to(x.dtype))

    @staticmethod
    def scales(x, weight, bias, groups, eps):
        n, channels = x.shape[0], x.shape[-1]
        flat = x.reshape(n, -1, channels)
        count = flat.shape[1] * (channels // groups)
        by_group = lambda v: v.view(n, groups, -1).sum(2, keepdim=True) / count
        mean = by_group(flat.sum(1, dtype=torch.float32))
        square = by_group(torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32).square())
        inverse = torch.rsqrt((square - mean.square()).clamp(min=0) + eps)  # [n, groups, 1]
        spread = lambda v: v.expand(n, groups, channels // groups).reshape(n, channels)
        mean, inverse = spread(mean), spread(inverse)
        a = inverse * weight
        return mean, inverse, a, bias - mean * a, count

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, silu):
        mean, inverse, a, b, count = NormSilu.scales(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, a, b, mean, inverse)
        ctx.groups, ctx.count, ctx.silu = groups, count, silu
        y = NormSilu.line(x, a, b)
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx, grad):
        x, weight, a, b, mean, inverse = ctx.saved_tensors
        n, channels = x.shape[0], x.shape[-1]
        if ctx.silu:
            grad = torch.ops.aten.silu_backward(grad.contiguous(), NormSilu.line(x, a, b))
        flat, flat_x = grad.reshape(n, -1, channels), x.reshape(n, -1, channels)
        total = flat.sum(1, dtype=torch.float32)  # [n, channels]
        product = (flat * flat_x).sum(1, dtype=torch.float32)
        along = (product - mean * total) * inverse  # sum of gradient times normalised x
        by_group = lambda v: (v * weight).view(n, ctx.groups, -1).sum(2, keepdim=True).expand(
            n, ctx.groups, channels // ctx.groups).reshape(n, channels) / ctx.count
        mean_grad, mean_along = by_group(total), by_group(along)
        slope = -inverse * inverse * mean_along
        offset = -inverse * mean_grad - slope * mean
        dx = NormSilu.line(x, slope, offset) + NormSilu.line(grad, a, torch.zeros_like(a))
        return dx, along.sum(0), total.sum(0), None, None, None


class Norm(nn.GroupNorm):
    def forward(self, x, silu=True):
        return NormSilu.apply(x, self.weight, self.bias, self.num_groups, self.eps, silu)


class Stack(torch.autograd.Function):
    """Of each frame that a causal convolution gives out the three that it looks at, side by side in the channels, the
    border repeated: [n, t, h, w, c] -> [n, (t - 1) // stride + 1, h + 2, w + 2, 3·c + more], zeros in the `more`. Of a
    single frame it is there once."""

    @staticmethod
    def taps(frames, stride):
        """For each of the three: frames given out that look before the beginning, the first frame the others look at."""
        if frames == 1:
            return [(0, 0, 0)]
        before = [-(-(2 - k) // stride) for k in range(3)]
        return [(k, min(b, (frames - 1) // stride + 1), stride * b + k - 2) for k, b in enumerate(before)]

    @staticmethod
    def forward(ctx, x, stride, more):
        n, t, h, w, c = x.shape
        ctx.stride, ctx.shape, after, taps = stride, x.shape, (t - 1) // stride + 1, Stack.taps(t, stride)
        y = (x.new_zeros if more else x.new_empty)(n, after, h + 2, w + 2, len(taps) * c + more)
        for k, before, first in taps:
            part = y[:, :, 1:-1, 1:-1, k * c:(k + 1) * c]
            part[:, :before] = x[:, :1]
            part[:, before:] = x[:, first::stride][:, :after - before]
        y[:, :, 0, 1:-1], y[:, :, -1, 1:-1] = y[:, :, 1, 1:-1], y[:, :, -2, 1:-1]
        y[:, :, :, 0], y[:, :, :, -1] = y[:, :, :, 1], y[:, :, :, -2]
        return y

    @staticmethod
    def backward(ctx, grad):
        n, t, h, w, c = ctx.shape
        # The gradient is the convolution's own and nobody else's, so that its border may be added where it came from.
        grad[:, :, :, 1] += grad[:, :, :, 0]
        grad[:, :, :, -2] += grad[:, :, :, -1]
        grad[:, :, 1, 1:-1] += grad[:, :, 0, 1:-1]
        grad[:, :, -2, 1:-1] += grad[:, :, -1, 1:-1]
        if t == 1:
            return grad[:, :, 1:-1, 1:-1, :c], None, None
        dx = grad.new_zeros(ctx.shape)
        for k, before, first in Stack.taps(t, ctx.stride):
            part = grad[:, :, 1:-1, 1:-1, k * c:(k + 1) * c]
            dx[:, :1] += part[:, :before].sum(1, keepdim=True)
            dx[:, first::ctx.stride][:, :part.shape[1] - before] += part[:, before:]
        return dx, None, None


class CausalConv(nn.Module):
    """A convolution that looks at no later frame; the border is repeated. `stacked`: as one 2D convolution over three
    frames side by side in the channels, the faster way on some GPUs."""

    stacked = False

    def __init__(self, before, after, kernel=3, stride=(1, 1, 1)):
        super().__init__()
        self.conv = nn.Conv3d(before, after, kernel, stride)

    def forward(self, x):
        weight, bias, (time, space, _) = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype), self.conv.stride
        if weight.shape[2] == 1:
            return F.linear(x, weight.flatten(1), bias)
        if not self.stacked and x.shape[1] > 1:
            x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
            x = torch.cat([x[:, :, :, :1], x, x[:, :, :, -1:]], 3)
            x = torch.cat([x[:, :1], x[:, :1], x], 1)
            return F.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, self.conv.stride).permute(0, 2, 3, 4, 1)
        weight = weight.sum(2) if x.shape[1] == 1 else weight.permute(0, 2, 1, 3, 4).flatten(1, 2)
        # Tensor cores want channels in eights.
        more, after = -weight.shape[1] % 8, weight.shape[0]
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, more, 0, -after % 8)), F.pad(bias, (0, -after % 8))
        x = Stack.apply(x, time, more)
        n, t = x.shape[:2]
        y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight.contiguous(memory_format=torch.channels_last), bias, space)
        y = y.permute(0, 2, 3, 1)
        return y.reshape(n, t, *y.shape[1:])[..., :after]


@torch.no_grad()
def inflate(module):
    """What was trained on pictures becomes a model of films that treats each frame as such a picture."""
    for layer in module.modules():
        if isinstance(layer, CausalConv) and layer.conv.weight.shape[2] == 3:
            weight = layer.conv.weight
            weight[:, :, 2] = weight.sum(2)
            weight[:, :, :2] = 0


class ResBlock(nn.Module):
    def __init__(self, before, after, groups):
        super().__init__()
        self.norm1, self.conv1 = Norm(groups, before, 1e-6), CausalConv(before, after)
        self.norm2, self.conv2 = Norm(groups, after, 1e-6), CausalConv(after, after)
        self.conv_shortcut = CausalConv(before, after, 1) if before != after else None

    def forward(self, x):
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return y + (self.conv_shortcut(x) if self.conv_shortcut else x)


class FrameAttention(nn.Module):
    """One head over all tokens of a film; a token sees its own frame and those before."""

    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = Norm(groups, channels, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        n, t, h, w, channels = x.shape
        y = self.group_norm(x, silu=False).reshape(n, 1, t * h * w, channels)
        project = lambda layer, v: F.linear(v, layer.weight.to(v.dtype), layer.bias.to(v.dtype))
        frame = torch.arange(t * h * w, device=x.device) // (h * w)
        mask = frame[:, None] >= frame[None] if t > 1 else None
        y = F.scaled_dot_product_attention(project(self.to_q, y), project(self.to_k, y), project(self.to_v, y), attn_mask=mask)
        return x + project(self.to_out[0], y).reshape(x.shape)


class MidBlock(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Resampler(nn.Module):
    def __init__(self, channels, stride=(1, 1, 1)):
        super().__init__()
        self.conv = CausalConv(channels, channels, 3, stride)


class Block(nn.Module):
    def __init__(self, channels, layers, groups):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(a, b, groups) for a, b in zip(channels, channels[1:])])
        assert len(self.resnets) == layers


class Half(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, config, decoder):
        super().__init__()
        channels, groups, self.decoder = config["block_out_channels"], config["norm_num_groups"], decoder
        levels, latent = len(channels), config["latent_channels"]
        order = channels[::-1] if decoder else channels
        layers = config["layers_per_block"] + decoder
        self.conv_in = CausalConv(latent if decoder else 3, order[0])
        blocks, before = [], order[0]
        for i, width in enumerate(order):
            block = Block([before] + [width] * layers, layers, groups)
            if i + 1 < levels:
                time = 2 if i + 3 >= levels else 1  # the two steps before the innermost level, counted from either end
                block.time = time
                resampler = Resampler(width) if decoder else Resampler(width, (time, 2, 2))
                setattr(block, "upsamplers" if decoder else "downsamplers", nn.ModuleList([resampler]))
            blocks.append(block)
            before = width
        setattr(self, "up_blocks" if decoder else "down_blocks", nn.ModuleList(blocks))
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = Norm(groups, order[-1], 1e-6)
        self.conv_out = CausalConv(order[-1], 3 if decoder else 2 * latent)

    def forward(self, x):
        x = self.conv_in(x)
        if self.decoder:
            x = self.mid_block(x)
        for block in self.up_blocks if self.decoder else self.down_blocks:
            for layer in block.resnets:
                x = layer(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0].conv(x)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0].conv(upsample(x, block.time))
        if not self.decoder:
            x = self.mid_block(x)
        return self.conv_out(self.conv_norm_out(x))


def upsample(x, time):
    """Nearest neighbour; the first frame stays one frame."""
    if time == 2 and x.shape[1] > 1:
        x = torch.cat([x[:, :1], x[:, 1:].repeat_interleave(2, 1)], 1)
    n, t, h, w, c = x.shape
    return x[:, :, :, None, :, None].expand(n, t, h, 2, w, 2, c).reshape(n, t, 2 * h, 2 * w, c)


class Autoencoder(nn.Module):
    def __init__(self, config=AUTOENCODER):
        super().__init__()
        self.encoder, self.decoder = Half(config, False), Half(config, True)
        latent = config["latent_channels"]
        self.quant_conv, self.post_quant_conv = nn.Conv3d(2 * latent, 2 * latent, 1), nn.Conv3d(latent, latent, 1)
        for layer in self.modules():
            if isinstance(layer, CausalConv):
                taps = layer.conv.weight.shape[2]  # summed up where a picture is all there is
                nn.init.normal_(layer.conv.weight, std=(layer.conv.weight[0, :, 0].numel() * taps) ** -0.5)
                nn.init.zeros_(layer.conv.bias)
        for block in self.modules():
            if isinstance(block, ResBlock):  # almost the identity to begin with
                block.conv2.conv.weight.data.mul_(0.1)
        nn.init.constant_(self.quant_conv.bias.data[latent:], -5.0)  # little noise

    def moments(self, film):
        """Film [batch, frames, height, width, 3] in [-1, 1] -> mean and log variance, each [batch, t, h, w, 16]."""
        m = self.encoder(film)
        return F.linear(m, self.quant_conv.weight.flatten(1).to(m.dtype), self.quant_conv.bias.to(m.dtype)).chunk(2, -1)

    def decode(self, z):
        return self.decoder(F.linear(z, self.post_quant_conv.weight.flatten(1).to(z.dtype), self.post_quant_conv.bias.to(z.dtype)))


# The transformer.

class Embedder(nn.Module):
    def __init__(self, before, width):
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(before, width), nn.Linear(width, width)

    def forward(self, x):
        return self.out_layer(F.silu(self.in_layer(x)))


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.scale, 1e-6).to(x.dtype)


class HeadNorms(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query_norm, self.key_norm = Scale(width), Scale(width)


class Modulation(nn.Module):
    def __init__(self, width, parts):
        super().__init__()
        self.parts, self.lin = parts, nn.Linear(width, parts * width)

    def forward(self, vec):
        return self.lin(vec)[:, None].chunk(self.parts, -1)


def modulated(x, shift, scale):
    return (1 + scale) * F.layer_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype) + shift


def turn(x, cos, sin):
    """x [batch, heads, tokens, width]: the first half of a head is turned against the second."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def attend(q, k, v, cos, sin):
    y = F.scaled_dot_product_attention(turn(q, cos, sin), turn(k, cos, sin), v)
    return y.transpose(1, 2).flatten(2)


def to_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Stream(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.norm = HeadNorms(width // heads)

    def forward(self, x):
        q, k, v = to_heads(self.q_proj(x), self.heads), to_heads(self.k_proj(x), self.heads), to_heads(self.v_proj(x), self.heads)
        return self.norm.query_norm(q), self.norm.key_norm(k), v


def mlp(width, hidden):
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class DoubleBlock(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.img_mod, self.txt_mod = Modulation(width, 6), Modulation(width, 6)
        self.img_attn, self.txt_attn = Stream(width, heads), Stream(width, heads)
        self.img_mlp, self.txt_mlp = mlp(width, hidden), mlp(width, hidden)

    def forward(self, img, txt, vec, cos, sin):
        i, t = self.img_mod(vec), self.txt_mod(vec)
        a, b = self.txt_attn(modulated(txt, t[0], t[1])), self.img_attn(modulated(img, i[0], i[1]))
        y = attend(torch.cat([a[0], b[0]], 2), torch.cat([a[1], b[1]], 2), torch.cat([a[2], b[2]], 2), cos, sin)
        n = txt.shape[1]
        img = img + i[2] * self.img_attn.proj(y[:, n:])
        img = img + i[5] * self.img_mlp(modulated(img, i[3], i[4]))
        txt = txt + t[2] * self.txt_attn.proj(y[:, :n])
        return img, txt + t[5] * self.txt_mlp(modulated(txt, t[3], t[4]))


class SingleBlock(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        self.modulation, self.norm = Modulation(width, 3), HeadNorms(width // heads)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_mlp, self.linear2 = nn.Linear(width, width + hidden), nn.Linear(width + hidden, width)

    def forward(self, x, vec, cos, sin):
        shift, scale, gate = self.modulation(vec)
        h = modulated(x, shift, scale)
        v, wide = self.v_mlp(h).split([h.shape[-1], self.v_mlp.out_features - h.shape[-1]], -1)
        q, k, v = to_heads(self.q_proj(h), self.heads), to_heads(self.k_proj(h), self.heads), to_heads(v, self.heads)
        y = attend(self.norm.query_norm(q), self.norm.key_norm(k), v, cos, sin)
        return x + gate * self.linear2(torch.cat([y, F.gelu(wide, approximate="tanh")], -1))


class FinalLayer(nn.Module):
    def __init__(self, width, after):
        super().__init__()
        self.linear, self.adaLN_modulation = nn.Linear(width, after), nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))

    def forward(self, x, vec):
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, -1)
        return self.linear(modulated(x, shift, scale))


def time_features(t):
    """t [batch] -> [batch, 256]: cosines, then sines, of 1000 t at 128 frequencies."""
    angles = 1000 * t[:, None] * torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
    return torch.cat([angles.cos(), angles.sin()], -1)


def rope_tables(config, text, frames, rows, columns, device=None):
    """Cosines and sines [text + image tokens, half a head]; text is not turned."""
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=device) for n in (frames, rows, columns)), indexing="ij")
    parts = []
    for place, width in zip(places, config["axes_dim"]):
        omega = 1 / config["theta"] ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
        parts.append(place.reshape(-1, 1) * omega)
    angles = F.pad(torch.cat(parts, 1), (0, 0, text, 0))
    return angles.cos(), angles.sin()


class Transformer(nn.Module):
    def __init__(self, config=TRANSFORMER):
        super().__init__()
        width, heads, channels = config["hidden_size"], config["num_heads"], config["in_channels"]
        hidden = int(width * config["mlp_ratio"])
        self.config = config
        self.img_in, self.txt_in = nn.Linear(channels, width), nn.Linear(config["context_in_dim"], width)
        self.cond_in = nn.Linear(channels + config["patch_size"] ** 2, width)
        self.time_in, self.vector_in = Embedder(256, width), Embedder(config["vec_in_dim"], width)
        self.double_blocks = nn.ModuleList([DoubleBlock(width, heads, hidden) for _ in range(config["depth"])])
        self.single_blocks = nn.ModuleList([SingleBlock(width, heads, hidden) for _ in range(config["depth_single_blocks"])])
        self.final_layer = FinalLayer(width, channels)
        for layer in self.modules():  # every block begins as the identity
            if isinstance(layer, Modulation):
                nn.init.zeros_(layer.lin.weight), nn.init.zeros_(layer.lin.bias)
        for layer in (self.final_layer.linear, self.final_layer.adaLN_modulation[1]):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)

    def forward(self, img, cond, txt, y_vec, timesteps, tables):
        """img [batch, tokens, 64] and cond [batch, tokens, 68], packed -> velocity, as img."""
        vec = F.silu(self.time_in(time_features(timesteps)) + self.vector_in(y_vec))
        img, txt = self.img_in(img) + self.cond_in(cond), self.txt_in(txt)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, *tables)
        x, n = torch.cat([txt, img], 1), txt.shape[1]
        for block in self.single_blocks:
            x = block(x, vec, *tables)
        return self.final_layer(x[:, n:], vec)


def pack(z, patch=2):
    """[batch, t, h, w, channels] -> [batch, tokens, channels·patch²], a token's channels before its places."""
    n, t, h, w, c = z.shape
    return z.reshape(n, t, h // patch, patch, w // patch, patch, c).permute(0, 1, 2, 4, 6, 3, 5).reshape(n, t * h * w // patch**2, -1)


def unpack(x, frames, height, width, patch=2):
    n, channels = x.shape[0], x.shape[2] // patch**2
    x = x.reshape(n, frames, height // patch, width // patch, channels, patch, patch)
    return x.permute(0, 1, 2, 5, 3, 6, 4).reshape(n, frames, height, width, channels)


# The text encoders.

def make_t5(vocabulary):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(
        vocab_size=vocabulary, d_model=192, d_kv=48, d_ff=384, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu",
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1, is_encoder_decoder=False, use_cache=False))


def make_clip(vocabulary):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=192, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1))


class Generator(nn.Module):
    """Text encoders and transformer, trained together."""

    def __init__(self, t5_vocabulary, clip_vocabulary):
        super().__init__()
        self.t5, self.clip, self.transformer = make_t5(t5_vocabulary), make_clip(clip_vocabulary), Transformer()

    def load(self, state):
        """load_state_dict, whether or not transformers puts "text_model." before CLIP's names."""
        plain = lambda name: name.replace("clip.text_model.", "clip.")
        own = {plain(name): name for name in self.state_dict()}
        self.load_state_dict({own.get(plain(name), name): value for name, value in state.items()})

    def encode(self, t5_ids, clip_ids):
        """Ids [batch, TOKENS] and [batch, CLIP_TOKENS] -> hidden states of T5, which sees the padding too, and CLIP's state at the end of the text."""
        return self.t5(t5_ids).last_hidden_state, self.clip(clip_ids).pooler_output
