// The tokenizer against Hugging Face's `tokenizers` and SentencePiece: tests/golden/make_tokenizer_strings.py and
// make_sentencepiece.py made the files.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/file.h"
#include "text/bpe.h"
#include "text/sentencepiece.h"
#include "text/unicode.h"

namespace kinora {
namespace {

const std::string kGolden = KINORA_SOURCE_DIR "/tests/golden/";
const std::string kMini = KINORA_SOURCE_DIR "/models/kinora-mini/tokenizer";

uint64_t fnv1a(const std::vector<int32_t>& ids) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 0xff)) * 0x100000001b3u;
    }
  }
  return hash;
}

TEST(Tokenizer, GemmaEqualsHuggingFaceOnTwentyThousandStrings) {
  std::string folder = KINORA_SOURCE_DIR "/../shared/data/gemma-2-2b-it";
  if (!std::filesystem::exists(folder + "/tokenizer.json"))
    GTEST_SKIP() << "the Gemma-2 tokenizer is not here: put its tokenizer.json into " << folder;
  auto tokenizer = load_tokenizer(folder);
  std::string file = read_file(kGolden + "tokenizer_strings.bin", size_t{64} << 20);
  size_t at = 0, strings = 0, wrong = 0;
  auto read = [&](void* to, size_t bytes) {
    ASSERT_LE(at + bytes, file.size());
    std::memcpy(to, file.data() + at, bytes);
    at += bytes;
  };
  while (at < file.size()) {
    uint32_t length = 0, count = 0;
    uint64_t hash = 0;
    read(&length, 4);
    std::string text(length, '\0');
    read(text.data(), length);
    read(&count, 4);
    read(&hash, 8);
    std::vector<int32_t> ids = tokenizer->encode(text);
    bool equal = ids.size() == count && fnv1a(ids) == hash;
    if (!equal && ++wrong <= 5) ADD_FAILURE() << "string " << strings << ": \"" << text.substr(0, 200) << '"';
    ++strings;
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_GE(strings, 20000u);
}

TEST(Tokenizer, SentencePieceModelGivesItsIds) {
  std::string file = read_file(kGolden + "sentencepiece.model", 1 << 20);
  BpeTokenizer tokenizer(parse_sentencepiece(file, "sentencepiece.model"));
  auto cases = nlohmann::json::parse(read_file(kGolden + "sentencepiece.json", 1 << 20));
  ASSERT_GE(cases.size(), 300u);
  for (const auto& c : cases) {
    EXPECT_EQ(tokenizer.encode(c[0].get<std::string>(), false), c[1].get<std::vector<int32_t>>()) << c[0];
  }
  EXPECT_EQ(tokenizer.encode("a").front(), tokenizer.bos_id());
}

TEST(Tokenizer, DamagedSentencePieceModelsAreRefused) {
  std::string file = read_file(kGolden + "sentencepiece.model", 1 << 20);
  for (size_t size : {size_t{0}, size_t{1}, file.size() / 3, file.size() / 2 + 1}) {
    EXPECT_THROW(parse_sentencepiece(std::string_view(file).substr(0, size), "cut.model"), Error) << size;
  }
  EXPECT_THROW(parse_sentencepiece("{\"a\": 1}", "json.model"), Error);
}

TEST(Tokenizer, DecodesWhatItEncodes) {
  auto tokenizer = load_tokenizer(kMini);
  for (std::string text : {"a red apple", "two  spaces", "naïve café 東京 😀", "\t\n", "~!@#"}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false)), text);
  }
}

TEST(Tokenizer, InvalidUtf8NamesTheByte) {
  auto tokenizer = load_tokenizer(kMini);
  for (std::string text : {"ab\xff", "ab\xc3", "ab\xed\xa0\x80", "ab\xc0\x80", "ab\xf4\x90\x80\x80"}) {
    try {
      tokenizer->encode(text);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_NE(std::string(error.what()).find("byte 2"), std::string::npos) << error.what();
    }
  }
}

TEST(Tokenizer, AMegabyteTakesNearLinearTime) {
  auto tokenizer = load_tokenizer(kMini);
  std::string text;
  while (text.size() < 1 << 20) text += "aaaaaaaaaaaaaaaaaa red ";
  EXPECT_GT(tokenizer->encode(text).size(), 1000u);
}

class BadTokenizerJson : public testing::TestWithParam<const char*> {};

TEST_P(BadTokenizerJson, IsRefusedAsAModelError) {
  try {
    parse_tokenizer_json(GetParam(), "tokenizer.json");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::model);
    EXPECT_TRUE(std::string(error.what()).starts_with("tokenizer.json")) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadTokenizerJson,
    testing::Values("", "[", "[]", "7", "{}", R"({"model": 3})", R"({"model": {"type": "Unigram"}})",
                    R"({"model": {"type": "BPE", "vocab": {"a": -1}}})",
                    R"({"model": {"type": "BPE", "vocab": {"a": 99999999999}}})",
                    R"({"model": {"type": "BPE", "vocab": {"a": {"b": 1}}}})",
                    R"({"model": {"type": "BPE", "vocab": {"a": "b"}}})",
                    R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})",
                    R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}})",
                    R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a", "a"]]}})",
                    R"({"model": {"type": "BPE", "vocab": {"a": 0}, "dropout": 0.5}})",
                    R"({"model": {"type": "BPE", "vocab": {}}, "normalizer": {"type": "NFKC"}})",
                    R"({"model": {"type": "BPE", "vocab": {}}, "added_tokens": [{"id": "x", "content": "y"}]})",
                    R"({"model": {"type": "BPE", "vocab": {}}, "pre_tokenizer": {"type": "ByteLevel"}})"));

// Python: "İSTANBUL".lower() is "i̇stanbul"; a final sigma depends on what is around it.
TEST(Unicode, LowersAndStripsAsPython) {
  EXPECT_EQ(to_lower("ÀÉÎ ΑΒΓ ЖЩ ǅ Ⅷ"), "àéî αβγ жщ ǆ ⅷ");
  EXPECT_EQ(to_lower("İ"), "i\xcc\x87");
  EXPECT_EQ(strip(" \t\n\xc2\xa0\xe3\x80\x80 x y\x1c\xc2\x85"), "x y");
}

}  // namespace
}  // namespace kinora
