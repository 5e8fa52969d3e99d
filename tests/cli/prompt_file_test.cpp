// --prompt-file, --count and several seeds, for pictures and films.
#include "cli/film_cli.h"

namespace kinora::test {
namespace {

class PromptFile : public FilmCli {
 protected:
  // The one line of stderr that `kinora generate ARGUMENTS --prompt-file given.jsonl` with these lines ends in.
  void expect_line_error(const std::string& lines, const std::string& word, const std::string& arguments = "") {
    temp_.write("given.jsonl", lines);
    expect_error("generate --prompt-file given.jsonl -o '{index}.jpg' " + arguments, 3, word);
    EXPECT_FALSE(std::filesystem::exists(temp_.path("0.jpg"))) << lines;
  }
};

TEST_F(PromptFile, SeedsAreListed) {
  Outcome o = run("generate cat --steps 1 --seeds 7,2,7000000000 -o '{seed}.jpg' --batch 2");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "7.jpg\n2.jpg\n7000000000.jpg\n");
  ASSERT_EQ(run("generate cat --steps 1 --seed 2 -o one.jpg").status, 0);
  EXPECT_EQ(text("one.jpg"), text("2.jpg"));
  expect_error("generate cat --seed 1,2 --count 2 -o '{seed}.jpg'", 2, "either several seeds or --count");
  expect_error("generate cat --seed 1,x", 2, "separated by commas");
  expect_error("generate cat --seed 3,3 -o '{seed}.jpg'", 2, "3.jpg; use {seed} or {index}");
}

TEST_F(PromptFile, EachPictureOfALineIsItselfAgain) {
  ASSERT_EQ(run("generate dog --steps 1 -o start.jpg").status, 0);
  temp_.write("given.jsonl",
              "\n{\"prompt\": \"a cat\", \"seeds\": [3, 4], \"output\": \"cat-{seed}.png\"}\n"
              "  {\"text\": \"a dog\", \"negative_prompt\": \"blue\", \"width\": 128, \"height\": 192, "
              "\"cfg_scale\": 2.5, \"seed\": 9, \"output\": \"dog.jpg\"}\n"
              "{\"prompt\": \"an owl\", \"init_image\": \"start.jpg\", \"sampling.strength\": 0.5, \"steps\": 4, "
              "\"guidance\": null}");
  Outcome o = run("generate --prompt-file given.jsonl --steps 1 --seed 1 -o '{index}.webp'");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "cat-3.png\ncat-4.png\ndog.jpg\n3.webp\n");
  EXPECT_EQ(load_image(temp_.path("dog.jpg")).height, 192);
  std::pair<std::string, std::string> made[] = {{"cat-4.png", "'a cat' --steps 1 --seed 4"},
                                                {"dog.jpg", "'a dog' -n blue -W 128 -H 192 -g 2.5 --seed 9 --steps 1"},
                                                {"3.webp", "'an owl' -i start.jpg --strength 0.5 --steps 4 --seed 1"}};
  for (const auto& [name, arguments] : made) {
    std::string ending = name.substr(name.find('.'));
    ASSERT_EQ(run("generate " + arguments + " -o alone" + ending).status, 0) << text("err.txt");
    EXPECT_EQ(text("alone" + ending), text(name)) << name;
    ASSERT_EQ(run("generate --from " + name + " -o again" + ending).status, 0) << text("err.txt");
    EXPECT_EQ(text("again" + ending), text(name)) << name;
  }
}

TEST_F(PromptFile, EachFilmOfALineIsItselfAgain) {
  write_picture("given.jpg");
  temp_.write("given.jsonl",
              "{\"prompt\": \"a star\", \"frames\": 9, \"init_image\": \"given.jpg\"}\n"
              "{\"prompt\": \"a cat\", \"seed\": [5, 6], \"steps\": 2, \"motion_score\": 9, \"fps_save\": 12}\n"
              "{\"prompt\": \"a star\", \"resolution\": \"64px\", \"aspect_ratio\": \"1:1\", \"flow_shift\": 3}\n");
  Outcome o = film("--prompt-file given.jsonl -W 48 -H 32 -o '{index}.mp4' --contact-sheet '{index}.png'");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "0.mp4\n1.mp4\n2.mp4\n3.mp4\n");
  EXPECT_NE(o.err.find("film 4/4"), std::string::npos) << o.err;
  EXPECT_EQ(frames("0.mp4").size(), 9u);
  EXPECT_EQ(frames("0.mp4")[0].width, 48);
  EXPECT_EQ(frames("3.mp4")[0].width, 64);
  std::string alone[] = {"'a star' --frames 9 -i given.jpg -W 48 -H 32",
                         "'a cat' --seed 5 --steps 2 --motion-score 9 --fps-save 12 -W 48 -H 32",
                         "'a cat' --seed 6 --steps 2 --motion-score 9 --fps-save 12 -W 48 -H 32",
                         "'a star' --resolution 64px --aspect-ratio 1:1 --flow-shift 3"};
  for (int i = 0; i < 4; ++i) {
    std::string name = std::to_string(i) + ".mp4";
    ASSERT_EQ(run("generate --from " + name + " -o again.mp4").status, 0) << text("err.txt");
    EXPECT_EQ(text("again.mp4"), text(name)) << name;
    ASSERT_EQ(film(alone[i] + " -o alone.mp4").status, 0) << text("err.txt");
    EXPECT_EQ(text("alone.mp4"), text(name)) << name;
  }
}

