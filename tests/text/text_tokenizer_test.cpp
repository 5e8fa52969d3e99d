// The tokenizers of T5 and CLIP against transformers: tests/golden/make_text_tokenizers.py made the files.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "golden.h"
#include "io/file.h"
#include "text/clip_bpe.h"
#include "text/sentencepiece.h"
#include "text/stages_json.h"
#include "text/unicode.h"
#include "text/unigram.h"

namespace kinora::test {
namespace {

const std::string kGolden = source_folder() + "/tests/golden/";

uint32_t hash_of(const std::vector<int32_t>& ids) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 0xff)) * 0x100000001b3u;
    }
  }
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

uint32_t read_u32(const std::string& file, size_t at) {
  uint32_t value = 0;
  if (at + 4 <= file.size()) std::memcpy(&value, file.data() + at, 4);
  return value;
}

// 23,500 strings of many scripts.
const std::vector<std::string>& strings() {
  static const std::vector<std::string> all = [] {
    std::vector<std::string> list;
    for (auto [name, extra] : {std::pair("tokenizer_strings.bin", 12), std::pair("text_strings.bin", 0)}) {
      std::string file = read_file(kGolden + name, size_t{64} << 20);
      for (size_t at = 0; at < file.size();) {
        uint32_t length = read_u32(file, at);
        list.push_back(file.substr(at + 4, length));
        at += 4 + length + static_cast<size_t>(extra);
      }
    }
    return list;
  }();
  return all;
}

void expect_ids(const Tokenizer& tokenizer, const std::string& golden, bool special = true) {
  std::string hashes = read_file(kGolden + golden, size_t{1} << 20);
  ASSERT_GE(strings().size(), 23000u);
  ASSERT_EQ(hashes.size(), strings().size() * 4);
  size_t wrong = 0;
  for (size_t i = 0; i < strings().size(); ++i) {
    if (hash_of(tokenizer.encode(strings()[i], special)) == read_u32(hashes, i * 4)) continue;
    if (++wrong <= 5) ADD_FAILURE() << golden << " string " << i << ": \"" << strings()[i].substr(0, 200) << '"';
  }
  EXPECT_EQ(wrong, 0u) << golden;
}

TEST(TextTokenizer, T5FromTokenizerJsonEqualsTransformers) {
  expect_ids(*load_tokenizer(kGolden + "t5_tokenizer_json"), "t5_json.ids");
}

TEST(TextTokenizer, T5FromSpieceModelEqualsTransformersFour) {
  expect_ids(*load_tokenizer(kGolden + "t5_tokenizer"), "t5_spiece.ids");
}

// SentencePiece itself: pieces for bytes, pieces that stay whole, no rule for spaces, no special tokens.
TEST(TextTokenizer, UnigramWithBytesEqualsSentencePiece) {
  std::string file = read_file(kGolden + "unigram_bytes.model", 1 << 20);
  Stages stages = parse_t5_sentencepiece(file, "unigram_bytes.model", 0);
  stages.added.clear();
  expect_ids(StagedTokenizer(std::move(stages)), "unigram_bytes.ids", false);
}

TEST(TextTokenizer, ClipFromBothFormsEqualsTransformers) {
  expect_ids(*load_tokenizer(kGolden + "clip_tokenizer"), "clip.ids");
  expect_ids(*load_tokenizer(kGolden + "clip_tokenizer_json"), "clip.ids");
}

TEST(TextTokenizer, ClipWithItsPublishedVocabularyEqualsTransformers) {
  const char* folder = std::getenv("KINORA_CLIP_TOKENIZER");
  if (!folder)
    GTEST_SKIP() << "set KINORA_CLIP_TOKENIZER to a folder with CLIP's vocab.json and merges.txt (or tokenizer.json), "
                    "which make_text_tokenizers.py clip-files can write";
  expect_ids(*load_tokenizer(folder), "clip_published.ids");
}

