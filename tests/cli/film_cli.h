// Runs the program with a tiny film model in the published layout, in the folder "model".
#pragma once

#include "cli/cli.h"
#include "film_folder.h"
#include "io/video.h"

namespace kinora::test {

class FilmCli : public Cli {
 protected:
  FilmCli() : model_(temp_.path("model")) {}

  // `arguments` begin after "generate --video --model model".
  Outcome film(const std::string& arguments, const std::string& before = "") {
    return run("generate --video --model model --device cpu " + arguments, before);
  }
  void expect_film_error(const std::string& arguments, int status, const std::string& word,
                         const std::string& before = "") {
    expect_error("generate --video --model model --device cpu " + arguments, status, word, before);
    expect_no_film(arguments);
  }
  void expect_no_film(const std::string& what) {
    for (const auto& entry : std::filesystem::directory_iterator(temp_.path())) {
      std::string name = entry.path().filename();
      EXPECT_TRUE(name == "model" || name == "out.txt" || name == "err.txt" || name.starts_with("given"))
          << what << " left " << name;
    }
  }
  std::vector<Image> frames(const std::string& name) {
    VideoReader reader = VideoReader::open(temp_.path(name));
    std::vector<Image> frames;
    for (Image frame; reader.next(frame);) frames.push_back(frame);
    return frames;
  }
  void write_picture(const std::string& name, int width = 40, int height = 48) {
    Image image{width, height, {}};
    for (int i = 0; i < width * height * 3; ++i) image.rgb.push_back(static_cast<uint8_t>(i * 7 % 251));
    save_image(temp_.path(name), image);
  }

  FilmFolder model_;
};

}  // namespace kinora::test
