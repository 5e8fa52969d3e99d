"""Goldens of the tokenizers of T5 and CLIP, for tests/text/text_tokenizer_test.cpp.

    python make_text_tokenizers.py                    trains small vocabularies, runs transformers 5 on the strings
    python make_text_tokenizers.py slow               the same strings through T5's tokenizer of transformers 4.51 and
                                                      through sentencepiece 0.2.0 (0.2.3 decides otherwise between
                                                      equally good splits)
    python make_text_tokenizers.py clip FOLDER        through CLIP's own vocabulary (FOLDER: vocab.json, merges.txt)
    python make_text_tokenizers.py clip-files GZ DIR  writes vocab.json and merges.txt from OpenAI's list of merges,
                                                      bpe_simple_vocab_16e6.txt.gz as the package open_clip_torch has it

The strings are those of tokenizer_strings.bin and of text_strings.bin (u32 length, UTF-8 bytes). A result is one u32 a
string: the FNV-1a hash over the ids as little-endian u32, its halves xored.
"""
import collections
import gzip
import io
import json
import pathlib
import random
import struct
import sys

HERE = pathlib.Path(__file__).parent
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SPECIALS = [BOS, EOS, "<|STARTOFTEXT|>", "<|EndOfText|>", "<|endoftext|", "</s>", "<pad>", "<unk>", "<s>", "<extra_id_0>",
            "<extra_id_7>", "<extra_id_99>", "<extra_id_100>", "<extra_id_", "</S>", "<0x41>", "▁", "▁▁"]
WORDS = ("it's they're I'VE don't we'll he'd I'm ROCK'N'ROLL o'clock 's 'S 'RE ''s '' x's' 2nd 1,000 3½ ½ ² Ⅷ ⅷ ① ㎏ ﬁ ﬃ Ａｂｃ １２ "
         "ﾊﾟ が ｶﾞ 각 각 Å Å Å ç ñ ệ Ǖ İstanbul ΣΑΣ ὈΔΥΣΣΕΎΣ ß ẞ ŉ ǆ Ǆ … ‥ № ™ ℡ ٣ ४ 🄰 𝒜 𝟘 Ⓐ ﷺ ﷲ ́ ̂̈ a≠b ≠ ≮ क़ ড় שׁ יִ "
         "́a \u0f73 \u0344 \u1e9b\u0323 \u2126 \u212a \u0958 \u2adc \ufb1d \U0001d15e 가 각 \u1100\u1161\u11a8 \u1100\u1161").split(" ")
SPACES = [" ", "  ", "\n", "\t", "\u3000", "\u00a0", "\u2009", "\u200b", "\u200d", "\ufeff", "\x1c", "\x1f", "\x85", "\u2028", "\r\n"]


def own_strings():
    random.seed(31)
    marks = [chr(c) for c in [*range(0x300, 0x315), 0x327, 0x338, 0x345, 0x3099, 0x309a, 0x5b4, 0x5bc, 0x64b, 0x93c, 0xe38, 0x200d]]
    strings = SPECIALS + WORDS + [w + m for w in "aeÅñ①ﬁｶ™½がक☃ͅ" for m in marks] + [m + "a" for m in marks]
    strings += [chr(c) for c in [*range(0x2000, 0x2070), *range(0x2100, 0x2150), *range(0x3000, 0x3020), *range(0xfe00, 0xfe70),
                                 *range(0xff00, 0xff10), *range(0xe0000, 0xe0010), *range(0xac00, 0xac20)]]
    while len(strings) < 3000:
        kinds = random.choices([SPECIALS, WORDS, WORDS, marks, SPACES, list("abcXYZ019!?.,'\"-")], k=random.randint(2, 9))
        strings.append(random.choice(["", "", " "]).join(random.choice(kind) for kind in kinds))
    return strings


def read_strings(name):
    data, at, strings = (HERE / name).read_bytes(), 0, []
    while at < len(data):
        size, = struct.unpack_from("<I", data, at)
        strings.append(data[at + 4:at + 4 + size].decode())
        at += 4 + size + (12 if name == "tokenizer_strings.bin" else 0)
    return strings


