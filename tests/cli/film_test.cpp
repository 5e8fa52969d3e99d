// kinora generate --video as a user meets it, with tiny random models in the published layout.
#include <algorithm>
#include <set>
#include <tuple>

#include "cli/film_cli.h"

namespace kinora::test {
namespace {

TEST_F(FilmCli, MakesAFilmAndTheSameBytesAgain) {
  Outcome o = film(
      "'a yellow star, naïve' --seed 7 -n 'blue' --motion-score 3 --fps-save 12 -o film.mp4 "
      "--contact-sheet sheet.png");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "film.mp4\n");
  EXPECT_NE(o.err.find("step 3/3"), std::string::npos) << o.err;
  EXPECT_EQ(frames("film.mp4").size(), 5u);
  EXPECT_EQ(load_image(temp_.path("sheet.png")).width, 4 * 260 + 4);
  VideoReader reader = VideoReader::open(temp_.path("film.mp4"));
  EXPECT_EQ(reader.info().width, 32);
  EXPECT_EQ(reader.info().height, 32);
  EXPECT_EQ(reader.info().fps, 12);
  auto record = nlohmann::json::parse(reader.info().record);
  EXPECT_EQ(record["prompt"], "a yellow star, naïve");
  EXPECT_EQ(record["steps"], 3);
  EXPECT_EQ(record["guidance"], 7.5);

