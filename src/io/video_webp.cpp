// Animated WebP, and the colours of GIF.
#include <webp/encode.h>
#include <webp/mux.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "io/file.h"
#include "io/image_codecs.h"
#include "io/video_writers.h"

namespace kinora {
namespace {

class WebpAnimation : public VideoWriter {
 public:
  WebpAnimation(std::string path, VideoOptions options)
      : path_(std::move(path)), options_(std::move(options)), file_(path_) {
    if (options_.width > WEBP_MAX_DIMENSION || options_.height > WEBP_MAX_DIMENSION)
      fail(ErrorKind::usage, "a WebP animation has at most 16383 pixels a side; use .mp4");
    WebPAnimEncoderOptions settings;
    bool good = WebPAnimEncoderOptionsInit(&settings) && WebPConfigInit(&config_) && WebPPictureInit(&picture_);
    if (good) encoder_ = WebPAnimEncoderNew(options_.width, options_.height, &settings);
    if (!encoder_) fail(ErrorKind::resource, "cannot begin a WebP animation (out of memory?)");
    config_.quality = options_.quality < 0 ? 85.0f : static_cast<float>(options_.quality);
  }
  ~WebpAnimation() override {
    WebPPictureFree(&picture_);
    WebPAnimEncoderDelete(encoder_);
  }
  WebpAnimation(const WebpAnimation&) = delete;
  WebpAnimation& operator=(const WebpAnimation&) = delete;

  void add(const Image& frame) override {
    expect_frame_size(frame, options_);
    picture_.use_argb = 1;
    picture_.width = frame.width;
    picture_.height = frame.height;
    if (!WebPPictureImportRGB(&picture_, frame.rgb.data(), frame.width * 3) ||
        !WebPAnimEncoderAdd(encoder_, &picture_, milliseconds(frames_), &config_)) {
      fail(ErrorKind::resource, std::string("cannot encode a WebP frame: ") + WebPAnimEncoderGetError(encoder_));
    }
    ++frames_;
  }

  void finish() override {
    if (frames_ == 0) fail_without_frames(path_);
    Data film, whole;
    if (!WebPAnimEncoderAdd(encoder_, nullptr, milliseconds(frames_), nullptr) ||
        !WebPAnimEncoderAssemble(encoder_, &film.data)) {
      fail(ErrorKind::resource, std::string("cannot assemble a WebP animation: ") + WebPAnimEncoderGetError(encoder_));
    }
    std::string xmp = to_xmp(options_.record);
    if (!xmp.empty()) {
      std::unique_ptr<WebPMux, void (*)(WebPMux*)> mux(WebPMuxCreate(&film.data, 0), WebPMuxDelete);
      WebPData text{reinterpret_cast<const uint8_t*>(xmp.data()), xmp.size()};
      if (!mux || WebPMuxSetChunk(mux.get(), "XMP ", &text, 1) != WEBP_MUX_OK ||
          WebPMuxAssemble(mux.get(), &whole.data) != WEBP_MUX_OK) {
        fail(ErrorKind::resource, "cannot assemble a WebP animation");
      }
    }
    const WebPData& out = xmp.empty() ? film.data : whole.data;
    file_.write(std::string_view(reinterpret_cast<const char*>(out.bytes), out.size));
    file_.commit();
  }

 private:
  struct Data {
    WebPData data{};
    Data() { WebPDataInit(&data); }
    ~Data() { WebPDataClear(&data); }
    Data(const Data&) = delete;
    Data& operator=(const Data&) = delete;
  };
  int milliseconds(int64_t frame) const {
    return static_cast<int>(std::lround(static_cast<double>(frame) * 1000 / options_.fps));
  }

