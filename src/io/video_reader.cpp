// Reading films with FFmpeg's libraries, from memory: no protocol, no other file, a short list of formats and codecs.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/ffmpeg.h"
#include "io/file.h"
#include "io/video.h"

namespace kinora {

using namespace ffmpeg;

namespace {

constexpr const char* kFormats = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi";
constexpr const char* kCodecs =
    "h264,hevc,av1,libdav1d,libaom-av1,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg2video,mjpeg,gif,png,ffv1,prores";
constexpr int64_t kMostPixels = 36000000;
constexpr int64_t kMostIdlePackets = 4096;  // in a row, without a frame
constexpr int kBuffer = 1 << 16;

struct Source {
  std::span<const std::byte> bytes;
  size_t at = 0;
};

int read_source(void* opaque, uint8_t* out, int size) {
  auto* source = static_cast<Source*>(opaque);
  size_t n = std::min(static_cast<size_t>(size), source->bytes.size() - source->at);
  if (n == 0) return AVERROR_EOF;
  std::memcpy(out, source->bytes.data() + source->at, n);
  source->at += n;
  return static_cast<int>(n);
}

int64_t seek_source(void* opaque, int64_t offset, int whence) {
  auto* source = static_cast<Source*>(opaque);
  auto size = static_cast<int64_t>(source->bytes.size());
  if (whence & AVSEEK_SIZE) return size;
  whence &= ~AVSEEK_FORCE;
  int64_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? static_cast<int64_t>(source->at) : size;
  if (offset > size - from || offset < -from) return AVERROR(EINVAL);
  source->at = static_cast<size_t>(from + offset);
  return from + offset;
}

// Some formats may ask for other files.
int refuse_to_open(AVFormatContext*, AVIOContext**, const char*, int, AVDictionary**) { return AVERROR(EACCES); }

int matrix_of(const AVFrame& frame) {
  switch (frame.colorspace) {
    case AVCOL_SPC_BT709: return SWS_CS_ITU709;
    case AVCOL_SPC_FCC: return SWS_CS_FCC;
    case AVCOL_SPC_BT470BG:
    case AVCOL_SPC_SMPTE170M: return SWS_CS_ITU601;
    case AVCOL_SPC_SMPTE240M: return SWS_CS_SMPTE240M;
    case AVCOL_SPC_BT2020_NCL:
    case AVCOL_SPC_BT2020_CL: return SWS_CS_BT2020;
    default: return frame.height > 576 || frame.width >= 1280 ? SWS_CS_ITU709 : SWS_CS_ITU601;  // as players guess
  }
}

// The "full range" pixel formats are the plain ones with another range.
AVPixelFormat plain_format(int format, bool& wide) {
  switch (format) {
    case AV_PIX_FMT_YUVJ420P: wide = true; return AV_PIX_FMT_YUV420P;
    case AV_PIX_FMT_YUVJ422P: wide = true; return AV_PIX_FMT_YUV422P;
    case AV_PIX_FMT_YUVJ444P: wide = true; return AV_PIX_FMT_YUV444P;
    case AV_PIX_FMT_YUVJ440P: wide = true; return AV_PIX_FMT_YUV440P;
    default: return static_cast<AVPixelFormat>(format);
  }
}

// Quarter turns to the right that bring the pictures of a stream upright; phones record so.
int turns_of(const AVStream& s) {
  const uint8_t* matrix = nullptr;
  size_t size = 0;
#if LIBAVFORMAT_VERSION_INT >= AV_VERSION_INT(60, 15, 100)
  const AVCodecParameters& p = *s.codecpar;
  if (const AVPacketSideData* side =
          av_packet_side_data_get(p.coded_side_data, p.nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX)) {
    matrix = side->data;
    size = side->size;
  }
#else
  matrix = av_stream_get_side_data(&s, AV_PKT_DATA_DISPLAYMATRIX, &size);
#endif
  if (!matrix || size < 9 * sizeof(int32_t)) return 0;
  int32_t values[9];
  std::memcpy(values, matrix, sizeof values);
  double angle = av_display_rotation_get(values);  // to the left; NaN for a matrix that is none
  return std::isfinite(angle) ? ((static_cast<int>(std::lround(-angle / 90)) % 4) + 4) % 4 : 0;
}

void turn_right(Image& image) {
  Image out{image.height, image.width, std::vector<uint8_t>(image.rgb.size())};
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      size_t from =
          static_cast<size_t>(image.height - 1 - x) * static_cast<size_t>(image.width) + static_cast<size_t>(y);
      size_t to = static_cast<size_t>(y) * static_cast<size_t>(out.width) + static_cast<size_t>(x);
      std::memcpy(out.rgb.data() + 3 * to, image.rgb.data() + 3 * from, 3);
    }
  }
  image = std::move(out);
}

}  // namespace