  ASSERT_EQ(film("'a yellow star, naïve' --seed 7 -n 'blue' --motion-score 3 --fps 12 -o second.mp4").status, 0);
  EXPECT_EQ(text("second.mp4"), text("film.mp4"));
  o = run("generate --from film.mp4 -o again.mp4 --threads 1");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(text("again.mp4"), text("film.mp4"));
}

// Of the program, with and without a limit; the tiny weights themselves hardly count.
TEST_F(FilmCli, MemoryIsLimited) {
  ASSERT_EQ(film("star --frames 9 -o film.mp4").status, 0) << text("err.txt");
  ASSERT_EQ(film("star --frames 9 --max-memory 2GB -o limited.mp4").status, 0) << text("err.txt");
  EXPECT_EQ(text("limited.mp4"), text("film.mp4"));
  ASSERT_EQ(run("generate cat --steps 1 -o cat.jpg").status, 0);
  ASSERT_EQ(run("generate cat --steps 1 --max-memory 1.5GiB -o limited.jpg").status, 0) << text("err.txt");
  EXPECT_EQ(text("limited.jpg"), text("cat.jpg"));
  for (const char* made : {"film.mp4", "limited.mp4", "cat.jpg", "limited.jpg"})
    std::filesystem::remove(temp_.path(made));
  expect_film_error("star --max-memory 20MB -o film.mp4", 6, "too small for T5");
  expect_film_error("star --max-memory lots -o film.mp4", 2, "as 12GB; not 'lots'");
  expect_film_error("star --max-memory 0 -o film.mp4", 2, "as 12GB");
#ifndef __SANITIZE_ADDRESS__  // its own memory is more than these limits
  expect_film_error("star -W 1024 -H 1024 --frames 65 --max-memory 200MB -o film.mp4", 6, "fewer frames");
  expect_error("generate cat -W 2048 -H 2048 --max-memory 300MB", 6, "a smaller size, --tile");
#endif
}

TEST_F(FilmCli, Previews) {
  ASSERT_EQ(film("star --frames 9 -W 48 -H 32 --preview given.jpg -o film.mp4").status, 0) << text("err.txt");
  EXPECT_EQ(load_image(temp_.path("given.jpg")).width, 3 * 52 - 4);  // of three latent frames
  EXPECT_EQ(load_image(temp_.path("given.jpg")).height, 32);
  ASSERT_EQ(film("star --frames 9 -W 48 -H 32 -o plain.mp4").status, 0);
  EXPECT_EQ(text("plain.mp4"), text("film.mp4"));
  for (const char* made : {"film.mp4", "plain.mp4"}) std::filesystem::remove(temp_.path(made));
  expect_film_error("star --preview strip.doc -o film.mp4", 2, "strip.doc");
  expect_film_error("star --preview none/strip.png -o film.mp4", 5, "folder none does not exist");
}

TEST_F(FilmCli, InspectAndBench) {
  Outcome o = run("inspect model --device cpu");
  ASSERT_EQ(o.status, 0) << o.err;
  for (const char* word : {"Open-Sora, 32x32, 5 frames", "t5 ", "clip ", "transformer ", "vae ", "F32",
                           "attention on cpu (--attention auto): transformer flash 3", "336x192, 5", "1024x576",
                           "the autoencoder, decoding"})
    EXPECT_NE(o.out.find(word), std::string::npos) << word << "\n" << o.out;
  for (const char* part : {"text_encoder", "transformer", "vae.decode", "vae.encode"}) {
    o = run("inspect model --device cpu --graph " + std::string(part));
    EXPECT_EQ(o.status, 0) << o.err;
    EXPECT_NE(o.out.find("linear("), std::string::npos) << part;
  }
  o = run("bench --model model --device cpu --repeats 1 --steps 1 --json");
  ASSERT_EQ(o.status, 0) << o.err;
  auto json = nlohmann::json::parse(o.out);
  ASSERT_EQ(json["rows"].size(), 5u);
  for (const auto& row : json["rows"]) {
    EXPECT_GT(row["median_s"].get<double>(), 0) << row;
    EXPECT_GT(row["peak_mib"].get<double>(), 0) << row;
  }
  EXPECT_GT(json["last_film"]["decode_s"].get<double>(), 0);
  o = run("bench --model model --device cpu --repeats 1 --component transformer --by-op");
  EXPECT_EQ(std::count(o.out.begin(), o.out.end(), '%') > 3, true) << o.out << o.err;
  expect_error("inspect model --device cpu --dtype int3", 2, "int3");
}

TEST_F(FilmCli, NoiseFiles) {
  ASSERT_EQ(film("star --seed 3 --save-noise given.safetensors -o film.mp4").status, 0) << text("err.txt");
  EXPECT_EQ(SafetensorsFile::open(temp_.path("given.safetensors")).tensor("latents").shape(), (Shape{1, 4, 2, 4, 4}));
  ASSERT_EQ(film("star --noise given.safetensors -o other.mp4").status, 0) << text("err.txt");
  std::vector<Image> a = frames("film.mp4"), b = frames("other.mp4");
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(a[i].rgb, b[i].rgb);
  ASSERT_EQ(run("generate --from other.mp4 -o again.mp4").status, 0) << text("err.txt");
  EXPECT_EQ(text("again.mp4"), text("other.mp4"));
  for (const char* made : {"film.mp4", "other.mp4", "again.mp4"}) std::filesystem::remove(temp_.path(made));
  expect_film_error("star --frames 9 --noise given.safetensors -o film.mp4", 3, "needs [1, 4, 3, 4, 4]");
  expect_film_error("star --noise none.safetensors -o film.mp4", 5, "none.safetensors");
  temp_.write("given.txt", "no noise");
  expect_film_error("star --noise given.txt -o film.mp4", 4, "given.txt");
}

TEST_F(FilmCli, DraftsAreRefined) {
  Outcome o =
      film("star --resolution 64px --aspect-ratio 1:1 --from-resolution 32px --refine-strength 0.6 -o film.mp4");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.err.find("made small in "), std::string::npos) << o.err;
  EXPECT_EQ(frames("film.mp4")[0].width, 64);
  ASSERT_EQ(run("generate --from film.mp4 -o again.mp4").status, 0) << text("err.txt");
  EXPECT_EQ(text("again.mp4"), text("film.mp4"));
  ASSERT_EQ(film("star -W 64 -H 64 -o direct.mp4").status, 0);
  EXPECT_NE(text("direct.mp4"), text("film.mp4"));
  for (const char* made : {"film.mp4", "again.mp4", "direct.mp4"}) std::filesystem::remove(temp_.path(made));
  expect_film_error("star --from-resolution 64px -o film.mp4", 2, "must be smaller");
  expect_film_error("star --from-resolution tiny -o film.mp4", 2, "'tiny' is no resolution (256px");
  expect_film_error("star -W 64 -H 64 --from-resolution 32px --refine-strength 0 -o film.mp4", 2, "above 0");
}