TEST(TextTokenizer, PadsAndCutsToALength) {
  auto t5 = load_tokenizer(kGolden + "t5_tokenizer"), clip = load_tokenizer(kGolden + "clip_tokenizer");
  std::vector<int32_t> all = t5->encode("a cat on a horse"), ids = t5->encode_padded("a cat on a horse", 64);
  ASSERT_EQ(ids.size(), 64u);
  EXPECT_EQ(std::vector(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(all.size())), all);
  EXPECT_EQ(all.back(), t5->eos_id());
  EXPECT_EQ(ids.back(), t5->pad_id());
  ids = t5->encode_padded("a cat on a horse", 3);
  EXPECT_EQ(ids, (std::vector<int32_t>{all[0], all[1], t5->eos_id()}));
  EXPECT_EQ(t5->encode_padded("", 2), (std::vector<int32_t>{1, 0}));
  EXPECT_THROW(t5->encode_padded("a", 0), Error);

  all = clip->encode("a cat on a horse");
  EXPECT_EQ(all.front(), clip->bos_id());
  EXPECT_EQ(all.back(), clip->eos_id());
  ids = clip->encode_padded("a cat on a horse", 77);
  EXPECT_EQ(ids.size(), 77u);
  EXPECT_EQ(ids.back(), clip->eos_id());  // which also pads
  EXPECT_EQ(clip->encode_padded("a cat on a horse", 3), (std::vector<int32_t>{clip->bos_id(), all[1], clip->eos_id()}));
  EXPECT_THROW(clip->encode_padded("a", 1), Error);
}

// Transformers 4 adds no second end to a text that ends with one.
TEST(TextTokenizer, T5EndsATextOnce) {
  auto spiece = load_tokenizer(kGolden + "t5_tokenizer"), json = load_tokenizer(kGolden + "t5_tokenizer_json");
  EXPECT_EQ(spiece->encode("a</s>"), spiece->encode("a"));
  EXPECT_EQ(json->encode("a</s>").size(), json->encode("a").size() + 1);
  EXPECT_EQ(spiece->encode("<extra_id_0>", false)[0], static_cast<int32_t>(spiece->vocab_size()) - 1);
}

TEST(TextTokenizer, DecodesWhatItEncodes) {
  for (const char* folder : {"t5_tokenizer", "t5_tokenizer_json"}) {
    auto tokenizer = load_tokenizer(kGolden + folder);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode("a red cat on the horse", false)), "a red cat on the horse");
  }
  auto clip = load_tokenizer(kGolden + "clip_tokenizer");
  EXPECT_EQ(clip->decode(clip->encode("Naïve CAT, 東京 😀", false)), "naïve cat , 東京 😀 ");
}

TEST(TextTokenizer, InvalidUtf8IsRefused) {
  for (const char* folder : {"t5_tokenizer", "clip_tokenizer"}) {
    EXPECT_THROW(load_tokenizer(kGolden + folder)->encode("ab\xff"), Error);
  }
}

TEST(TextTokenizer, AMegabyteTakesNearLinearTime) {
  std::string text;
  while (text.size() < 1 << 20) text += "aaaaaaaaaaaaaaaaaa red e\xcc\x81\xcc\x82\xcc\x83 ";
  for (const char* folder : {"t5_tokenizer", "t5_tokenizer_json", "clip_tokenizer"}) {
    EXPECT_GT(load_tokenizer(kGolden + folder)->encode(text).size(), 1000u);
  }
}

