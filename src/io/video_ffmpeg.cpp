// Writing films with FFmpeg's libraries.
#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "io/ffmpeg.h"
#include "io/file.h"
#include "io/video_writers.h"

namespace kinora {
namespace {

using namespace ffmpeg;

// Settings of an encoder that make its bytes depend on its input alone: a fixed number of threads, no date.
struct Encoder {
  const char* name;     // FFmpeg's
  int threads;          // x264 gives other bytes for another number, so it is fixed
  const char* options;  // "key=value" pairs, '\n' between them
};

struct Codec {
  const char* name;
  std::array<Encoder, 2> encoders;  // the first that the library has
  const char* endings;
  int quality, worst;
};

constexpr std::array kCodecs{
    Codec{"h264", {{{"libx264", 4, "preset=medium\nx264-params=cpu-independent=1"}, {}}}, " mp4 mkv ", 18, 51},
    Codec{"h265",
          {{{"libx265", 1, "preset=medium\nx265-params=log-level=none:pools=none:frame-threads=1:info=0"}, {}}},
          " mp4 mkv ",
          22,
          51},
    Codec{"av1",
          {{{"libsvtav1", 1, "preset=8\nsvtav1-params=lp=1"}, {"libaom-av1", 1, "cpu-used=6\nrow-mt=0\nb=0"}}},
          " mp4 mkv webm ",
          30,
          63},
    Codec{"vp9", {{{"libvpx-vp9", 1, "deadline=good\ncpu-used=3\nrow-mt=0\nb=0"}, {}}}, " webm mkv mp4 ", 24, 63},
    Codec{"gif", {{{"gif", 1, ""}, {}}}, " gif ", -1, -1},
};

const Encoder* available(const Codec& codec) {
  for (const Encoder& encoder : codec.encoders) {
    if (encoder.name && avcodec_find_encoder_by_name(encoder.name)) return &encoder;
  }
  return nullptr;
}

bool holds(const Codec& codec, const std::string& ending) {
  return std::string(codec.endings).find(" " + ending + " ") != std::string::npos;
}

const Codec& codec_for(const std::string& ending, const std::string& name) {
  std::string known, here;
  for (const Codec& codec : kCodecs) {
    if (!holds(codec, ending)) continue;
    known += std::string(known.empty() ? "" : ", ") + codec.name;
    if (!available(codec)) continue;
    here += std::string(here.empty() ? "" : ", ") + codec.name;
    bool preferred = ending != "webm" || std::string(codec.name) == "vp9";
    if (name == codec.name || (name.empty() && preferred)) return codec;
  }
  std::string wanted = name.empty() ? "a codec for ." + ending : "'" + name + "'";
  std::string all = ", " + known + ", ";
  bool fits = name.empty() || all.find(", " + name + ", ") != std::string::npos;
  fail(ErrorKind::usage, (fits ? "the FFmpeg libraries on this machine cannot write " + wanted
                               : "a ." + ending + " film cannot hold " + wanted) +
                             "; available for ." + ending + ": " + (here.empty() ? "nothing" : here));
}

class Dictionary {
 public:
  ~Dictionary() { av_dict_free(&entries_); }
  Dictionary() = default;
  Dictionary(const Dictionary&) = delete;
  Dictionary& operator=(const Dictionary&) = delete;
  void set(const std::string& key, const std::string& value) { av_dict_set(&entries_, key.c_str(), value.c_str(), 0); }
  AVDictionary** address() { return &entries_; }

 private:
  AVDictionary* entries_ = nullptr;
};

class FfmpegWriter : public VideoWriter {
 public:
  FfmpegWriter(std::string path, const std::string& ending, const VideoOptions& o)
      : path_(std::move(path)), options_(o), gif_(ending == "gif"), file_(path_) {
    be_quiet();
    const Codec& codec = codec_for(ending, o.codec);
    width_ = gif_ ? o.width : (o.width + 1) / 2 * 2;
    height_ = gif_ ? o.height : (o.height + 1) / 2 * 2;
    const char* format = ending == "mkv" ? "matroska" : ending.c_str();
    expect(avformat_alloc_output_context2(&format_, nullptr, format, url().c_str()), "cannot begin");
    format_->flags |= AVFMT_FLAG_BITEXACT;
    try {
      open_codec(codec);
      open_file(codec, ending);
    } catch (...) {
      close();
      throw;
    }
  }
  ~FfmpegWriter() override { close(); }

