"""Writes sentencepiece.model, a small BPE model with Gemma's settings, and sentencepiece.json: what the sentencepiece
package makes of some strings, for tests/text/tokenizer_test.cpp. Usage: python make_sentencepiece.py"""
import io
import json
import pathlib
import random

import sentencepiece

HERE = pathlib.Path(__file__).parent
WORDS = ("a red apple on the table naïve café straße Москва ночью снег 東京の夜景 猫 서울 مدينة दिल्ली "
         "portrait painting landscape mountains highly detailed 3.14 x=1; <b>bold</b> under_score").split()
random.seed(1)


def sentence():
    return random.choice([" ", "  ", " \n\n", "\t"]).join(random.choices(WORDS, k=random.randint(1, 9)))


model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([sentence() for _ in range(3000)]), model_writer=model, model_type="bpe", vocab_size=560,
    byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
    pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=["<b>", "</b>", "\n\n"], character_coverage=0.98,
    allow_whitespace_only_pieces=True, split_digits=True, num_threads=1)
(HERE / "sentencepiece.model").write_bytes(model.getvalue())
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
strings = ["", " ", "   ", "a", "  a  b ", "\n\n\n", "😀👨‍👩‍👧", "<b>x</b>", "zzz qqq"] + [sentence() + random.choice(["", "!", " ☃", "𝔸"]) for _ in range(300)]
cases = [[s, processor.encode(s)] for s in strings]
(HERE / "sentencepiece.json").write_text(json.dumps(cases, ensure_ascii=True))
