// The little of Unicode that prompts need.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kinora {

// Code points of UTF-8 text. Throws Error(input) naming the byte where the text is no valid UTF-8.
std::u32string decode_utf8(std::string_view text);
void append_utf8(std::string& out, char32_t code);
// Bytes of the character that begins with this byte: 1 to 4; 1 for a byte that begins none.
size_t utf8_length(unsigned char first);
// Throws Error(input) naming the byte unless the text is valid UTF-8.
void check_utf8(std::string_view text);

// Python's str.lower() for the characters whose lower case is one character (and U+0130), and str.strip().
std::string to_lower(std::string_view text);
std::string strip(const std::string& text);

// Each character's lower case by itself, whatever is around it, as Rust's char::to_lowercase.
std::string to_lower_each(std::string_view text);
// Normalization form C: canonical decomposition, then composition.
std::string to_nfc(std::string_view text);
// The property White_Space. (Python's str.strip() also takes U+001C to U+001F.)
bool is_white_space(char32_t code);
// Without white space at its ends.
std::string_view trim_white_space(std::string_view text, bool left, bool right);

}  // namespace kinora
