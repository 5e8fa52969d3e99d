#include <csetjmp>
#include <cstdio>
#include <cstring>
// jpeglib.h needs stdio first.
#include <jpeglib.h>
#include <webp/decode.h>
#include <webp/demux.h>
#include <webp/encode.h>
#include <webp/mux.h>

#include <array>
#include <memory>

#include "io/image_codecs.h"

namespace kinora {
namespace {

constexpr char kXmpMark[] = "http://ns.adobe.com/xap/1.0/";  // its final zero byte belongs to it

struct JpegError {
  jpeg_error_mgr manager;
  jmp_buf back;
  char message[JMSG_LENGTH_MAX];
};

void leave(j_common_ptr info) {
  auto* error = reinterpret_cast<JpegError*>(info->err);
  info->err->format_message(info, error->message);
  std::longjmp(error->back, 1);
}
void no_output(j_common_ptr) {}

void set_up(JpegError& error) {
  jpeg_std_error(&error.manager);
  error.manager.error_exit = leave;
  error.manager.output_message = no_output;
  error.message[0] = 0;
}

bool compress(jpeg_compress_struct* c, JpegError& error, const Image& image, const std::string& xmp,
              unsigned char** out, unsigned long* size) {
  if (setjmp(error.back)) return false;
  jpeg_create_compress(c);
  jpeg_mem_dest(c, out, size);
  c->image_width = static_cast<JDIMENSION>(image.width);
  c->image_height = static_cast<JDIMENSION>(image.height);
  c->input_components = 3;
  c->in_color_space = JCS_RGB;
  jpeg_set_defaults(c);
  jpeg_set_quality(c, 95, TRUE);
  jpeg_start_compress(c, TRUE);
  if (!xmp.empty()) {
    jpeg_write_marker(c, JPEG_APP0 + 1, reinterpret_cast<const JOCTET*>(xmp.data()), static_cast<unsigned>(xmp.size()));
  }
  while (c->next_scanline < c->image_height) {
    auto* row = const_cast<JSAMPLE*>(image.rgb.data() + static_cast<size_t>(c->next_scanline) * c->image_width * 3);
    jpeg_write_scanlines(c, &row, 1);
  }
  jpeg_finish_compress(c);
  return true;
}

std::string encode_jpeg(const Image& image, const ImageRecord& record) {
  std::string xmp = to_xmp(record);
  if (!xmp.empty()) xmp = std::string(kXmpMark, sizeof kXmpMark) + xmp;
  if (xmp.size() > 65000) xmp.clear();  // a segment holds 64 KiB; such a prompt stays in the PNG form only
  jpeg_compress_struct c{};
  JpegError error;
  set_up(error);
  c.err = &error.manager;
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  bool good = compress(&c, error, image, xmp, &memory, &size);
  jpeg_destroy_compress(&c);
  std::string out = good ? std::string(reinterpret_cast<char*>(memory), size) : "";
  std::free(memory);
  if (!good) fail(ErrorKind::io, std::string("cannot encode a JPEG picture: ") + error.message);
  return out;
}

bool read_header(jpeg_decompress_struct* d, JpegError& error, const std::string& bytes) {
  if (setjmp(error.back)) return false;
  jpeg_create_decompress(d);
  jpeg_save_markers(d, JPEG_APP0 + 1, 0xffff);
  jpeg_mem_src(d, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  return jpeg_read_header(d, TRUE) == JPEG_HEADER_OK;
}

bool read_pixels(jpeg_decompress_struct* d, JpegError& error, Image& image) {
  if (setjmp(error.back)) return false;
  d->out_color_space = JCS_RGB;
  jpeg_start_decompress(d);
  while (d->output_scanline < d->output_height) {
    JSAMPLE* row = image.rgb.data() + static_cast<size_t>(d->output_scanline) * d->output_width * 3;
    jpeg_read_scanlines(d, &row, 1);
  }
  jpeg_finish_decompress(d);
  return true;
}

struct JpegReader {
  jpeg_decompress_struct d{};
  JpegError error;
  JpegReader(const std::string& bytes, const std::string& name) {
    set_up(error);
    d.err = &error.manager;
    if (!read_header(&d, error, bytes)) {
      jpeg_destroy_decompress(&d);
      fail(ErrorKind::input, name + " is a damaged JPEG picture: " + error.message);
    }
  }
  ~JpegReader() { jpeg_destroy_decompress(&d); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;
};

Image decode_jpeg(const std::string& bytes, const std::string& name) {
  JpegReader reader(bytes, name);
  check_picture_size(name, reader.d.image_width, reader.d.image_height);
  if (reader.d.num_components == 4) fail(ErrorKind::input, name + " is a CMYK JPEG; convert it to RGB first");
  Image image{static_cast<int>(reader.d.image_width), static_cast<int>(reader.d.image_height), {}};
  image.rgb.resize(static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3);
  if (!read_pixels(&reader.d, reader.error, image)) {
    fail(ErrorKind::input, name + " is a damaged JPEG picture: " + reader.error.message);
  }
  return image;
}

ImageRecord record_jpeg(const std::string& bytes, const std::string& name) {
  JpegReader reader(bytes, name);
  for (jpeg_saved_marker_ptr m = reader.d.marker_list; m; m = m->next) {
    if (m->data_length > sizeof kXmpMark && std::memcmp(m->data, kXmpMark, sizeof kXmpMark) == 0) {
      return from_xmp(
          std::string(reinterpret_cast<const char*>(m->data) + sizeof kXmpMark, m->data_length - sizeof kXmpMark));
    }
  }
  return {};
}

bool is_jpeg(const std::string& bytes) {
  return bytes.size() >= 3 && std::memcmp(bytes.data(), "\xff\xd8\xff", 3) == 0;
}

struct WebpData {
  WebPData data{};
  WebpData() { WebPDataInit(&data); }
  ~WebpData() { WebPDataClear(&data); }
  WebpData(const WebpData&) = delete;
  WebpData& operator=(const WebpData&) = delete;
};

std::string encode_webp(const Image& image, const ImageRecord& record) {
  if (image.width > WEBP_MAX_DIMENSION || image.height > WEBP_MAX_DIMENSION) {
    fail(ErrorKind::usage, "a WebP picture has at most 16383 pixels a side; use .png");
  }
  uint8_t* memory = nullptr;
  size_t size = WebPEncodeRGB(image.rgb.data(), image.width, image.height, image.width * 3, 95, &memory);
  std::unique_ptr<uint8_t, void (*)(void*)> owner(memory, WebPFree);
  if (size == 0) fail(ErrorKind::resource, "cannot encode a WebP picture (out of memory?)");
  std::string xmp = to_xmp(record);
  if (xmp.empty()) return std::string(reinterpret_cast<char*>(memory), size);
  std::unique_ptr<WebPMux, void (*)(WebPMux*)> mux(WebPMuxNew(), WebPMuxDelete);
  WebPData picture{memory, size}, text{reinterpret_cast<const uint8_t*>(xmp.data()), xmp.size()};
  WebpData out;
  bool good = mux && WebPMuxSetImage(mux.get(), &picture, 1) == WEBP_MUX_OK &&
              WebPMuxSetChunk(mux.get(), "XMP ", &text, 1) == WEBP_MUX_OK &&
              WebPMuxAssemble(mux.get(), &out.data) == WEBP_MUX_OK;
  if (!good) fail(ErrorKind::resource, "cannot assemble a WebP picture");
  return std::string(reinterpret_cast<const char*>(out.data.bytes), out.data.size);
}

Image decode_webp(const std::string& bytes, const std::string& name) {
  WebPBitstreamFeatures features;
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  if (WebPGetFeatures(data, bytes.size(), &features) != VP8_STATUS_OK)
    fail(ErrorKind::input, name + " is a damaged WebP picture");
  if (features.has_animation) fail(ErrorKind::input, name + " is an animation; give a single picture");
  check_picture_size(name, static_cast<uint64_t>(features.width), static_cast<uint64_t>(features.height));
  auto pixels = static_cast<size_t>(features.width) * static_cast<size_t>(features.height);
  std::vector<uint8_t> rgba(pixels * 4);
  if (!WebPDecodeRGBAInto(data, bytes.size(), rgba.data(), rgba.size(), features.width * 4)) {
    fail(ErrorKind::input, name + " is a damaged WebP picture");
  }
  Image image{features.width, features.height, std::vector<uint8_t>(pixels * 3)};
  for (size_t i = 0; i < pixels; ++i) {
    unsigned alpha = rgba[4 * i + 3];
    for (size_t c = 0; c < 3; ++c)
      image.rgb[3 * i + c] = static_cast<uint8_t>((rgba[4 * i + c] * alpha + 255 * (255 - alpha) + 127) / 255);
  }
  return image;
}

ImageRecord record_webp(const std::string& bytes, const std::string&) {
  WebPData data{reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, chunk{};
  std::unique_ptr<WebPMux, void (*)(WebPMux*)> mux(WebPMuxCreate(&data, 0), WebPMuxDelete);
  if (!mux || WebPMuxGetChunk(mux.get(), "XMP ", &chunk) != WEBP_MUX_OK) return {};
  return from_xmp(std::string(reinterpret_cast<const char*>(chunk.bytes), chunk.size));
}

bool is_webp(const std::string& bytes) {
  return bytes.size() >= 12 && std::memcmp(bytes.data(), "RIFF", 4) == 0 &&
         std::memcmp(bytes.data() + 8, "WEBP", 4) == 0;
}

// A text as an XML element's content, and back.
std::string escape(const std::string& text) {
  std::string out;
  for (char c : text)
    out += c == '&' ? std::string("&amp;") : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  return out;
}

std::string element(const std::string& xmp, const std::string& tag) {
  size_t begin = xmp.find("<" + tag + ">"), end = xmp.find("</" + tag + ">");
  if (begin == std::string::npos || end == std::string::npos || end < begin) return "";
  std::string raw = xmp.substr(begin + tag.size() + 2, end - begin - tag.size() - 2), out;
  for (size_t i = 0; i < raw.size(); ++i) {
    auto takes = [&](const char* entity, char c) {
      size_t n = std::strlen(entity);
      if (raw.compare(i, n, entity) != 0) return false;
      out += c;
      i += n - 1;
      return true;
    };
    if (!takes("&amp;", '&') && !takes("&lt;", '<') && !takes("&gt;", '>')) out += raw[i];
  }
  return out;
}

}  // namespace

std::string to_xmp(const ImageRecord& record) {
  if (record.parameters.empty() && record.json.empty()) return "";
  return "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">"
         "<rdf:Description rdf:about=\"\" xmlns:kinora=\"urn:kinora\"><kinora:parameters>" +
         escape(record.parameters) + "</kinora:parameters><kinora:record>" + escape(record.json) +
         "</kinora:record></rdf:Description></rdf:RDF></x:xmpmeta>";
}

ImageRecord from_xmp(const std::string& xmp) {
  return {element(xmp, "kinora:parameters"), element(xmp, "kinora:record")};
}

void check_picture_size(const std::string& name, uint64_t width, uint64_t height) {
  if (width < 1 || height < 1 || width > 16384 || height > 16384) {
    fail(ErrorKind::input, name + " is " + std::to_string(width) + "x" + std::to_string(height) +
                               " pixels; pictures from 1x1 to 16384x16384 can be read");
  }
}

const ImageCodec kJpeg{{"jpg", "jpeg"}, is_jpeg, encode_jpeg, decode_jpeg, record_jpeg};
const ImageCodec kWebp{{"webp", nullptr}, is_webp, encode_webp, decode_webp, record_webp};

std::span<const ImageCodec> image_codecs() {
  static const std::array codecs{kPng, kJpeg, kWebp};
  return codecs;
}

}  // namespace kinora
