"""Goldens of the text encoders T5 and CLIP: small random modules of transformers, in the layout of make_models.py.

    python tests/golden/make_text_encoders.py tests/golden

Besides the float32 results there are those of the same module in bfloat16 ("out.*_bf16"): ours in bfloat16 may be no
further from float32. t5_buckets.safetensors holds the bucket of each distance from -600 to 600.
"""
import copy
import json
import sys

import torch
from make_models import randomise
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

T5 = dict(vocab_size=90, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu",
          relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6)
CLIP = dict(vocab_size=90, hidden_size=32, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=24, layer_norm_eps=1e-5, hidden_act="quick_gelu", eos_token_id=2, bos_token_id=88,
            pad_token_id=1)


def save(folder, name, weights, config, inputs, outputs):
    tensors = {f"w.{k}": v.contiguous() for k, v in weights.items()}
    tensors |= {f"in.{k}": v.contiguous() for k, v in inputs.items()}
    tensors |= {f"out.{k}": v.float().contiguous() for k, v in outputs.items()}
    save_file(tensors, f"{folder}/{name}.safetensors", {"config": json.dumps(config)})
    print(name, {k: (tuple(v.shape), round(float(v.abs().max()), 3)) for k, v in outputs.items()})


def t5(folder, name, seed, tokens, embedding="shared.weight", **extra):
    config = T5 | extra
    model = randomise(T5EncoderModel(T5Config(**config, attn_implementation="eager")), seed)
    g = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(0, 90, (2, tokens), generator=g)
    mask = torch.ones(2, tokens, dtype=torch.long)
    mask[1, tokens // 2:] = 0
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(config["num_heads"] ** 0.5)
        outputs = dict(hidden=model(ids).last_hidden_state,
                       # What stands at padding is no result: only kept tokens are compared.
                       masked=model(ids, attention_mask=mask).last_hidden_state * mask[..., None],
                       hidden_bf16=copy.deepcopy(model).bfloat16()(ids).last_hidden_state)
    weights = {k: v for k, v in model.state_dict().items() if k not in ("shared.weight", "encoder.embed_tokens.weight")}
    weights[embedding] = model.shared.weight.detach()
    save(folder, name, weights, config, dict(ids=ids.int(), mask=mask.float()), outputs)


def clip(folder, name, seed, ids, prefix, **extra):
    config = CLIP | extra
    model = randomise(CLIPTextModel(CLIPTextConfig(**config, attn_implementation="eager")), seed)
    with torch.no_grad():
        out, half = model(ids), copy.deepcopy(model).bfloat16()(ids)
    weights = {prefix + k: v for k, v in model.state_dict().items()}
    save(folder, name, weights, config, dict(ids=ids.int()),
         dict(hidden=out.last_hidden_state, pooled=out.pooler_output, hidden_bf16=half.last_hidden_state))


def buckets(folder):
    distances = torch.arange(-600, 601)
    tables = {f"{n}_{far}": T5Attention._relative_position_bucket(distances, True, n, far).int()
              for n, far in [(32, 128), (32, 64), (16, 40), (8, 20), (64, 300), (128, 1000), (4, 2), (20, 77)]}
    save_file(tables, f"{folder}/t5_buckets.safetensors")


def main(folder):
    buckets(folder)
    t5(folder, "t5_gated", 210, 150)
    t5(folder, "t5_relu", 220, 37, d_kv=12, num_heads=3, feed_forward_proj="relu", relative_attention_num_buckets=8,
       relative_attention_max_distance=20, embedding="encoder.embed_tokens.weight")
    t5(folder, "t5_gated_silu", 230, 21, feed_forward_proj="gated-silu", relative_attention_num_buckets=16,
       relative_attention_max_distance=12, layer_norm_epsilon=1e-5)
    t5(folder, "t5_gelu", 240, 5, feed_forward_proj="gelu")
    ids = torch.randint(3, 87, (3, 24), generator=torch.Generator().manual_seed(250))
    ids[:, 0] = 88
    ids[0, 10:] = 89  # the highest id, again as padding
    ids[1, 23] = 89
    clip(folder, "clip_quick_gelu", 260, ids, "text_model.")
    ids = ids[:, :17].clone()
    ids[0, 10:] = 61
    ids[1, 5] = 61
    ids[2][ids[2] == 61] = 60  # none at all
    clip(folder, "clip_gelu", 270, ids, "", hidden_act="gelu", eos_token_id=61, layer_norm_eps=1e-4)


if __name__ == "__main__":
    main(sys.argv[1])