struct VideoReader::State {
  std::shared_ptr<MappedFile> file;
  std::string name;
  Source source;
  VideoInfo info;
  AVIOContext* io = nullptr;
  AVFormatContext* format = nullptr;
  Codec codec;
  Frame frame = new_frame();
  Packet packet = new_packet();
  Scaler scaler;
  ScalerOptions scaling{};
  int stream = -1, width = 0, height = 0, turns = 0;  // of the pictures as they are stored
  int64_t idle = 0;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    avformat_close_input(&format);
    if (io) av_freep(&io->buffer);
    avio_context_free(&io);
  }

  [[noreturn]] void refuse(const std::string& why) const {
    fail(ErrorKind::input, name + " is no film that can be read: " + why);
  }
  void expect(int code, const char* what) const {
    if (code == AVERROR(ENOMEM)) fail(ErrorKind::resource, "out of memory while reading " + name);
    if (code < 0) refuse(std::string(what) + " (" + reason(code) + ")");
  }

  void start();
  void open_stream();
  void convert(Image& image);
};

void VideoReader::State::start() {
  be_quiet();
  auto* buffer = static_cast<uint8_t*>(av_malloc(kBuffer));
  io = buffer ? avio_alloc_context(buffer, kBuffer, 0, &source, read_source, nullptr, seek_source) : nullptr;
  format = io ? avformat_alloc_context() : nullptr;
  if (!format) {
    if (!io) av_free(buffer);
    fail(ErrorKind::resource, "out of memory while reading " + name);
  }
  format->pb = io;
  format->flags |= AVFMT_FLAG_CUSTOM_IO;
  format->io_open = refuse_to_open;
  format->probesize = 5 << 20;
  format->max_analyze_duration = 5 * AV_TIME_BASE;
  format->max_streams = 64;
  format->format_whitelist = av_strdup(kFormats);
  format->codec_whitelist = av_strdup(kCodecs);
  expect(avformat_open_input(&format, nullptr, nullptr, nullptr), "its format is not known or it is damaged");
  for (unsigned i = 0; i < format->nb_streams; ++i) {  // sound is not even looked at
    AVStream* s = format->streams[i];
    if (s->codecpar->codec_type != AVMEDIA_TYPE_VIDEO) s->discard = AVDISCARD_ALL;
  }
  expect(avformat_find_stream_info(format, nullptr), "its streams are damaged");
  open_stream();
  if (const AVDictionaryEntry* text = av_dict_get(format->metadata, "comment", nullptr, 0)) info.record = text->value;
}

void VideoReader::State::open_stream() {
  stream = av_find_best_stream(format, AVMEDIA_TYPE_VIDEO, -1, -1, nullptr, 0);
  if (stream < 0) refuse("there are no pictures in it");
  for (unsigned i = 0; i < format->nb_streams; ++i) {
    if (static_cast<int>(i) != stream) format->streams[i]->discard = AVDISCARD_ALL;
  }
  const AVStream* s = format->streams[stream];
  const AVCodecParameters* p = s->codecpar;
  if (p->width < 1 || p->height < 1 || p->width > 16384 || p->height > 16384 ||
      int64_t{p->width} * p->height > kMostPixels)
    refuse("its frames are " + std::to_string(p->width) + "x" + std::to_string(p->height) +
           " pixels; at most 36 million can be read");
  const AVCodec* decoder = avcodec_find_decoder(p->codec_id);
  if (!decoder)
    refuse(std::string("the FFmpeg libraries on this machine have no decoder for ") + avcodec_get_name(p->codec_id));
  codec.reset(avcodec_alloc_context3(decoder));
  if (!codec) fail(ErrorKind::resource, "out of memory while reading " + name);
  expect(avcodec_parameters_to_context(codec.get(), p), "its codec's settings are damaged");
  codec->thread_count = 1;
  codec->max_pixels = kMostPixels;
  codec->codec_whitelist = av_strdup(kCodecs);
  expect(avcodec_open2(codec.get(), decoder, nullptr), "its codec cannot be used");
  width = p->width;
  height = p->height;
  turns = turns_of(*s);
  info.width = turns % 2 ? height : width;
  info.height = turns % 2 ? width : height;
  AVRational rate = s->avg_frame_rate.num > 0 && s->avg_frame_rate.den > 0 ? s->avg_frame_rate : s->r_frame_rate;
  if (rate.num > 0 && rate.den > 0) info.fps = av_q2d(rate);
  if (format->duration > 0) info.seconds = static_cast<double>(format->duration) / AV_TIME_BASE;
  info.codec = avcodec_get_name(p->codec_id);
}

