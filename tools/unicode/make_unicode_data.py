"""Writes src/text/unicode_data.cpp: what the tokenizers package knows about characters, asked of it one by one, so that
its version of Unicode is also ours. Usage: python make_unicode_data.py (with tokenizers and sentencepiece)."""
import io
import pathlib
import tempfile
import unicodedata

import sentencepiece
from tokenizers import Regex, normalizers

POINTS = [c for c in range(0x110000) if not 0xd800 <= c < 0xe000]
nfd, nfc = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str


def members(pattern):
    """The characters that a regular expression of one character matches."""
    remove, found = normalizers.Replace(Regex(pattern), ""), []
    for base in range(0, 0x110000, 0x400):
        block = [c for c in range(base, base + 0x400) if not 0xd800 <= c < 0xe000]
        left = set(remove.normalize_str("".join(map(chr, block))))
        found += [c for c in block if chr(c) not in left]
    return found


def ranges(points):
    runs = []
    for c in sorted(points):
        if runs and runs[-1][1] == c - 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    return runs


def charsmap(rules):
    """A precompiled normalizer with the given replacements of single characters."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as tsv:
        tsv.writelines(f"{ord(a):X}\t{ord(b):X}\n" for a, b in rules.items())
        tsv.flush()
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["a b c"] * 9), model_writer=model, vocab_size=7,
                                                 normalization_rule_tsv=tsv.name, minloglevel=2)
    from sentencepiece import sentencepiece_model_pb2
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    return normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)


def combining_class(c):
    """Python's, for the characters that tokenizers sorts at all."""
    k = unicodedata.combining(chr(c))
    low = nfd(chr(c) + "\u0334") if k > 1 else nfd("\u05b0" + chr(c))
    return k if k and low == ("\u0334" + nfd(chr(c)) if k > 1 else chr(c) + "\u05b0") else 0


# A rule for x swallows the whole cluster of "x" and a mark; one for a control character only that character.
swallow = charsmap({"x": "y"})
marks = [c for c in POINTS if c != 0x78 and swallow.normalize_str("x" + chr(c)) == "y"]
format_like = [c for c in POINTS if unicodedata.category(chr(c)) in ("Cc", "Cf", "Zl", "Zp", "Cn") and c not in set(marks)
               and (c < 0x3000 or 0xfe00 <= c < 0x10000 or 0xe0000 <= c < 0xe1000 or unicodedata.category(chr(c)) == "Cf")]
keys = charsmap({chr(c): "y" for c in format_like if c not in (0, 0x20)})
controls = [0] + [c for c in format_like if c and keys.normalize_str(chr(c) + "\u0301") == "y\u0301"]

steps = []
for c in POINTS:
    parts = unicodedata.decomposition(chr(c)).split()
    if parts and not parts[0].startswith("<") and nfd(chr(c)) != chr(c):
        a, b = int(parts[0], 16), int(parts[1], 16) if len(parts) > 1 else 0
        steps.append((c, a, b, int(b != 0 and nfc(chr(c)) == chr(c))))
classes = []
for c in POINTS:
    k = combining_class(c)
    if k and classes and classes[-1][1] == c - 1 and classes[-1][2] == k:
        classes[-1][1] = c
    elif k:
        classes.append([c, c, k])


def table(type_, name, rows):
    lines, line = [], " "
    for row in rows:
        item = " {" + ", ".join(hex(x) if i < 2 or x > 255 else str(x) for i, x in enumerate(row)) + "},"
        if len(line) + len(item) > 120:
            lines.append(line)
            line = " "
        line += item
    return f"const {type_} {name}_rows[] = {{\n" + "\n".join([*lines, line]) + "\n};\n"


text = """// What characters are. Made by tools/unicode/make_unicode_data.py, which asks the tokenizers package.
#include "text/unicode_data.h"

// clang-format off
namespace kinora {
namespace {

"""
names = [("CharRange", "letters", ranges(members(r"\p{L}"))), ("CharRange", "numbers", ranges(members(r"\p{N}"))),
         ("CharRange", "cluster_marks", ranges(marks)), ("CharRange", "cluster_controls", ranges(controls)),
         ("CombiningRange", "combining", classes), ("Decomposition", "decompositions", steps)]
text += "\n".join(table(*n) for n in names) + "\n}  // namespace\n\n"
for type_, name, _ in names:
    text += f"const std::span<const {type_}> k{''.join(w.capitalize() for w in name.split('_'))}{{{name}_rows}};\n"
text += "\n}  // namespace kinora\n"
out = pathlib.Path(__file__).parents[2] / "src/text/unicode_data.cpp"
out.write_text(text)
print({n[1]: len(n[2]) for n in names}, len(text), "bytes", text.count("\n"), "lines")