  std::string path_;
  VideoOptions options_;
  TemporaryFile file_;  // now, so that a folder that cannot be written is found before the film is made
  WebPAnimEncoder* encoder_ = nullptr;
  WebPConfig config_{};
  WebPPicture picture_{};
  int64_t frames_ = 0;
};

// A box of colours with 5 bits a channel, for median cut.
struct Box {
  std::array<int, 3> low{}, high{};
  int64_t pixels = 0;
  int longest() const {
    int axis = 0;
    for (int i = 1; i < 3; ++i) {
      auto a = static_cast<size_t>(axis), b = static_cast<size_t>(i);
      if (high[b] - low[b] > high[a] - low[a]) axis = i;
    }
    return axis;
  }
};

using Histogram = std::vector<int64_t>;  // by r·1024 + g·32 + b

template <class F>
void each_colour(const Box& box, const F& f) {
  for (int r = box.low[0]; r <= box.high[0]; ++r) {
    for (int g = box.low[1]; g <= box.high[1]; ++g) {
      for (int b = box.low[2]; b <= box.high[2]; ++b)
        f(std::array{r, g, b}, static_cast<size_t>(r * 1024 + g * 32 + b));
    }
  }
}

// Draws the box tight around its colours and counts their pixels.
Box shrink(const Box& box, const Histogram& histogram) {
  Box tight{{31, 31, 31}, {0, 0, 0}, 0};
  each_colour(box, [&](const std::array<int, 3>& colour, size_t at) {
    if (histogram[at] == 0) return;
    tight.pixels += histogram[at];
    for (size_t i = 0; i < 3; ++i) {
      tight.low[i] = std::min(tight.low[i], colour[i]);
      tight.high[i] = std::max(tight.high[i], colour[i]);
    }
  });
  return tight;
}

// Cuts the box along its longest side where half of its pixels lie on either side.
std::pair<Box, Box> cut(const Box& box, const Histogram& histogram) {
  auto axis = static_cast<size_t>(box.longest());
  std::array<int64_t, 32> along{};
  each_colour(box, [&](const std::array<int, 3>& colour, size_t at) {
    along[static_cast<size_t>(colour[axis])] += histogram[at];
  });
  int64_t sum = 0;
  int place = box.low[axis];
  for (; place < box.high[axis] - 1; ++place) {
    sum += along[static_cast<size_t>(place)];
    if (2 * sum >= box.pixels) break;
  }
  Box first = box, second = box;
  first.high[axis] = place;
  second.low[axis] = place + 1;
  return {shrink(first, histogram), shrink(second, histogram)};
}

std::vector<Box> median_cut(const Histogram& histogram) {
  std::vector<Box> boxes{shrink({{0, 0, 0}, {31, 31, 31}, 0}, histogram)};
  auto weight = [](const Box& b) {
    auto axis = static_cast<size_t>(b.longest());
    return b.pixels * (b.high[axis] - b.low[axis]);  // 0 when there is nothing to cut
  };
  while (boxes.size() < 256) {
    auto largest =
        std::max_element(boxes.begin(), boxes.end(), [&](const Box& a, const Box& b) { return weight(a) < weight(b); });
    if (weight(*largest) == 0) break;
    auto [first, second] = cut(*largest, histogram);
    *largest = first;
    boxes.push_back(second);
  }
  return boxes;
}

// The threshold matrix of ordered dithering: bits of x ^ y and y, interleaved (Bayer, 8 x 8), in -32..31.
int threshold(int x, int y) {
  int value = 0;
  for (int bit = 0; bit < 3; ++bit)
    value |= ((((x ^ y) >> bit) & 1) << (5 - 2 * bit)) | (((y >> bit) & 1) << (4 - 2 * bit));
  return value - 32;
}

}  // namespace

IndexedImage reduce_colours(const Image& image) {
  Histogram histogram(32768, 0), red(32768, 0), green(32768, 0), blue(32768, 0);
  size_t pixels = image.rgb.size() / 3;
  for (size_t i = 0; i < pixels; ++i) {
    const uint8_t* p = image.rgb.data() + 3 * i;
    auto at = static_cast<size_t>((p[0] >> 3) * 1024 + (p[1] >> 3) * 32 + (p[2] >> 3));
    ++histogram[at];
    red[at] += p[0];
    green[at] += p[1];
    blue[at] += p[2];
  }
  IndexedImage out;
  std::vector<std::array<int, 3>> colours;
  for (const Box& box : median_cut(histogram)) {
    std::array<int64_t, 3> sum{};
    each_colour(box, [&](const std::array<int, 3>&, size_t at) {
      sum[0] += red[at];
      sum[1] += green[at];
      sum[2] += blue[at];
    });
    std::array<int, 3> mean{};
    for (size_t c = 0; c < 3; ++c)
      mean[c] = static_cast<int>((sum[c] + box.pixels / 2) / std::max<int64_t>(1, box.pixels));
    colours.push_back(mean);
    out.palette.push_back(0xff000000u | static_cast<uint32_t>(mean[0]) << 16 | static_cast<uint32_t>(mean[1]) << 8 |
                          static_cast<uint32_t>(mean[2]));
  }
  std::vector<int> nearest(32768, -1);  // by colour of 5 bits a channel, found when first asked for
  auto index_of = [&](int r, int g, int b) {
    int& found = nearest[static_cast<size_t>((r >> 3) * 1024 + (g >> 3) * 32 + (b >> 3))];
    int64_t best = INT64_MAX;
    for (size_t i = 0; found < 0 || best != INT64_MAX; ++i) {
      if (i == colours.size()) break;
      int64_t dr = colours[i][0] - (r | 4), dg = colours[i][1] - (g | 4), db = colours[i][2] - (b | 4);
      int64_t distance = 2 * dr * dr + 4 * dg * dg + db * db;
      if (distance < best) {
        best = distance;
        found = static_cast<int>(i);
      }
    }
    return static_cast<uint8_t>(found);
  };
  out.pixels.resize(pixels);
  for (size_t i = 0; i < pixels; ++i) {
    auto x = static_cast<int>(i % static_cast<size_t>(image.width)),
         y = static_cast<int>(i / static_cast<size_t>(image.width));
    int offset = colours.size() < 256 ? 0 : threshold(x & 7, y & 7) / 4;  // few colours need no dithering
    auto moved = [&](size_t c) { return std::clamp(image.rgb[3 * i + c] + offset, 0, 255); };
    out.pixels[i] = index_of(moved(0), moved(1), moved(2));
  }
  return out;
}

std::unique_ptr<VideoWriter> open_webp_animation(const std::string& path, const VideoOptions& options) {
  return std::make_unique<WebpAnimation>(path, options);
}

}  // namespace kinora