// The frames that options give, against those without them.
TEST_F(FilmCli, EveryOptionMatters) {
  temp_.write("given.txt", "0\n7\n");
  auto pixels = [&](const std::string& arguments) {
    Outcome o = film("star -q -o 'film-{index}.png' " + arguments);
    EXPECT_EQ(o.status, 0) << o.err;
    std::vector<uint8_t> all;
    for (int i = 0; i < 5; ++i) {
      Image frame = load_image(temp_.path("film-000" + std::to_string(i) + ".png"));
      all.insert(all.end(), frame.rgb.begin(), frame.rgb.end());
    }
    return all;
  };
  std::vector<uint8_t> plain = pixels("");
  for (const char* option : {"--seed 1", "--rng cuda", "-n red", "--guidance 1", "--flow-shift 9", "--steps 2",
                             "--motion-score 9", "--fps-save 12", "--temporal-sampling given.txt"})
    EXPECT_NE(pixels(option), plain) << option;
  for (const char* option : {"--no-skip", "--width 32 --height 32", "--resolution 32px --aspect-ratio 1:1", "-t 1"})
    EXPECT_EQ(pixels(option), plain) << option;
}

TEST_F(FilmCli, PicturesBeginAndEndFilms) {
  write_picture("given.jpg");
  write_picture("given-tail.png", 64, 32);
  std::set<std::string> films;
  int count = 0;
  for (const char* pictures : {"", "-i given.jpg", "--tail-image given-tail.png",
                               "-i given.jpg --tail-image given-tail.png", "-i given.jpg --image-guidance 1"}) {
    std::string name = std::to_string(++count) + ".mp4";
    Outcome o = film("star --frames 9 -o " + name + " " + pictures);
    ASSERT_EQ(o.status, 0) << o.err;
    ASSERT_EQ(run("generate -q --from " + name + " -o again.mp4").status, 0) << text("err.txt");
    EXPECT_EQ(text("again.mp4"), text(name)) << pictures;
    EXPECT_EQ(frames(name).size(), 9u);
    films.insert(text(name));
  }
  EXPECT_EQ(films.size(), 5u);
}

TEST_F(FilmCli, FirstPicturesAreDrawn) {
  for (const char* with_flux : {"", "yes"}) {
    if (*with_flux) model_.add_flux();  // auto: the model that came along, then Flux
    std::string size = *with_flux ? "--picture-resolution 64px" : "--picture-resolution 64x64";
    Outcome o = film("'a red apple' --first-picture auto --steps 2 " + size + " -o 'film" + with_flux + ".mp4'");
    ASSERT_EQ(o.status, 0) << o.err;
    std::string name = "film" + std::string(with_flux) + ".mp4";
    ASSERT_EQ(run("generate --from " + name + " -o again.mp4").status, 0) << text("err.txt");
    EXPECT_EQ(text("again.mp4"), text(name));
  }
  EXPECT_NE(text("film.mp4"), text("filmyes.mp4"));
  for (const char* made : {"film.mp4", "filmyes.mp4", "again.mp4"}) std::filesystem::remove(temp_.path(made));
  write_picture("given.jpg");
  expect_film_error("star --first-picture auto -i given.jpg -o film.mp4", 2, "either given or drawn");
  expect_film_error("star --first-picture model/google -o film.mp4", 5, "model_index.json");
  expect_film_error("star --first-picture auto --picture-resolution huge -o film.mp4", 2, "'huge' is no resolution");
}

