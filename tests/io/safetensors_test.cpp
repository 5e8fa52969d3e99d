#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "io/config.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

std::string with_header(const std::string& header, size_t data_bytes, uint64_t length = 0) {
  if (!length) length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, 'x');
}

SafetensorsHeader parse(const std::string& bytes) {
  return parse_safetensors({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}, "x.safetensors");
}

struct BadFile {
  const char* why;
  std::string bytes;
};

class BadSafetensors : public testing::TestWithParam<BadFile> {};

TEST_P(BadSafetensors, IsRefused) {
  try {
    parse(GetParam().bytes);
    FAIL() << "accepted: " << GetParam().why;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::model) << error.what();
    EXPECT_TRUE(std::string(error.what()).starts_with("x.safetensors")) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

std::string one(const std::string& entry, size_t data) { return with_header("{\"a\":" + entry + "}", data); }

INSTANTIATE_TEST_SUITE_P(
    All, BadSafetensors,
    testing::Values(
        BadFile{"empty", ""}, BadFile{"seven bytes", "1234567"}, BadFile{"no header", std::string(8, '\0')},
        BadFile{"header longer than the file", with_header("{}", 0, 3)},
        BadFile{"header of 2^63 bytes", with_header("{}", 0, uint64_t{1} << 63)},
        BadFile{"header of 100 MB and a byte", with_header("{}", 0, 100'000'001)},
        BadFile{"space before the object", with_header(" {}", 0)}, BadFile{"an array", with_header("[]", 0)},
        BadFile{"not JSON", with_header("{a}", 0)}, BadFile{"two objects", with_header("{}{}", 0)},
        BadFile{"bytes after the header", with_header("{}", 1)},
        BadFile{"invalid UTF-8", with_header("{\"\xff\":{}}", 0)},
        BadFile{"nested too deeply", with_header("{" + std::string(10000, '['), 0)},
        BadFile{"a name twice", with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                            R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                            2)},
        BadFile{"a field twice", one(R"({"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]})", 1)},
        BadFile{"no dtype", one(R"({"shape":[1],"data_offsets":[0,1]})", 1)},
        BadFile{"an unknown dtype", one(R"({"dtype":"Q9","shape":[1],"data_offsets":[0,1]})", 1)},
        BadFile{"a negative size", one(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,1]})", 1)},
        BadFile{"a fraction", one(R"({"dtype":"U8","shape":[1.5],"data_offsets":[0,1]})", 1)},
        BadFile{"sizes that overflow",
                one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0)},
        BadFile{"an overflow to the right size",
                one(R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})", 4)},
        BadFile{"too many axes", one(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]})", 1)},
        BadFile{"fewer bytes than its shape", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4)},
        BadFile{"an end before its begin", one(R"({"dtype":"U8","shape":[1],"data_offsets":[1,0]})", 1)},
        BadFile{"three offsets", one(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1,2]})", 1)},
        BadFile{"beyond the end", one(R"({"dtype":"U8","shape":[9],"data_offsets":[0,9]})", 8)},
        BadFile{"a hole", one(R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})", 2)},
        BadFile{"an overlap", with_header(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                          R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                                          3)},
        BadFile{"metadata that is no text", with_header(R"({"__metadata__":{"a":1}})", 0)}));

TEST(Safetensors, WritesWhatItReads) {
  TempFolder temp;
  Tensor a = Tensor::from({2, 3}, std::vector<float>{1, 2, 3, 4, 5, 6}), b = Tensor::zeros({0, 4});
  write_safetensors(temp.path("t.safetensors"), {{"a", a}, {"empty", b}}, {{"note", "naïve \"x\""}});
  auto file = SafetensorsFile::open(temp.path("t.safetensors"));
  EXPECT_EQ(file.header().metadata.at("note"), "naïve \"x\"");
  EXPECT_EQ(std::memcmp(file.tensor("a").raw(), a.raw(), a.bytes()), 0);
  EXPECT_EQ(file.tensor("empty").shape(), b.shape());
  EXPECT_THROW(file.tensor("b"), Error);
}

// The format promises no alignment; a tensor at an odd byte must still be read.
TEST(Safetensors, UnalignedTensorsAreCopied) {
  TempFolder temp;
  std::string bytes = with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                  R"("b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                                  5);
  float value = 2.5f;
  std::memcpy(bytes.data() + bytes.size() - 4, &value, 4);
  auto file = SafetensorsFile::open(temp.write("u.safetensors", bytes));
  EXPECT_EQ(file.tensor("b").data<float>()[0], 2.5f);
}

TEST(Config, HostileJsonIsRefused) {
  for (std::string text : {"", "[]", "{", "{\"a\":1,\"a\":2}", "nul"})
    EXPECT_THROW(Config::parse(text, "c.json"), Error) << text;
  EXPECT_THROW(Config::parse("{\"a\":" + std::string(100000, '['), "c.json"), Error);
  Config c = Config::parse(R"({"n": 5, "text": "x", "big": 1e300, "list": [1, "a"], "nan": NaN})", "c.json");
  EXPECT_EQ(c.integer("n", 1, 9), 5);
  EXPECT_THROW(c.integer("n", 6, 9), Error);
  EXPECT_THROW(c.integer("text", 1, 9), Error);
  EXPECT_THROW(c.integer("big", 1, 9), Error);
  EXPECT_THROW(c.integer("absent", 1, 9), Error);
  EXPECT_THROW(c.integers("list", 0, 9, {}), Error);
  EXPECT_THROW(c.text("n", ""), Error);
}

}  // namespace
}  // namespace kinora::test
