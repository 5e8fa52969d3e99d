#include "progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace kinora::cli {
namespace {

constexpr int kWidest = 100;  // a longer line does not read better

int terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string duration(double seconds) {
  auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

const char* verb(Stage stage) {
  return stage == Stage::encode ? "encoding" : stage == Stage::denoise ? "drawing" : "decoding";
}

// `cells` cells, filled to `part` of them in eighths.
std::string bar(double part, int cells) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  auto eighths = static_cast<int>(part * cells * 8 + 0.5);
  std::string text;
  for (int i = 0; i < eighths / 8; ++i) text += "█";
  int used = eighths / 8;
  if (eighths % 8) {
    text += kEighths[eighths % 8];
    ++used;
  }
  return text + std::string(static_cast<size_t>(cells - used), ' ');
}

}  // namespace

Progress::Progress(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO)) {}

Progress::~Progress() {
  if (drawn_) std::fprintf(stderr, "\n");
}

void Progress::clear() {
  if (drawn_) std::fprintf(stderr, "\r\x1b[K");
  drawn_ = false;
}

void Progress::note(const std::string& line) {
  if (quiet_) return;
  clear();
  std::fprintf(stderr, "%s\n", line.c_str());
}

void Progress::begin(int64_t picture, int64_t pictures, const char* noun) {
  noun_ = noun;
  picture_ = picture;
  pictures_ = pictures;
}

void Progress::report(const StageReport& report) {
  Clock::time_point now = Clock::now();
  if (report.done == 0) stage_start_ = now;
  last_part_ = report.done == 0 ? 0 : std::chrono::duration<double>(now - part_start_).count();
  spent_ = std::chrono::duration<double>(now - stage_start_).count();
  part_start_ = now;
  if (quiet_) return;
  if (terminal_) {
    std::fprintf(stderr, "\r%s\x1b[K", redrawn(report, terminal_width()).c_str());
    drawn_ = true;
    std::fflush(stderr);
  } else if (std::string line = plain(report); !line.empty()) {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
}

std::string Progress::plain(const StageReport& r) const {
  if (r.stage == Stage::encode) return r.done == 0 ? "encoding the prompt" : "";
  if (r.stage == Stage::decode && r.total == 1) return r.done == 0 ? "decoding" : "";
  if (r.stage == Stage::decode) return r.done == 0 ? "" : fmt::format("decoding tile {}/{}", r.done, r.total);
  if (r.done == 0) return pictures_ > 1 ? fmt::format("{} {}/{}", noun_, picture_, pictures_) : "";
  double left = spent_ / static_cast<double>(r.done) * static_cast<double>(r.total - r.done);
  return fmt::format("step {}/{}  {:.2f} s/step  {} left", r.done, r.total, last_part_, duration(left));
}

// As much as fits into `width` columns, the last one left free: terminals wrap when it is written.
std::string Progress::redrawn(const StageReport& r, int width) const {
  width = std::min(width, kWidest) - 1;
  std::string count = fmt::format("{}/{}", r.done, r.total);
  if (width < static_cast<int>(count.size())) return "";
  std::string head = verb(r.stage);
  if (pictures_ > 1) head = fmt::format("{} {}/{}  {}", noun_, picture_, pictures_, head);
  std::string tail = count;
  if (r.done > 0 && r.total > 1) {
    double left = spent_ / static_cast<double>(r.done) * static_cast<double>(r.total - r.done);
    tail += fmt::format("  {:.2f} s each  {} left", last_part_, duration(left));
  }
  int spare = width - static_cast<int>(head.size() + tail.size()) - 4;
  if (spare >= 6 && r.total > 1) {
    double part = static_cast<double>(r.done) / static_cast<double>(r.total);
    return fmt::format("{}  {}  {}", head, bar(part, std::min(spare, 40)), tail);
  }
  for (const std::string& line : {head + "  " + tail, head + "  " + count}) {
    if (static_cast<int>(line.size()) <= width) return line;
  }
  return count;
}

}  // namespace kinora::cli