TEST_F(FilmCli, FilmsAreExtended) {
  ASSERT_EQ(film("star -q --frames 41 -o given.mp4").status, 0) << text("err.txt");
  std::set<std::string> films;
  for (std::string option : {"--seed 1", "--seed 1 --video-head given.mp4", "--seed 1 --video-tail given.mp4"}) {
    ASSERT_EQ(film("star -q --frames 37 -o film.mp4 " + option).status, 0) << text("err.txt");
    ASSERT_EQ(run("generate -q --from film.mp4 -o again.mp4").status, 0) << text("err.txt");
    EXPECT_EQ(text("again.mp4"), text("film.mp4")) << option;
    EXPECT_EQ(frames("film.mp4").size(), 37u);
    films.insert(text("film.mp4"));
  }
  EXPECT_EQ(films.size(), 3u);
  for (const char* made : {"film.mp4", "again.mp4"}) std::filesystem::remove(temp_.path(made));
  write_picture("given.jpg");
  expect_film_error("star --frames 33 --video-head given.mp4 -o film.mp4", 2, "37 frames or more");
  expect_film_error("star --frames 69 --video-head given.mp4 --reference-frames 65 -o film.mp4", 3, "65 are needed");
  expect_film_error("star --frames 37 --video-head given.mp4 -i given.jpg -o film.mp4", 2, "either with pictures");
  expect_film_error("star --video-head given.mp4 --video-tail given.mp4 -o film.mp4", 2, "exclude one another");
  expect_film_error("star --video-head given.mp4 --reference-frames 34 -o film.mp4", 2, "only one of 33 or 65");
  expect_film_error("star --reference-frames 65 -o film.mp4", 2, "--video-head or --video-tail");
  expect_film_error("star --video-head none.mp4 -o film.mp4", 5, "none.mp4");
  expect_film_error("star --video-tail given.jpg -o film.mp4", 3, "given.jpg");
}

TEST_F(FilmCli, TilesSaveMemoryAndSayHowFarTheyAre) {
  Outcome o = film("star --width 64 --height 48 --frames 29 --tile 32 --tile-frames 16 -o film.mp4");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.err.find("decoding tile 18/18"), std::string::npos) << o.err;
  EXPECT_EQ(frames("film.mp4").size(), 29u);
}

TEST_F(FilmCli, TheOtherPairAndOtherFormats) {
  FilmFolder other(temp_.path("given-other"), false);
  ASSERT_EQ(run("generate --video star --model given-other --frames 8 --codec vp9 -o film.webm").status, 0)
      << text("err.txt");
  EXPECT_EQ(frames("film.webm").size(), 8u);
  ASSERT_EQ(film("star -o film.gif").status, 0) << text("err.txt");
  EXPECT_EQ(frames("film.gif").size(), 5u);
  ASSERT_EQ(film("star -o film.webp").status, 0) << text("err.txt");
  ASSERT_EQ(run("generate --from film.webp -o again.webp").status, 0) << text("err.txt");
  EXPECT_EQ(text("again.webp"), text("film.webp"));
}

TEST_F(FilmCli, ASizeOnTheCommandLineWinsOverAFile) {
  temp_.write("given.yaml", "size: {width: 64, height: 64}\nfilm: {make: true}\nmodel: {name: model}\n");
  temp_.write("given-named.yaml", "film: {make: true, resolution: 64px, aspect_ratio: '1:1'}\nmodel: {name: model}\n");
  std::tuple<const char*, const char*, int> cases[] = {{"given.yaml", "", 64},
                                                       {"given.yaml", "--resolution 32px --aspect-ratio 1:1", 32},
                                                       {"given-named.yaml", "", 64},
                                                       {"given-named.yaml", "-W 32 -H 32", 32}};
  for (const auto& [file, flags, width] : cases) {
    ASSERT_EQ(run("generate star --config " + std::string(file) + " -o film.mp4 " + flags).status, 0)
        << text("err.txt");
    EXPECT_EQ(frames("film.mp4")[0].width, width) << file << " " << flags;
  }
}

TEST_F(FilmCli, SeveralFilms) {
  temp_.write("given.txt", "a star\na cat\n");
  Outcome o = film("--prompt-file given.txt --count 2 --seed 5 -o '{index}.mp4'");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "0.mp4\n1.mp4\n2.mp4\n3.mp4\n");
  EXPECT_NE(o.err.find("film 4/4"), std::string::npos) << o.err;
  ASSERT_EQ(film("'a cat' --seed 6 -o one.mp4").status, 0);
  EXPECT_EQ(text("3.mp4"), text("one.mp4"));
  ASSERT_EQ(film("'a cat' --seed 6").status, 0);
  EXPECT_EQ(text("kinora-6.mp4"), text("one.mp4"));
}

