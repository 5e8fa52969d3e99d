"""Writes tokenizer_strings.bin: what the tokenizers package makes of 20,000 strings, for tests/text/tokenizer_test.cpp.

usage: python make_tokenizer_strings.py <folder with Gemma 2's tokenizer.json>

For each string: u32 length, UTF-8 bytes, u32 number of ids, u64 FNV-1a hash over the ids as little-endian u32.
"""
import pathlib
import random
import struct
import sys

from tokenizers import Tokenizer

random.seed(20)
SCRIPTS = [(0x21, 0x7e), (0xa1, 0x24f), (0x370, 0x3ff), (0x400, 0x4ff), (0x531, 0x587), (0x5d0, 0x5ea), (0x620, 0x6d3),
           (0x904, 0x939), (0x985, 0x9b9), (0xb85, 0xbb9), (0xe01, 0xe5b), (0x10d0, 0x10ff), (0x1200, 0x137c),
           (0x1780, 0x17b3), (0x2010, 0x2044), (0x2190, 0x23ff), (0x2500, 0x27bf), (0x3041, 0x30ff), (0x4e00, 0x9fff),
           (0xac00, 0xd7a3), (0xff01, 0xff9f), (0x1d400, 0x1d7ff), (0x1f300, 0x1faff), (0x20000, 0x2a6df)]
WORDS = ("a an the of in on with portrait landscape photo painting cat dog astronaut riding horse mountain lake sunset "
         "highly detailed cinematic lighting 8k masterpiece best quality watercolor oil on canvas by candlelight don't "
         "it's naïve café façade Zürich über straße São Paulo œuvre fjord Москва ночью снег красивая девушка 東京 の夜景 "
         "猫 一只可爱的 水墨画 서울 의 야경 고양이 مدينة في الليل קֶסֶם ירושלים दिल्ली में सुबह ภาพถ่าย ทะเล Việt Nam Ελλάδα 3.14159 2024-05-01 "
         "$19.99 50% C++ e=mc² x→y #hashtag @user http://example.org/a?b=c&d=%20 snake_case camelCase SCREAMING "
         "supercalifragilisticexpialidocious antidisestablishmentarianism").split(" ")
SPECIALS = ["<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "<start_of_turn>", "<end_of_turn>",
            "<unused5>", "<unused98>", "<unused99>", "<0x41>", "<0x0A>", "<0xFF>", "[toxicity=0]", "<table>", "</table>",
            "<h1>", "</h6>", "<b>", "</b>", "<i>", "<code>", "</code>", "<strong>", "<br>", "<div class='x'>", "<",
            "<bos", "bos>", "<<bos>>", "< bos>", "<BOS>", "▁", "▁▁", "▁▁▁ ▁", "user\n", "model\n"]
EMOJI = ["😀", "👨‍👩‍👧‍👦", "👩🏽‍🚀", "🏳️‍🌈", "🇯🇵", "❤️‍🔥", "1️⃣", "🧑🏿‍🤝‍🧑🏻", "👁️‍🗨️", "🫠", "\ufe0f", "\u200d"]
MARKS = [chr(c) for c in range(0x300, 0x370)] + ["\u05b8", "\u064b", "\u093c", "\u0e31", "\u20d0", "\u3099"]
CODE = ["def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}", "if(a&&b||!c)", "#include <x>\n",
        "SELECT * FROM t WHERE a = 'b';", '{"key": [1, 2.5e-3, null]}', "\\frac{a}{b}", "```python\n", "// TODO: x\r\n"]


def chars(low, high, count):
    return "".join(chr(random.randint(low, high)) for _ in range(count))


def any_char():
    while True:
        code = random.choice([random.randint(0, 0x10ffff), random.randint(0, 0xffff), random.randint(0, 0x2ff)])
        if not 0xd800 <= code < 0xe000:
            return chr(code)


def part():
    kind = random.randrange(12)
    if kind <= 3:
        return " ".join(random.choices(WORDS, k=random.randint(1, 6)))
    if kind == 4:
        return chars(*random.choice(SCRIPTS), random.randint(1, 10))
    if kind == 5:
        return random.choice(SPECIALS)
    if kind == 6:
        return random.choice(" \n\t\r\u00a0\u3000\u2003") * random.choice([1, 1, 2, 3, 5, random.randint(1, 70)])
    if kind == 7:
        return random.choice(EMOJI)
    if kind == 8:
        return random.choice("aeoxАкか한") + "".join(random.choices(MARKS, k=random.randint(1, 4)))
    if kind == 9:
        return chr(random.choice(list(range(32)) + [127, 0x85, 0x200b, 0x200e, 0x2028, 0xfeff, 0xfffd, 0xfffe, 0x10ffff]))
    if kind == 10:
        return random.choice(CODE)
    return "".join(any_char() for _ in range(random.randint(1, 6)))


strings = ["", " ", "  ", "\n", "\0", "▁", "a", " a", "a "] + SPECIALS + EMOJI + CODE
strings += [run * n for run in [" ", "\n", "\t", "▁", "a", "\r\n", " \n", "ha", "0", "="] for n in range(1, 100, 3)]
strings += ["x" * 20000, "antidisestablishment" * 500, "ab" * 5000, " " * 5000, "\n" * 3000, "日本語" * 1000]
strings += ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=n)) for n in (1000, 3000, 20000)]
strings += [chr(code) for code in range(0x250) if code]
while len(strings) < 20500:
    glue = random.choice(["", "", " "])
    strings.append(glue.join(part() for _ in range(random.choice([1, 1, 2, 2, 3, 4, 5]))))

tokenizer = Tokenizer.from_file(str(pathlib.Path(sys.argv[1]) / "tokenizer.json"))
with open(pathlib.Path(__file__).with_name("tokenizer_strings.bin"), "wb") as out:
    for text in strings:
        ids = tokenizer.encode(text).ids
        fnv = 0xcbf29ce484222325
        for byte in struct.pack(f"<{len(ids)}I", *ids):
            fnv = (fnv ^ byte) * 0x100000001b3 % 2**64
        data = text.encode()
        out.write(struct.pack("<I", len(data)) + data + struct.pack("<IQ", len(ids), fnv))
    print(len(strings), "strings,", out.tell(), "bytes")
