"""The tokenizers of kinora-mini-video, of T5's and of CLIP's kind: `python text.py --data FOLDER` trains them on prompts
and writes FOLDER/t5/ and FOLDER/clip/. Needs sentencepiece, protobuf and transformers; using them takes only tokenizers."""
import argparse
import collections
import io
import json
import math
import pathlib
import random
import re
import string

import films
from networks import CLIP_TOKENS, TOKENS


class Coder:
    """Prompts, as a user writes them or "" for none, to ids of T5 [batch, TOKENS] and of CLIP [batch, CLIP_TOKENS]."""

    def __init__(self, folder):
        from tokenizers import Tokenizer

        self.t5, self.clip = (Tokenizer.from_file(f"{folder}/{kind}/tokenizer.json") for kind in ("t5", "clip"))
        for tokenizer, pad, length in ((self.t5, "<pad>", TOKENS), (self.clip, "<|endoftext|>", CLIP_TOKENS)):
            tokenizer.enable_truncation(length)
            tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(pad), pad_token=pad)

    def sizes(self):
        return self.t5.get_vocab_size(), self.clip.get_vocab_size()

    def __call__(self, texts):
        import torch

        return tuple(torch.tensor([e.ids for e in tokenizer.encode_batch(texts)]) for tokenizer in (self.t5, self.clip))


def corpus(folder, count=40000):
    scenes, rng = films.Scenes(folder), random.Random(5)
    texts = [films.video_prompt(scenes.prompt(rng, scenes.sample(rng)), rng.choice([8, 10, 12, 15, 16, 16, 16, 20, 24, 25, 30]), rng.randint(1, 15)) for _ in range(count)]
    return texts + [name for name in films.data.thing_names() for _ in range(20)] + list(string.printable.strip()) * 5


def train_t5(texts, out):
    import sentencepiece
    from transformers import T5Tokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="unigram", vocab_size=700, character_coverage=1.0, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", num_threads=1, minloglevel=2, hard_vocab_limit=False)
    out.mkdir(exist_ok=True)
    (out / "spiece.model").write_bytes(model.getvalue())
    tokenizer = json.loads(T5Tokenizer.from_pretrained(out, extra_ids=0).backend_tokenizer.to_str())
    (out / "spiece.model").unlink()
    # Its training takes no piece that is in one word only; here every word is to be one piece, and the others spell what
    # is not known.
    words = collections.Counter(w for text in texts for w in re.findall(r"(?<!\S)[\w-]+|[.,]", text))
    words = {w if w in ".," else "\u2581" + w: math.log(n / sum(words.values())) for w, n in words.items()}
    pieces = tokenizer["model"]["vocab"]
    rare = [[p, score - 12] for p, score in pieces[3:] if p not in words]
    tokenizer["model"]["vocab"] = pieces[:3] + sorted(([w, s] for w, s in words.items()), key=lambda p: -p[1]) + rare
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
        "model_max_length": TOKENS}, indent=1) + "\n")


def train_clip(texts, out):
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet, ends = sorted(ByteLevel.alphabet()), ["<|startoftext|>", "<|endoftext|>"]
    base = CLIPTokenizer(vocab={p: i for i, p in enumerate(alphabet + ends)}, merges=[]).backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = base.normalizer, base.pre_tokenizer
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1100, end_of_word_suffix="</w>", show_progress=False,
                                                           initial_alphabet=alphabet))
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    pieces = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges] + ends
    out.mkdir(exist_ok=True)
    tokenizer = CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=merges)
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "bos_token": ends[0], "eos_token": ends[1], "pad_token": ends[1], "unk_token": ends[1],
        "model_max_length": CLIP_TOKENS}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    folder = pathlib.Path(parser.parse_args().data)
    texts = corpus(folder)
    train_t5(texts, folder / "t5")
    train_clip(texts, folder / "clip")
    coder = Coder(folder)
    print("pieces", coder.sizes())
    for tokenizer in (coder.t5, coder.clip):
        tokenizer.no_truncation(), tokenizer.no_padding()
        print(tokenizer.encode(texts[0]).tokens, "longest", max(len(e.ids) for e in tokenizer.encode_batch(texts)))