TEST(TextTokenizer, DamagedUnigramModelsAreRefused) {
  std::string file = read_file(kGolden + "t5_tokenizer/spiece.model", 1 << 20);
  for (size_t size : {size_t{0}, size_t{1}, size_t{1000}, file.size() / 3, file.size() / 2 + 1}) {
    EXPECT_THROW(parse_t5_sentencepiece(std::string_view(file).substr(0, size), "cut.model"), Error) << size;
  }
  std::string bpe = read_file(kGolden + "sentencepiece.model", 1 << 20);
  EXPECT_THROW(parse_t5_sentencepiece(bpe, "bpe.model"), Error);
  // A map whose units point anywhere is bounded.
  std::string blob("\x10\0\0\0", 4);
  blob += std::string("\xff\xff\xff\xff\x61\xff\xff\xff\x61\x01\0\0\xff\x01\0\x80", 16) + "abc";
  CharsMap map(blob, "map");
  map.longest("aaaaaaaaaa");
  map.replace_clusters("a\xcc\x81\r\n");
  CharsMap one(std::string("\x0c\0\0\0\0\0\0\0\x01\x0d\0\0\0\0\0\x80y", 17), "map");  // U+0001 becomes y
  EXPECT_EQ(one.replace_clusters("q\x01r\x02"), "qyr\x02");
  EXPECT_THROW(CharsMap("\x10", "map"), Error);
  EXPECT_THROW(CharsMap(std::string("\xff\xff\0\0", 4), "map"), Error);
}

class BadTextTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(BadTextTokenizer, IsRefusedAsAModelError) {
  try {
    make_tokenizer(GetParam(), "tokenizer.json");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::model);
    EXPECT_TRUE(std::string(error.what()).starts_with("tokenizer.json")) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadTextTokenizer,
    testing::Values(
        R"({"model": {"type": "Unigram"}})", R"({"model": {"type": "Unigram", "unk_id": 1, "vocab": [["a", 0]]}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": {"a": 0}}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": ["a"]}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a"]]}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", "b", 0]]}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", [0]]]}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [[["a", 0]]]}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0]]}, "normalizer": {"type": "NFKD"}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0]]}, "normalizer": {"type": "Sequence"}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0]]},
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0]]},
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0]]},
            "normalizer": {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": ""}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0]]}, "pre_tokenizer": {"type": "ByteLevel"}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0]]},
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]}})",
        R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0]]},
            "added_tokens": [{"id": 1, "content": "x", "single_word": true}]})",
        R"({"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 0}, "merges": ["a b"]}})",
        R"({"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 0}, "fuse_unk": true}})",
        R"({"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 0}}})",
        R"({"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": -1}}})"));

TEST(TextTokenizer, DamagedClipFilesAreRefused) {
  const std::string vocab = R"({"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3, "aa</w>": 4})";
  EXPECT_EQ(StagedTokenizer(parse_clip_files(vocab, "v", "#version: 0.2\na a</w>\n", "m")).encode("aa"),
            (std::vector<int32_t>{0, 4, 1}));
  for (const char* bad :
       {"", "[]", "{}", "{\"a\": \"b\"}", "{\"<|startoftext|>\": 0}", "{\"a\": {\"b\": 1}}", "{\"a\": -7}"}) {
    EXPECT_THROW(parse_clip_files(bad, "v", "", "m"), Error) << bad;
  }
  for (const char* bad : {"a", "a ", " a", "a b", "a a a"}) {
    EXPECT_THROW(parse_clip_files(vocab, "v", bad, "m"), Error) << bad;
  }
}

TEST(Unicode, ComposesAsNormalFormC) {
  EXPECT_EQ(to_nfc("e\u0301 a\u0323\u0302 a\u0302\u0323"), "\u00e9 \u1ead \u1ead");
  EXPECT_EQ(to_nfc("\u1100\u1161\u11a8 \uac00\u11a8 \u212b \u0958"), "\uac01 \uac01 \u00c5 \u0915\u093c");
  EXPECT_EQ(to_nfc("\u0301\u0344 plain"), "\u0301\u0308\u0301 plain");
}

TEST(Unicode, LowersEachCharacterAndTrims) {
  EXPECT_EQ(to_lower_each("ΑΣ İ Ꟑ"), "ασ i\u0307 ꟑ");
  EXPECT_EQ(trim_white_space("\u3000 a \u00a0\x1c", true, true), "a \u00a0\x1c");
  EXPECT_EQ(trim_white_space(" a ", true, false), "a ");
}

}  // namespace
}  // namespace kinora::test