void VideoReader::State::convert(Image& image) {
  if (frame->width != width || frame->height != height)
    refuse("its frames change their size from " + std::to_string(width) + "x" + std::to_string(height) + " to " +
           std::to_string(frame->width) + "x" + std::to_string(frame->height));
  bool wide = frame->color_range == AVCOL_RANGE_JPEG;
  ScalerOptions o{.width = width,
                  .height = height,
                  .from = plain_format(frame->format, wide),
                  .to = AV_PIX_FMT_RGB24,
                  .wide_from = wide,
                  .wide_to = true,
                  .matrix_from = matrix_of(*frame),
                  .matrix_to = SWS_CS_DEFAULT};
  const AVPixFmtDescriptor* format_info = av_pix_fmt_desc_get(o.from);
  if (!format_info || !sws_isSupportedInput(o.from)) refuse("its pixel format is not known");
  bool centred = frame->chroma_location == AVCHROMA_LOC_CENTER || frame->chroma_location == AVCHROMA_LOC_TOP;
  if (format_info->log2_chroma_w == 1 && !centred) o.left_from = 0;
  bool same = scaler && o.from == scaling.from && o.wide_from == scaling.wide_from &&
              o.matrix_from == scaling.matrix_from && o.left_from == scaling.left_from;
  if (!same) scaler = new_scaler(o);
  scaling = o;
  image.width = width;
  image.height = height;
  auto line = static_cast<size_t>(width) * 3;
  image.rgb.resize(line * static_cast<size_t>(height) + 64);  // swscale may write whole vectors
  uint8_t* planes[4] = {image.rgb.data()};
  int strides[4] = {static_cast<int>(line)};
  expect(sws_scale(scaler.get(), frame->data, frame->linesize, 0, height, planes, strides), "its colours are damaged");
  image.rgb.resize(line * static_cast<size_t>(height));
  for (int i = 0; i < turns; ++i) turn_right(image);
}

VideoReader::VideoReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
VideoReader::VideoReader(VideoReader&&) noexcept = default;
VideoReader& VideoReader::operator=(VideoReader&&) noexcept = default;
VideoReader::~VideoReader() = default;

const VideoInfo& VideoReader::info() const { return state_->info; }

VideoReader VideoReader::open(const std::string& path) {
  auto state = std::make_unique<State>();
  state->file = MappedFile::open(path);
  state->name = path;
  state->source.bytes = state->file->bytes();
  state->start();
  return VideoReader(std::move(state));
}

VideoReader VideoReader::from_bytes(std::span<const std::byte> bytes, const std::string& name) {
  auto state = std::make_unique<State>();
  state->name = name;
  state->source.bytes = bytes;
  state->start();
  return VideoReader(std::move(state));
}

bool VideoReader::next(Image& image) {
  State& s = *state_;
  for (;;) {
    int code = avcodec_receive_frame(s.codec.get(), s.frame.get());
    if (code >= 0) {
      s.idle = 0;
      s.convert(image);
      av_frame_unref(s.frame.get());
      return true;
    }
    if (code == AVERROR_EOF) return false;
    if (code != AVERROR(EAGAIN)) s.expect(code, "a frame is damaged");
    code = av_read_frame(s.format, s.packet.get());
    if (code == AVERROR_EOF) {
      s.expect(avcodec_send_packet(s.codec.get(), nullptr), "its end is damaged");
      continue;
    }
    s.expect(code, "it ends too early or is damaged");
    if (++s.idle > kMostIdlePackets) s.refuse("there are no pictures in a long part of it");
    bool ours = s.packet->stream_index == s.stream;
    code = ours ? avcodec_send_packet(s.codec.get(), s.packet.get()) : 0;
    av_packet_unref(s.packet.get());
    if (code != AVERROR(EAGAIN)) s.expect(code, "a frame is damaged");
  }
}

}  // namespace kinora