  void add(const Image& image) override {
    expect_frame_size(image, options_);
    expect(av_frame_make_writable(frame_.get()), "cannot prepare a frame of");
    if (gif_) {
      fill_indexed(image);
    } else {
      fill_yuv(image);
    }
    frame_->pts = frames_++;
    encode(frame_.get());
  }

  void finish() override {
    if (frames_ == 0) fail_without_frames(path_);
    encode(nullptr);
    begun_ = false;
    expect(av_write_trailer(format_), "cannot write");
    expect(avio_closep(&format_->pb), "cannot write");
    file_.commit();
  }

 private:
  std::string url() const { return "file:" + file_.name(); }  // a name may hold a colon

  void expect(int code, const char* what) const {
    if (code >= 0) return;
    ErrorKind kind = code == AVERROR(ENOMEM) ? ErrorKind::resource : ErrorKind::io;
    fail(kind, std::string(what) + " " + path_ + ": " + reason(code));
  }

  void open_codec(const Codec& choice) {
    const Encoder& encoder = *available(choice);
    const AVCodec* codec = avcodec_find_encoder_by_name(encoder.name);
    codec_.reset(avcodec_alloc_context3(codec));
    if (!codec_) fail(ErrorKind::resource, "out of memory for an encoder");
    AVRational rate = av_d2q(options_.fps, 1001000);
    codec_->width = width_;
    codec_->height = height_;
    codec_->time_base = av_inv_q(rate);
    codec_->framerate = rate;
    codec_->thread_count = encoder.threads;
    codec_->flags |= AV_CODEC_FLAG_BITEXACT;
    codec_->pix_fmt = gif_ ? AV_PIX_FMT_PAL8 : AV_PIX_FMT_YUV420P;
    if (format_->oformat->flags & AVFMT_GLOBALHEADER) codec_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    Dictionary settings;
    if (!gif_) {
      codec_->color_primaries = AVCOL_PRI_BT709;
      codec_->color_trc = AVCOL_TRC_BT709;
      codec_->colorspace = AVCOL_SPC_BT709;
      codec_->color_range = AVCOL_RANGE_MPEG;
      codec_->chroma_sample_location = AVCHROMA_LOC_LEFT;
      int quality = options_.quality < 0 ? choice.quality : options_.quality;
      if (quality > choice.worst)
        fail(ErrorKind::usage,
             std::string("quality of ") + choice.name + " goes from 0 (best) to " + std::to_string(choice.worst));
      settings.set("crf", std::to_string(quality));
    }
    for (std::string rest = encoder.options; !rest.empty();) {
      std::string pair = rest.substr(0, rest.find('\n'));
      rest = pair.size() < rest.size() ? rest.substr(pair.size() + 1) : "";
      settings.set(pair.substr(0, pair.find('=')), pair.substr(pair.find('=') + 1));
    }
    expect(avcodec_open2(codec_.get(), codec, settings.address()), "cannot start the encoder of");
    frame_ = new_frame();
    frame_->format = codec_->pix_fmt;
    frame_->width = width_;
    frame_->height = height_;
    expect(av_frame_get_buffer(frame_.get(), 0), "no memory for frames of");
    if (!gif_) {
      frame_->color_range = AVCOL_RANGE_MPEG;
      frame_->colorspace = AVCOL_SPC_BT709;
      scaler_ = new_scaler({.width = width_,
                            .height = height_,
                            .from = AV_PIX_FMT_RGB24,
                            .to = AV_PIX_FMT_YUV420P,
                            .wide_from = true,
                            .wide_to = false,
                            .matrix_from = SWS_CS_ITU709,
                            .matrix_to = SWS_CS_ITU709,
                            .left_to = 0});
    }
    packet_ = new_packet();
  }