// More texts than are remembered, each film its own.
TEST_F(PromptFile, ManyPrompts) {
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += "star number " + std::to_string(i) + "\n";
  temp_.write("given.txt", lines);
  ASSERT_EQ(film("--prompt-file given.txt --steps 1 --frames 1 -q -o '{index}.mp4'").status, 0) << text("err.txt");
  ASSERT_EQ(film("'star number 18' --steps 1 --frames 1 -o one.mp4").status, 0);
  EXPECT_EQ(text("18.mp4"), text("one.mp4"));
}

TEST_F(PromptFile, WrongLinesAreNamed) {
  expect_line_error("{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"stpes\": 3}\n",
                    "given.jsonl:3: unknown key 'stpes'; did you mean 'steps'?");
  expect_line_error("{\"prompt\": \"a\", \"xyzzy\": 3}\n", "given.jsonl:1: unknown key 'xyzzy' (docs/");
  expect_line_error("{\"prompt\": \"a\", \"steps\": \"3\"}\n",
                    "given.jsonl:1: 'steps' must be a whole number from 1 to 1000, not the text '3'");
  expect_line_error("{\"prompt\": 3}\n", "given.jsonl:1: 'prompt' must be a text, not 3");
  expect_line_error("{\"prompt\": [\"a\"]}\n", "must be a text");
  expect_line_error("{\"prompt\": \"a\", \"seed\": [1, \"x\"]}\n", "'seed' must be whole numbers");
  expect_line_error("{\"prompt\": \"a\", \"seed\": []}\n", "'seed' must be whole numbers");
  expect_line_error("{\"prompt\": \"a\", \"seed\": -1}\n", "'seed' must be whole numbers");
  expect_line_error("{\"prompt\": \"a\", \"model\": \"x\"}\n", "'model' holds for all prompts; give it as a flag");
  expect_line_error("{\"prompt\": \"a\", \"prompt_file\": \"x\"}\n", "'prompt_file' holds for all prompts");
  expect_line_error("{\"prompt\": \"a\", \"frames\": 5}\n", "given.jsonl:1: --frames is for films");
  expect_line_error("{\"steps\": 5}\n", "given.jsonl:1: 'prompt' is missing");
  expect_line_error("{\"prompt\": \"a\"}\nb\n", "given.jsonl:2");
  expect_line_error("{\"prompt\": \"a\", \"prompt\": \"b\"}\n", "given.jsonl:1");
  expect_line_error("{\"prompt\": \"a\"}\n{\"prompt\": \"a\", \"width\": 40}\n", "given.jsonl:2: width and height");
  expect_line_error("{\"prompt\": \"a\", \"output\": \"a.bmp\"}\n", "given.jsonl:1: ");
  expect_line_error("{\"prompt\": \"a\", \"seed\": [1, 2], \"count\": 2}\n",
                    "given.jsonl:1: give either several seeds");
  expect_line_error(" \n\n", "holds no prompt");
  expect_line_error(std::string(size_t{3} << 17, '\n') + "{\"prompt\": \"a\", \"steps\": 0}",
                    "given.jsonl:393217: 'steps'");
  temp_.write("given.jsonl", "{\"prompt\": \"a\", \"init_image\": \"none.png\"}\n");
  expect_error("generate --prompt-file given.jsonl", 5, "given.jsonl:1: cannot open none.png");
  temp_.write("given.jsonl", "{\"prompt\": \"a\", \"frames\": 6}\n");
  expect_film_error("--prompt-file given.jsonl -o film.mp4", 3, "given.jsonl:1: a film of 6 frames");
  temp_.write("given.jsonl", "{\"prompt\": \"a\", \"scheduler\": \"euler\"}\n");
  expect_film_error("--prompt-file given.jsonl -o film.mp4", 3, "given.jsonl:1: --scheduler is for pictures");
  temp_.write("given.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n");
  expect_error("generate --prompt-file given.jsonl -o one.jpg", 2,
               "several pictures or films would be written to one.jpg");
  temp_.write("given.txt", std::string(200002, 'a').replace(1, 200000, std::string(200000, '\n')) + "a");
  EXPECT_EQ(run("generate --prompt-file given.txt -o '{index}.jpg' --steps 1 -W 32 -H 32").status, 0)
      << text("err.txt");
}

}  // namespace
}  // namespace kinora::test