TEST_F(FilmCli, WrongRequestsAreOneLineAndLeaveNothing) {
  temp_.write("given.txt", "0\n");
  write_picture("given.jpg");
  expect_film_error("star --width 30 --height 32 -o film.mp4", 2, "multiples of 16");
  expect_film_error("star --width 32 -o film.mp4", 2, "give both");
  expect_film_error("star --width 32 --height 32 --aspect-ratio 1:1 -o film.mp4", 2, "either");
  expect_film_error("star --resolution big -o film.mp4", 2, "unknown resolution 'big'");
  expect_film_error("star --aspect-ratio 7:5 -o film.mp4", 2, "unknown aspect ratio '7:5'");
  expect_film_error("star --frames 6 -o film.mp4", 2, "5 or 9");
  expect_film_error("star --motion-score 16 -o film.mp4", 2, "from 1 to 15");
  expect_film_error("star --flow-shift 0 -o film.mp4", 2, "above 0");
  expect_film_error("star --tile 48 -o film.mp4", 2, "multiples of 32");
  expect_film_error("star --tile-frames 12 -o film.mp4", 2, "multiples of 16");
  expect_film_error("star --temporal-sampling adaptive -o film.mp4", 2, "key frame");
  expect_film_error("star --temporal-sampling adaptive --key-frames 1,x -o film.mp4", 2, "1,x");
  expect_film_error("star --key-frames 1 -o film.mp4", 2, "adaptive");
  expect_film_error("star --temporal-sampling none.txt -o film.mp4", 5, "none.txt");
  expect_film_error("star --temporal-sampling given.txt -o film.mp4", 3, "given.txt must list 2 times");
  expect_film_error("star -i none.png -o film.mp4", 5, "none.png");
  expect_film_error("star --tail-image given.txt -o film.mp4", 3, "given.txt");
  expect_film_error("star -i given.jpg --frames 1 -o film.mp4", 2, "too short");
  expect_film_error("star -o film.png", 2, "{index}");
  expect_film_error("star -o film.doc", 2, "film.doc");
  expect_film_error("star -o film.webm --codec h264", 2, "h264");
  expect_film_error("star --count 2 -o film.mp4", 2, "{seed}");
  expect_film_error("star --contact-sheet sheet.doc -o film.mp4", 2, "sheet.doc");
  expect_film_error("star --scheduler euler -o film.mp4", 2, "--scheduler is for pictures");
  expect_film_error("star --frames 65 -o film.mp4", 5, "film.mp4", "ulimit -f 1;");  // a full disk
  temp_.write("given-empty.jpg", "");
  expect_film_error("star -i given-empty.jpg -o film.mp4", 3, "given-empty.jpg");
  temp_.write("given-cut.jpg", text("given.jpg").substr(0, 300));
  expect_film_error("star -i given-cut.jpg -o film.mp4", 3, "given-cut.jpg");
  temp_.write("given-empty.mp4", "");
  expect_film_error("star --frames 37 --video-head given-empty.mp4 -o film.mp4", 3, "given-empty.mp4");
  temp_.write("given-junk.mp4", std::string(4096, 'x'));
  expect_film_error("star --frames 37 --video-tail given-junk.mp4 -o film.mp4", 3, "given-junk.mp4");
  expect_film_error("star --frames 65 --contact-sheet sheet.png -o film.mp4", 5, "film.mp4", "ulimit -f 1;");
  expect_film_error("star --frames 65 --save-noise noise.safetensors -o film.gif", 5, "", "ulimit -f 2;");
  ASSERT_EQ(run("generate cat --steps 1 -o given-picture.jpg").status, 0);
  expect_error("generate --video --from given-picture.jpg -o film.mp4", 2, "leave --video out");
  expect_error("generate --from given.jpg -o film.mp4", 3, "no record");
  expect_error("generate star --frames 5", 2, "--frames is for films; add --video");
  expect_error("generate --video star --model none -o film.mp4", 5, "none is no folder");
  std::filesystem::create_directory(temp_.path("given-nothing"));
  expect_error("generate --video star --model given-nothing -o film.mp4", 5, "Open_Sora_v2.safetensors");
  expect_error("generate --video star --model '" KINORA_SOURCE_DIR "/models/kinora-mini' -o film.mp4", 2,
               "leave --video out");
  expect_error("generate star --model model -o film.jpg", 2, "add --video");
}