  void open_file(const Codec& codec, const std::string& ending) {
    stream_ = avformat_new_stream(format_, nullptr);
    if (!stream_) fail(ErrorKind::resource, "out of memory for a film");
    expect(avcodec_parameters_from_context(stream_->codecpar, codec_.get()), "cannot begin");
    stream_->time_base = codec_->time_base;
    stream_->avg_frame_rate = codec_->framerate;
    // QuickTime and Safari know H.265 by this name only.
    if (ending == "mp4" && std::string(codec.name) == "h265") stream_->codecpar->codec_tag = MKTAG('h', 'v', 'c', '1');
    if (!options_.record.json.empty()) av_dict_set(&format_->metadata, "comment", options_.record.json.c_str(), 0);
    expect(avio_open(&format_->pb, url().c_str(), AVIO_FLAG_WRITE), "cannot write");
    Dictionary settings;
    if (ending == "mp4") settings.set("movflags", "+faststart");
    expect(avformat_write_header(format_, settings.address()), "cannot write");
    begun_ = true;
  }

  // The image with its last column and row repeated where the film is larger by one, in memory that goes on for a
  // while: swscale reads whole vectors.
  void fill_yuv(const Image& image) {
    auto wide = static_cast<size_t>(width_) * 3, narrow = static_cast<size_t>(image.width) * 3;
    padded_.resize(wide * static_cast<size_t>(height_) + 64);
    for (int y = 0; y < height_; ++y) {
      const uint8_t* from = image.rgb.data() + static_cast<size_t>(std::min(y, image.height - 1)) * narrow;
      uint8_t* to = padded_.data() + static_cast<size_t>(y) * wide;
      std::memcpy(to, from, narrow);
      if (wide > narrow) std::memcpy(to + narrow, from + narrow - 3, 3);
    }
    const uint8_t* planes[4] = {padded_.data()};
    int strides[4] = {width_ * 3};
    expect(sws_scale(scaler_.get(), planes, strides, 0, height_, frame_->data, frame_->linesize), "cannot convert");
  }

  void fill_indexed(const Image& image) {
    IndexedImage indexed = reduce_colours(image);
    for (int y = 0; y < height_; ++y) {
      std::memcpy(frame_->data[0] + static_cast<std::ptrdiff_t>(y) * frame_->linesize[0],
                  indexed.pixels.data() + static_cast<size_t>(y) * static_cast<size_t>(width_),
                  static_cast<size_t>(width_));
    }
    indexed.palette.resize(256, 0xff000000u);
    std::memcpy(frame_->data[1], indexed.palette.data(), 256 * 4);
  }

  void encode(const AVFrame* frame) {
    expect(avcodec_send_frame(codec_.get(), frame), "cannot encode");
    for (;;) {
      int code = avcodec_receive_packet(codec_.get(), packet_.get());
      if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
      expect(code, "cannot encode");
      if (packet_->duration == 0) packet_->duration = 1;
      av_packet_rescale_ts(packet_.get(), codec_->time_base, stream_->time_base);
      packet_->stream_index = stream_->index;
      expect(av_interleaved_write_frame(format_, packet_.get()), "cannot write");
      expect(format_->pb->error, "cannot write");
    }
  }

  void close() {
    if (!format_) return;
    if (begun_) av_write_trailer(format_);  // of a film that is given up: nothing else frees what the format holds
    begun_ = false;
    avio_closep(&format_->pb);
    avformat_free_context(format_);
    format_ = nullptr;
  }

  std::string path_;
  VideoOptions options_;
  bool gif_;
  TemporaryFile file_;
  int width_ = 0, height_ = 0;
  int64_t frames_ = 0;
  bool begun_ = false;  // between the file's head and its tail
  AVFormatContext* format_ = nullptr;
  AVStream* stream_ = nullptr;
  ffmpeg::Codec codec_;
  Frame frame_;
  Packet packet_;
  Scaler scaler_;
  std::vector<uint8_t> padded_;
};

}  // namespace

void check_ffmpeg_codec(const std::string& ending, const std::string& codec) { codec_for(ending, codec); }

std::unique_ptr<VideoWriter> open_ffmpeg_video(const std::string& path, const std::string& ending,
                                               const VideoOptions& options) {
  return std::make_unique<FfmpegWriter>(path, ending, options);
}

}  // namespace kinora