def write_ids(name, lists):
    out = bytearray()
    for ids in lists:
        fnv = 0xcbf29ce484222325
        for byte in struct.pack(f"<{len(ids)}I", *ids):
            fnv = (fnv ^ byte) * 0x100000001b3 % 2**64
        out += struct.pack("<I", (fnv ^ fnv >> 32) & 0xffffffff)
    (HERE / name).write_bytes(out)
    print(name, len(out) // 4, "strings")


def frequent(strings, count):
    """Those that are made of the `count` most frequent characters: the others become unknown."""
    often = {c for c, _ in collections.Counter("".join(s for s in strings if len(s) < 1000)).most_common(count)}
    return [s for s in strings if 0 < len(s) < 1000 and often.issuperset(s)]


def train_unigram(strings, **settings):
    import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(strings), model_writer=model, model_type="unigram", character_coverage=1.0,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", num_threads=1, minloglevel=2, **settings)
    return model.getvalue()


def byte_alphabet():
    from tokenizers.pre_tokenizers import ByteLevel
    return sorted(ByteLevel.alphabet())


def write_clip_files(folder, merges):
    alphabet = byte_alphabet()
    pieces = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges] + [BOS, EOS]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def train_clip(strings):
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer
    alphabet = byte_alphabet()
    base = CLIPTokenizer(vocab={p: i for i, p in enumerate(alphabet + [BOS, EOS])}, merges=[]).backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = base.normalizer, base.pre_tokenizer
    trained.train_from_iterator(strings, trainers.BpeTrainer(vocab_size=2500, end_of_word_suffix="</w>", show_progress=False,
                                                             initial_alphabet=alphabet))
    return [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]


def clip_ids(folder, name, strings):
    from transformers import CLIPTokenizer
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    write_ids(name, tokenizer(strings)["input_ids"])
    return tokenizer


def main(arguments):
    if arguments[:1] == ["clip-files"]:
        lines = gzip.open(arguments[1], "rt").read().split("\n")[1:49152 - 256 - 2 + 1]
        alphabet = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]  # OpenAI's order: bytes that print first
        alphabet = [chr(b) for b in alphabet] + [chr(256 + i) for i in range(256 - len(alphabet))]
        pieces = alphabet + [a + "</w>" for a in alphabet] + [line.replace(" ", "") for line in lines] + [BOS, EOS]
        folder = pathlib.Path(arguments[2])
        folder.mkdir(exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
        return
    strings = read_strings("tokenizer_strings.bin")
    if not arguments:
        (HERE / "text_strings.bin").write_bytes(b"".join(struct.pack("<I", len(s.encode())) + s.encode() for s in own_strings()))
    strings += read_strings("text_strings.bin")
    if arguments == ["slow"]:
        from sentencepiece import SentencePieceProcessor
        from transformers import T5Tokenizer
        tokenizer = T5Tokenizer.from_pretrained(str(HERE / "t5_tokenizer"), legacy=True)
        write_ids("t5_spiece.ids", [tokenizer(s)["input_ids"] for s in strings])
        processor = SentencePieceProcessor(model_file=str(HERE / "unigram_bytes.model"))
        write_ids("unigram_bytes.ids", [processor.encode(s) for s in strings])
        return
    if arguments[:1] == ["clip"]:
        clip_ids(arguments[1], "clip_published.ids", strings)
        return
    from transformers import T5Tokenizer
    t5, t5_json, clip, clip_json = (HERE / f for f in ("t5_tokenizer", "t5_tokenizer_json", "clip_tokenizer", "clip_tokenizer_json"))
    for folder in (t5, t5_json, clip_json):
        folder.mkdir(exist_ok=True)
    (t5 / "spiece.model").write_bytes(train_unigram(frequent(strings, 500), vocab_size=2000,
                                                    normalization_rule_name="nmt_nfkc"))
    tokenizer = T5Tokenizer.from_pretrained(t5)
    tokenizer.backend_tokenizer.save(str(t5_json / "tokenizer.json"), pretty=False)
    write_ids("t5_json.ids", tokenizer(strings)["input_ids"])
    # Bytes for unknown characters, pieces that are always whole, and no rule for spaces.
    other = train_unigram(frequent(strings, 200), vocab_size=700, normalization_rule_name="identity", byte_fallback=True,
                          add_dummy_prefix=False, remove_extra_whitespaces=False, user_defined_symbols=["cat", "\n\n", "ab"])
    (HERE / "unigram_bytes.model").write_bytes(other)
    write_clip_files(clip, train_clip([s for s in strings if len(s) < 1000]))
    clip_ids(clip, "clip.ids", strings).backend_tokenizer.save(str(clip_json / "tokenizer.json"), pretty=False)


if __name__ == "__main__":
    main(sys.argv[1:])