// Before anything is made.
TEST_F(FilmCli, OutputsThatCannotBeWrittenAreRefusedAtOnce) {
  std::filesystem::create_directory(temp_.path("given.mp4"));
  std::filesystem::create_directory(temp_.path("given.jpg"));
  std::pair<const char*, const char*> cases[] = {{"-o given.mp4", "given.mp4 is a folder"},
                                                 {"-o film.mp4 --preview given.jpg", "given.jpg is a folder"},
                                                 {"-o film.mp4 --contact-sheet given.jpg", "given.jpg is a folder"},
                                                 {"-o none/film.mp4", "folder none does not exist"},
                                                 {"-o film.mp4 --save-noise none/noise.bin", "folder none does not"}};
  for (const auto& [output, word] : cases) {
    expect_film_error("star " + std::string(output), 5, word);
    EXPECT_TRUE(text("err.txt").starts_with("kinora: ")) << text("err.txt");
  }
}

// Where what differs from the corner's colour is: its mean column.
double centre_column(const Image& frame) {
  double sum = 0, count = 0;
  for (int i = 0; i < frame.width * frame.height; ++i) {
    int far = 0;
    for (int c = 0; c < 3; ++c) far = std::max(far, std::abs(frame.rgb[size_t(3 * i + c)] - frame.rgb[size_t(c)]));
    if (far < 40) continue;
    sum += i % frame.width;
    ++count;
  }
  return count > 0 ? sum / count : -1;
}

TEST_F(FilmCli, TheModelThatComesAlongMovesAStar) {
  Outcome o = run("generate --video 'a yellow star moves from left to right' --device cpu -o given-star.mp4",
                  "unset KINORA_MODEL;");
  ASSERT_EQ(o.status, 0) << o.err;
  std::vector<Image> film = frames("given-star.mp4");
  ASSERT_EQ(film.size(), 33u);
  EXPECT_EQ(film[0].width, 128);
  double first = centre_column(film.front()), last = centre_column(film.back());
  EXPECT_GT(first, 0);
  EXPECT_GT(last, first + 20);
  auto record = nlohmann::json::parse(VideoReader::open(temp_.path("given-star.mp4")).info().record);
  EXPECT_EQ(record["model"], "kinora-mini-video");  // no path of this machine
}

TEST_F(FilmCli, TheModelThatComesAlongGivesTheSameBytes) {
  const std::string star =
      "generate --video 'a yellow star moves up' --model kinora-mini-video --device cpu --steps 2 ";
  ASSERT_EQ(run(star + "-t 1 -o one.mp4").status, 0) << text("err.txt");
  for (const char* threads : {"-t 2", "-t 1"}) {
    ASSERT_EQ(run(star + threads + " -o other.mp4").status, 0) << text("err.txt");
    EXPECT_EQ(text("other.mp4"), text("one.mp4")) << threads;
  }
}

TEST_F(FilmCli, ModelsThatComeAlongGoByName) {
  EXPECT_NE(run("inspect kinora-mini-video --device cpu").out.find("128x128, 33 frames"), std::string::npos);
  expect_error("generate --video star --model kinora-mini -o film.mp4", 2, "draws pictures");
  expect_error("generate star --model kinora-mini-video -o film.jpg", 2, "makes films");
  expect_error("generate --video star --model kinora-maxi -o film.mp4", 5, "kinora-maxi is no folder");
}

