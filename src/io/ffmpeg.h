// The only door to FFmpeg's libraries: their headers, and owners for what they give out.
#pragma once

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/log.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
}

#include <cstdlib>
#include <memory>
#include <string>

#include "core/error.h"

namespace kinora::ffmpeg {

struct Free {
  void operator()(AVCodecContext* p) const { avcodec_free_context(&p); }
  void operator()(AVFrame* p) const { av_frame_free(&p); }
  void operator()(AVPacket* p) const { av_packet_free(&p); }
  void operator()(SwsContext* p) const { sws_freeContext(p); }
};
using Codec = std::unique_ptr<AVCodecContext, Free>;
using Frame = std::unique_ptr<AVFrame, Free>;
using Packet = std::unique_ptr<AVPacket, Free>;
using Scaler = std::unique_ptr<SwsContext, Free>;

inline Frame new_frame() {
  Frame frame(av_frame_alloc());
  if (!frame) fail(ErrorKind::resource, "out of memory for a frame");
  return frame;
}
inline Packet new_packet() {
  Packet packet(av_packet_alloc());
  if (!packet) fail(ErrorKind::resource, "out of memory for a packet");
  return packet;
}

inline std::string reason(int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = "";
  av_strerror(code, text, sizeof text);
  return text;
}

// Only what Kinora says itself goes to the terminal. SVT-AV1 can be told so through the environment alone.
inline void be_quiet() {
  static const int once = setenv("SVT_LOG", "1", 0);
  if (once == 0) av_log_set_level(AV_LOG_QUIET);
}

struct ScalerOptions {
  int width, height;
  AVPixelFormat from, to;
  bool wide_from, wide_to;               // 0..255 instead of 16..235
  int matrix_from, matrix_to;            // SWS_CS_*
  int left_from = -513, left_to = -513;  // place of chroma samples across, in 1/256 pixel; -513: in the middle
};

// A conversion between pixel formats of the same size, with the same bits on every machine.
inline Scaler new_scaler(const ScalerOptions& o) {
  Scaler scaler(sws_alloc_context());
  if (!scaler) fail(ErrorKind::resource, "out of memory for a colour conversion");
  auto set = [&](const char* name, int64_t value) { av_opt_set_int(scaler.get(), name, value, 0); };
  set("srcw", o.width);
  set("srch", o.height);
  set("dstw", o.width);
  set("dsth", o.height);
  set("src_format", o.from);
  set("dst_format", o.to);
  set("src_h_chr_pos", o.left_from);
  set("dst_h_chr_pos", o.left_to);
  set("sws_flags", SWS_BICUBIC | SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP);
  int code = sws_init_context(scaler.get(), nullptr, nullptr);
  if (code < 0) fail(ErrorKind::input, "these colours cannot be converted: " + reason(code));
  sws_setColorspaceDetails(scaler.get(), sws_getCoefficients(o.matrix_from), o.wide_from,
                           sws_getCoefficients(o.matrix_to), o.wide_to, 0, 1 << 16, 1 << 16);
  return scaler;
}

}  // namespace kinora::ffmpeg
