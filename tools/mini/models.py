"""The networks of kinora-mini: the reference classes of diffusers and transformers, small."""
import random

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

TOKENS = 48  # of a prompt, padding included


def make_autoencoder():
    return AutoencoderDC(
        in_channels=3, latent_channels=32, attention_head_dim=32,
        encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(32, 64, 128, 128, 128), decoder_block_out_channels=(32, 64, 128, 128, 128),
        encoder_layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(2, 2, 2, 2, 2),
        encoder_qkv_multiscales=((), (), (), (5,), (5,)), decoder_qkv_multiscales=((), (), (), (5,), (5,)),
        upsample_block_type="interpolate", downsample_block_type="Conv")


def make_transformer():
    return SanaTransformer2DModel(
        in_channels=32, out_channels=32, num_attention_heads=9, attention_head_dim=32, num_layers=10,
        num_cross_attention_heads=4, cross_attention_head_dim=72, cross_attention_dim=288, caption_channels=192,
        mlp_ratio=2.5, sample_size=16, patch_size=1, qk_norm="rms_norm_across_heads", interpolation_scale=1.0)


def make_text_encoder(vocabulary):
    return Gemma2Model(Gemma2Config(
        vocab_size=vocabulary, hidden_size=192, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=48, query_pre_attn_scalar=48, sliding_window=16, max_position_embeddings=512,
        attn_logit_softcapping=50.0, pad_token_id=0, eos_token_id=1, bos_token_id=2, attn_implementation="eager"))


def make_tokenizer(prompts, vocabulary=1400):
    """A BPE of Gemma's kind: spaces become U+2581, unknown characters become bytes, <bos> goes first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [f"<0x{b:02X}>" for b in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    from tokenizers import Regex, pre_tokenizers
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581"), "merged_with_next")  # so that no piece spans words
    trained.train_from_iterator(prompts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=specials + pieces,
                                                             initial_alphabet=[chr(c) for c in range(33, 127)] + ["\u2581"],
                                                             show_progress=False))
    import json
    state = json.loads(trained.to_str())
    # The bytes and control pieces are ordinary vocabulary, as in Gemma's file; only the four control tokens are special.
    state["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in specials]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
                                   unk_token="<unk>", padding_side="right")


def seed_everything(seed):
    random.seed(seed)
    torch.manual_seed(seed)