TEST_F(FilmCli, WithoutAFilmModelBesideTheProgram) {
  namespace fs = std::filesystem;
  fs::copy(KINORA_BINARY_DIR "/kinora", temp_.path("given-kinora"));
  fs::create_directory(temp_.path("models"));
  fs::create_directory_symlink(KINORA_SOURCE_DIR "/models/kinora-mini", temp_.path("models/kinora-mini"));
  int status = std::system(("cd '" + temp_.path() +
                            "' && unset KINORA_MODEL; ./given-kinora generate --video star "
                            "-o film.mp4 >out.txt 2>err.txt")
                               .c_str());
  EXPECT_EQ(WEXITSTATUS(status), 2);
  EXPECT_NE(text("err.txt").find("no model that makes films"), std::string::npos) << text("err.txt");
  EXPECT_FALSE(fs::exists(temp_.path("film.mp4")));
}

TEST_F(FilmCli, AFolderWithHalfOfTheFilesNamesWhatIsMissing) {
  std::pair<const char*, const char*> missing[] = {
      {"Open_Sora_v2.safetensors", "Open_Sora_v2.safetensors"},
      {"hunyuan_vae.safetensors", "hunyuan_vae.safetensors"},
      {"google/t5-v1_1-xxl/config.json", "google/t5-v1_1-xxl/config.json is missing"},
      {"google/t5-v1_1-xxl/model.safetensors", "google/t5-v1_1-xxl"},
      {"google/t5-v1_1-xxl/spiece.model", "google/t5-v1_1-xxl"},
      {"openai/clip-vit-large-patch14/config.json", "openai/clip-vit-large-patch14/config.json is missing"},
      {"openai/clip-vit-large-patch14/vocab.json", "openai/clip-vit-large-patch14"}};
  for (const auto& [file, word] : missing) {
    std::string path = temp_.path("model/" + std::string(file)), away = temp_.path("given-away");
    std::filesystem::rename(path, away);
    Outcome o = film("star -o film.mp4");
    EXPECT_TRUE(o.status == 4 || o.status == 5) << file << ": " << o.status << " " << o.err;
    EXPECT_NE(o.err.find(word), std::string::npos) << o.err;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
    expect_no_film(file);
    std::filesystem::rename(away, path);
  }
  FilmFolder other(temp_.path("given-other"), false);  // its transformer has twice the channels
  std::filesystem::remove(temp_.path("given-other/F32T4C128_AE.safetensors"));
  for (const char* file : {"hunyuan_vae.safetensors", "hunyuan_vae.json"})
    std::filesystem::copy(temp_.path("model/" + std::string(file)), temp_.path("given-other/" + std::string(file)));
  expect_error("generate --video star --model given-other -o film.mp4", 4, "do not belong together");
}

TEST_F(FilmCli, InterruptsAndKillsLeaveNothing) {
  auto stop_at = [&](const std::string& word, const std::string& arguments, const char* signal) {
    temp_.write("given.sh", "'" KINORA_BINARY_DIR "/kinora' generate --video star --model model --device cpu " +
                                arguments + " -o film.mp4 >out.txt 2>err.txt </dev/null & p=$!\nuntil grep -q '" +
                                word + "' err.txt 2>/dev/null; do sleep 0.02; done\nkill -" + signal +
                                " $p; wait $p\n");
    int status = std::system(("cd '" + temp_.path() + "' && timeout 60 sh given.sh").c_str());
    expect_no_film(word + signal);
    return WEXITSTATUS(status);
  };
  std::string denoise = "--steps 1000", decode = "--steps 1 --width 512 --height 512 --tile 64";
  std::string both = decode + " --frames 29 --tile-frames 16";  // frames of the first stretch are being written
  EXPECT_EQ(stop_at("step 1/", denoise, "INT"), 130);
  EXPECT_TRUE(text("err.txt").ends_with("kinora: stopped\n")) << text("err.txt");
  EXPECT_EQ(stop_at("decoding tile 1/", decode, "INT"), 130);
  EXPECT_TRUE(text("err.txt").ends_with("kinora: stopped\n")) << text("err.txt");
  EXPECT_EQ(stop_at("decoding tile 130/", both, "KILL"), 128 + 9);
}

}  // namespace
}  // namespace kinora::test
