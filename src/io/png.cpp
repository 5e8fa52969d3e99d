#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>

#include "io/image_codecs.h"

namespace kinora {
namespace {

// libpng leaves by longjmp on an error; everything with a destructor lives outside the functions that call setjmp.
struct Reader {
  const std::string* bytes;
  size_t at = 0;
  std::string message;
};

void take_bytes(png_structp png, png_bytep out, size_t count) {
  auto* reader = static_cast<Reader*>(png_get_io_ptr(png));
  if (reader->bytes->size() - reader->at < count) png_error(png, "the file ends too early");
  std::memcpy(out, reader->bytes->data() + reader->at, count);
  reader->at += count;
}

void keep_error(png_structp png, png_const_charp text) {
  *static_cast<std::string*>(png_get_error_ptr(png)) = text;
  std::longjmp(*png_set_longjmp_fn(png, std::longjmp, sizeof(jmp_buf)), 1);
}
void ignore_warning(png_structp, png_const_charp) {}

struct ReadHandle {
  png_structp png = nullptr;
  png_infop info = nullptr;
  explicit ReadHandle(std::string* message) {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, message, keep_error, ignore_warning);
    if (png) info = png_create_info_struct(png);
    if (!info) fail(ErrorKind::resource, "out of memory while reading a PNG picture");
    png_set_user_limits(png, 16384, 16384);
    png_set_chunk_malloc_max(png, 64 << 20);
  }
  ~ReadHandle() { png_destroy_read_struct(&png, &info, nullptr); }
  ReadHandle(const ReadHandle&) = delete;
  ReadHandle& operator=(const ReadHandle&) = delete;
};

bool read_info(ReadHandle& h, Reader& reader) {
  if (setjmp(png_jmpbuf(h.png))) return false;
  png_set_read_fn(h.png, &reader, take_bytes);
  png_read_info(h.png, h.info);
  return true;
}

// Asks for 8-bit RGB, transparency laid over white.
bool prepare_rgb(ReadHandle& h) {
  if (setjmp(png_jmpbuf(h.png))) return false;
  png_color_16 white{};
  white.red = white.green = white.blue = white.gray = 255;
  png_set_expand(h.png);
  png_set_strip_16(h.png);
  png_set_gray_to_rgb(h.png);
  png_set_background(h.png, &white, PNG_BACKGROUND_GAMMA_SCREEN, 0, 1.0);
  png_set_interlace_handling(h.png);
  png_read_update_info(h.png, h.info);
  return png_get_rowbytes(h.png, h.info) == static_cast<size_t>(png_get_image_width(h.png, h.info)) * 3;
}

bool read_rows(ReadHandle& h, png_bytep* rows) {
  if (setjmp(png_jmpbuf(h.png))) return false;
  png_read_image(h.png, rows);
  png_read_end(h.png, h.info);
  return true;
}

bool skip_to_end(ReadHandle& h, png_bytep row, int passes, png_uint_32 height) {
  if (setjmp(png_jmpbuf(h.png))) return false;
  for (int pass = 0; pass < passes; ++pass) {
    for (png_uint_32 y = 0; y < height; ++y) png_read_row(h.png, row, nullptr);
  }
  png_read_end(h.png, h.info);
  return true;
}

void append_bytes(png_structp png, png_bytep data, size_t count) {
  static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<const char*>(data), count);
}
void no_flush(png_structp) {}

bool write_png(png_structp png, png_infop info, const Image& image, png_text* texts, int count, std::string* out) {
  if (setjmp(png_jmpbuf(png))) return false;
  png_set_write_fn(png, out, append_bytes, no_flush);
  png_set_IHDR(png, info, static_cast<png_uint_32>(image.width), static_cast<png_uint_32>(image.height), 8,
               PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (count) png_set_text(png, info, texts, count);
  png_write_info(png, info);
  for (int y = 0; y < image.height; ++y) {
    png_write_row(png, image.rgb.data() + static_cast<size_t>(y) * static_cast<size_t>(image.width) * 3);
  }
  png_write_end(png, info);
  return true;
}

std::string encode(const Image& image, const ImageRecord& record) {
  std::string out, message;
  std::string parameters = record.parameters, json = record.json;
  char parameters_key[] = "parameters", json_key[] = "kinora", none[] = "";
  png_text texts[2];
  std::memset(texts, 0, sizeof texts);
  int count = 0;
  auto add = [&](char* key, std::string& text) {
    if (text.empty()) return;
    bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 128; });
    png_text& t = texts[count++];
    t.compression = ascii ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
    t.key = key;
    t.text = text.data();
    t.text_length = ascii ? text.size() : 0;
    t.itxt_length = ascii ? 0 : text.size();
    t.lang = none;
    t.lang_key = none;
  };
  add(parameters_key, parameters);
  add(json_key, json);
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &message, keep_error, ignore_warning);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  bool good = info && write_png(png, info, image, texts, count, &out);
  png_destroy_write_struct(&png, &info);
  if (!good) fail(ErrorKind::io, "cannot encode a PNG picture: " + message);
  return out;
}

Image decode(const std::string& bytes, const std::string& name) {
  Reader reader{&bytes, 0, {}};
  ReadHandle h(&reader.message);
  if (!read_info(h, reader)) fail(ErrorKind::input, name + " is a damaged PNG picture: " + reader.message);
  png_uint_32 width = png_get_image_width(h.png, h.info), height = png_get_image_height(h.png, h.info);
  check_picture_size(name, width, height);
  if (!prepare_rgb(h)) fail(ErrorKind::input, name + " is a PNG picture of a kind that cannot be read");
  Image image{static_cast<int>(width), static_cast<int>(height),
              std::vector<uint8_t>(static_cast<size_t>(width) * height * 3)};
  std::vector<png_bytep> rows;
  for (size_t y = 0; y < height; ++y) rows.push_back(image.rgb.data() + y * width * 3);
  if (!read_rows(h, rows.data())) fail(ErrorKind::input, name + " is a damaged PNG picture: " + reader.message);
  return image;
}

ImageRecord record(const std::string& bytes, const std::string& name) {
  Reader reader{&bytes, 0, {}};
  ReadHandle h(&reader.message);
  if (!read_info(h, reader)) fail(ErrorKind::input, name + " is a damaged PNG picture: " + reader.message);
  check_picture_size(name, png_get_image_width(h.png, h.info), png_get_image_height(h.png, h.info));
  ImageRecord result;
  auto collect = [&] {
    png_textp texts = nullptr;
    int count = 0;
    png_get_text(h.png, h.info, &texts, &count);
    for (int i = 0; i < count; ++i) {
      std::string text(texts[i].text, texts[i].text_length ? texts[i].text_length : texts[i].itxt_length);
      if (std::strcmp(texts[i].key, "parameters") == 0) result.parameters = text;
      if (std::strcmp(texts[i].key, "kinora") == 0) result.json = text;
    }
  };
  collect();
  if (result.json.empty()) {  // some programs write the texts after the picture
    std::vector<uint8_t> row(png_get_rowbytes(h.png, h.info));
    int passes = png_set_interlace_handling(h.png);
    if (skip_to_end(h, row.data(), passes, png_get_image_height(h.png, h.info))) collect();
  }
  return result;
}

bool recognises(const std::string& bytes) {
  return bytes.size() >= 8 && std::memcmp(bytes.data(), "\x89PNG\r\n\x1a\n", 8) == 0;
}

}  // namespace

const ImageCodec kPng{{"png", nullptr}, recognises, encode, decode, record};

}  // namespace kinora
