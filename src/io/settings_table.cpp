// The table of settings, and what follows from one row of it.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "io/settings.h"

namespace kinora {
namespace {

constexpr int64_t kSide = int64_t{1} << 20;
using enum SettingType;

// Order is that of the reference page and of `kinora config show`: sections stay together.
constexpr SettingDef kTable[] = {
    {.key = "model.name",
     .type = text,
     .flags = "-m,--model",
     .commands = "generate inspect bench tokenize",
     .doc = "Folder of a checkpoint in the diffusers layout, or its name on the Hugging Face hub",
     .otherwise = "$KINORA_MODEL, else the model that came along"},
    {.key = "model.variant",
     .type = text,
     .flags = "--variant",
     .commands = "generate inspect eval bench",
     .doc = "Weight files to take: fp16 or bf16",
     .otherwise = "the plain ones"},
    {.key = "compute.device",
     .type = choice,
     .flags = "--device",
     .commands = "generate inspect eval bench",
     .doc = "Where to compute; auto: on a GPU when there is one",
     .fallback = "auto",
     .choices = "auto|cpu|cuda|cuda:N"},
    {.key = "compute.dtype",
     .type = choice,
     .flags = "--dtype",
     .commands = "generate inspect eval bench",
     .doc = "Type of activations; auto: float32 on the CPU, bfloat16 on a GPU",
     .fallback = "auto",
     .choices = "auto|float32|bfloat16|float16"},
    {.key = "compute.attention",
     .type = choice,
     .flags = "--attention",
     .commands = "generate inspect eval bench",
     .doc = "Kernels for softmax attention: our own, cuDNN's, plain products, or cuDNN's of 8-bit codes; auto: the "
            "fastest for each shape but 8-bit",
     .fallback = "auto",
     .choices = "auto|flash|cudnn|math|fp8"},
    {.key = "compute.threads",
     .type = integer,
     .flags = "-t,--threads",
     .commands = "generate inspect eval bench",
     .doc = "Threads; 0 for one per core",
     .fallback = "0",
     .high = 4096},
    {.key = "compute.quantize",
     .type = choice,
     .flags = "--quantize",
     .commands = "generate inspect eval bench",
     .doc = "Store the weights of text encoder and transformer in 8 or 4 bits while they are loaded",
     .fallback = "none",
     .choices = "none|int8|int8-weights|fp8|fp8-weights|nvfp4"},
    {.key = "compute.quantize_layers",
     .type = text,
     .flags = "--quantize-layers",
     .commands = "generate inspect eval bench",
     .doc = "Formats of layers by name, before the built-in table: PATTERN=FORMAT or PATTERN=keep, separated by commas",
     .otherwise = "the built-in table alone"},
    {.key = "prompt.text",
     .type = text,
     .flags = "prompt",
     .commands = "generate",
     .doc = "What to draw",
     .otherwise = "none",
     .instead_of = "prompt.file"},
    {.key = "prompt.negative",
     .type = text,
     .flags = "-n,--negative-prompt",
     .commands = "generate",
     .doc = "What not to draw",
     .otherwise = "none"},
    {.key = "prompt.file",
     .type = text,
     .flags = "--prompt-file",
     .commands = "generate",
     .doc = "A file with one prompt a line, or JSON lines with options for each",
     .otherwise = "none",
     .instead_of = "prompt.text"},
    {.key = "sampling.steps",
     .type = integer,
     .flags = "--steps",
     .commands = "generate",
     .doc = "Denoising steps",
     .otherwise = "the model's",
     .low = 1,
     .high = 1000},
    {.key = "sampling.guidance",
     .type = real,
     .flags = "-g,--guidance,--cfg-scale",
     .commands = "generate",
     .doc = "How closely to follow the prompt",
     .otherwise = "the model's",
     .high = 1000},
    {.key = "sampling.scheduler",
     .type = choice,
     .flags = "--scheduler",
     .commands = "generate",
     .doc = "How to go from noise to picture",
     .otherwise = "the model's",
     .choices = "dpm++|euler|scm"},
    {.key = "sampling.seed",
     .type = integers,
     .flags = "-s,--seed,--seeds",
     .commands = "generate",
     .doc = "Seed of the noise, the same seed gives the same bytes; or several, as 1,2,5",
     .fallback = "0",
     .high = std::numeric_limits<int64_t>::max()},
    {.key = "sampling.count",
     .type = integer,
     .flags = "--count",
     .commands = "generate",
     .doc = "Pictures or films for each prompt, with seeds that count up",
     .fallback = "1",
     .low = 1,
     .high = 100000},
    {.key = "sampling.batch",
     .type = integer,
     .flags = "-b,--batch",
     .commands = "generate",
     .doc = "Pictures computed at once",
     .fallback = "1",
     .low = 1,
     .high = 64},
    {.key = "sampling.init_image",
     .type = text,
     .flags = "-i,--init-image",
     .commands = "generate",
     .doc = "Start from this picture",
     .otherwise = "noise alone"},
    {.key = "sampling.strength",
     .type = real,
     .flags = "--strength",
     .commands = "generate",
     .doc = "How far to go from the start picture",
     .fallback = "0.6",
     .high = 1},
    {.key = "sampling.refine_strength",
     .type = real,
     .flags = "--refine-strength",
     .commands = "generate",
     .doc = "Share of noise that a draft is given before it is refined; with --from-resolution",
     .fallback = "0.8",
     .high = 1},
    {.key = "size.width",
     .type = integer,
     .flags = "-W,--width",
     .commands = "generate",
     .doc = "Pixels",
     .otherwise = "the model's",
     .low = 1,
     .high = kSide},
    {.key = "size.height",
     .type = integer,
     .flags = "-H,--height",
     .commands = "generate",
     .doc = "Pixels",
     .otherwise = "the model's",
     .low = 1,
     .high = kSide},
    {.key = "size.from_resolution",
     .type = text,
     .flags = "--from-resolution",
     .commands = "generate",
     .doc = "Draw small first, at 256px, another Npx or WxH, then enlarge and refine",
     .otherwise = "the whole size at once"},
    {.key = "memory.tile",
     .type = integer,
     .flags = "--tile",
     .commands = "generate",
     .doc = "Decode in tiles of so many pixels, to save memory",
     .otherwise = "the whole picture at once",
     .low = 32,
     .high = 8192},
    {.key = "memory.max",
     .type = text,
     .flags = "--max-memory",
     .commands = "generate",
     .doc =
         "Memory to stay within, as 12GB: of the GPU, or of the whole program on the CPU; weights that do not fit come "
         "and go",
     .otherwise = "no limit"},
    {.key = "noise.rng",
     .type = choice,
     .flags = "--rng",
     .commands = "generate",
     .doc = "Which of PyTorch's generators the noise is of",
     .fallback = "cpu",
     .choices = "cpu|cuda"},
    {.key = "noise.file",
     .type = text,
     .flags = "--noise",
     .commands = "generate",
     .doc = "Safetensors file with the initial noise, tensor 'latents' [batch, channels, h, w]; film: [1, "
            "channels, t, h, w]",
     .otherwise = "the seed's noise"},
    {.key = "noise.save",
     .type = text,
     .flags = "--save-noise",
     .commands = "generate",
     .doc = "Write the initial noise to this file",
     .otherwise = "it is not kept"},
    {.key = "output.file",
     .type = text,
     .flags = "-o,--output",
     .commands = "generate",
     .doc = "Picture file: .png, .jpg or .webp; film: .mp4, .mkv, .webm, .webp, .gif, or "
            "frames as {index}.png; {seed} and {index} are filled in",
     .fallback = "kinora-{seed}.png"},
    {.key = "output.preview",
     .type = text,
     .flags = "--preview",
     .commands = "generate",
     .doc = "Write the picture so far, or some frames of the film, to this file after every step",
     .otherwise = "none"},
    {.key = "film.make",
     .type = boolean,
     .flags = "--video",
     .commands = "generate",
     .doc = "Make a film instead of a picture",
     .fallback = "false"},
    {.key = "film.resolution",
     .type = text,
     .flags = "--resolution",
     .commands = "generate",
     .doc = "Size of a film by name: 256px, 768px, any other Npx, or Np such as 720p",
     .otherwise = "the model's"},
    {.key = "film.aspect_ratio",
     .type = text,
     .flags = "--aspect-ratio",
     .commands = "generate",
     .doc = "Width to height of a film whose size is named: 16:9, 9:16, 1:1, 4:3, 2.39:1 and others",
     .otherwise = "16:9"},
    {.key = "film.frames",
     .type = integer,
     .flags = "--frames",
     .commands = "generate",
     .doc = "Frames of a film; one more than a multiple of 4 with most models",
     .otherwise = "the model's",
     .low = 1,
     .high = 16384},
    {.key = "film.fps",
     .type = integer,
     .flags = "--fps,--fps-save",
     .commands = "generate",
     .doc = "Frames a second, for the file and told to the model",
     .otherwise = "the model's",
     .low = 1,
     .high = 240},
    {.key = "film.motion_score",
     .type = integer,
     .flags = "--motion-score",
     .commands = "generate",
     .doc = "How much is to move in a film",
     .otherwise = "the model's",
     .low = 1,
     .high = 15},
    {.key = "film.image_guidance",
     .type = real,
     .flags = "--image-guidance",
     .commands = "generate",
     .doc = "How closely a film is to follow the pictures given",
     .otherwise = "the model's",
     .high = 1000},
    {.key = "film.flow_shift",
     .type = real,
     .flags = "--flow-shift",
     .commands = "generate",
     .doc = "How much a film's noise levels lean to noise",
     .otherwise = "what its size and length ask for",
     .high = 1000000},
    {.key = "film.first_picture",
     .type = text,
     .flags = "--first-picture",
     .commands = "generate",
     .doc = "Draw the first picture of a film from its prompt with this model, a Sana model or a folder with the "
            "published Flux files; auto: Flux when it is beside the film model, else the Sana model that came along",
     .otherwise = "none"},
    {.key = "film.picture_resolution",
     .type = text,
     .flags = "--picture-resolution",
     .commands = "generate",
     .doc = "Size of the picture that --first-picture draws: 768px, another Npx or WxH",
     .otherwise = "768px with Flux, else the model's"},
    {.key = "film.tail_image",
     .type = text,
     .flags = "--tail-image",
     .commands = "generate",
     .doc = "End a film with this picture; --init-image begins it",
     .otherwise = "none"},
    {.key = "film.head",
     .type = text,
     .flags = "--video-head",
     .commands = "generate",
     .doc = "Go on from the first --reference-frames of this film",
     .otherwise = "none",
     .instead_of = "film.tail"},
    {.key = "film.tail",
     .type = text,
     .flags = "--video-tail",
     .commands = "generate",
     .doc = "Lead up to the last --reference-frames of this film",
     .otherwise = "none",
     .instead_of = "film.head"},
    {.key = "film.reference_frames",
     .type = integer,
     .flags = "--reference-frames",
     .commands = "generate",
     .doc = "Frames taken from a film given: 33 or 65",
     .fallback = "33",
     .low = 33,
     .high = 65},
    {.key = "film.times",
     .type = text,
     .flags = "--temporal-sampling",
     .commands = "generate",
     .doc = "When a film's frames are: uniform, adaptive (denser around --key-frames), or a file with one time a line, "
            "counted in frames",
     .fallback = "uniform"},
    {.key = "film.key_frames",
     .type = text,
     .flags = "--key-frames",
     .commands = "generate",
     .doc = "Frames around which adaptive times are denser, separated by commas",
     .otherwise = "none"},
    {.key = "film.no_skip",
     .type = boolean,
     .flags = "--no-skip",
     .commands = "generate",
     .doc = "Also run the transformer where its result does not count, as the reference does",
     .fallback = "false"},
    {.key = "film.tile_frames",
     .type = integer,
     .flags = "--tile-frames",
     .commands = "generate",
     .doc = "Decode a film in stretches of so many frames, to save memory",
     .otherwise = "the model's way",
     .low = 4,
     .high = 16384},
    {.key = "film.codec",
     .type = choice,
     .flags = "--codec",
     .commands = "generate",
     .doc = "How a film file is compressed",
     .otherwise = "h264 in .mp4 and .mkv, vp9 in .webm",
     .choices = "h264|h265|av1|vp9"},
    {.key = "film.quality",
     .type = integer,
     .flags = "--quality",
     .commands = "generate",
     .doc = "The codec's constant rate factor, 0 the best; of .webp 100 the best",
     .otherwise = "a good one",
     .high = 100},
    {.key = "film.contact_sheet",
     .type = text,
     .flags = "--contact-sheet",
     .commands = "generate",
     .doc = "Also write some frames of a film side by side into this picture file",
     .otherwise = "none"},
    {.key = "bench.size",
     .type = integer,
     .flags = "--size",
     .commands = "bench",
     .doc = "Pixels a side",
     .otherwise = "the model's",
     .low = 1,
     .high = kSide},
    {.key = "bench.batch",
     .type = integer,
     .flags = "--batch",
     .commands = "bench",
     .doc = "Rows of the transformer's and the text encoder's batch",
     .otherwise = "as one picture needs",
     .low = 1,
     .high = 64},
    {.key = "bench.steps",
     .type = integer,
     .flags = "--steps",
     .commands = "bench",
     .doc = "Steps of the whole picture",
     .otherwise = "the model's",
     .low = 1,
     .high = 1000},
    {.key = "bench.repeats",
     .type = integer,
     .flags = "--repeats",
     .commands = "bench",
     .doc = "Timed runs after the warm-up",
     .fallback = "5",
     .low = 1,
     .high = 1000},
    {.key = "bench.component",
     .type = choice,
     .flags = "--component",
     .commands = "bench",
     .doc = "This one alone",
     .otherwise = "all",
     .choices = "text_encoder|clip|transformer|vae.decode|picture|film"},
    {.key = "bench.json",
     .type = boolean,
     .flags = "--json",
     .commands = "bench",
     .doc = "Print JSON",
     .fallback = "false"},
    {.key = "bench.by_op",
     .type = boolean,
     .flags = "--by-op",
     .commands = "bench",
     .doc = "Show where each component's time goes",
     .fallback = "false"},
};

std::vector<std::string> split(std::string_view list, char by) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= list.size() && !list.empty();) {
    size_t end = std::min(list.find(by, at), list.size());
    parts.emplace_back(list.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// Insertions, deletions, replacements and swaps of neighbours between two words (the restricted Damerau-Levenshtein
// distance).
size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

// "cuda:1" of the choice "cuda:N".
bool is_numbered(const std::string& choice, const std::string& given) {
  std::string_view digits = given;
  if (!digits.starts_with(choice.substr(0, choice.size() - 1))) return false;
  digits.remove_prefix(choice.size() - 1);
  return !digits.empty() && digits.size() <= 3 && digits.find_first_not_of("0123456789") == std::string_view::npos;
}

template <class T>
bool parse_number(std::string_view digits, T& value) {
  if (digits.starts_with('+')) digits.remove_prefix(1);
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return error == std::errc() && end == digits.data() + digits.size();
}

}  // namespace

std::span<const SettingDef> setting_table() { return kTable; }

const SettingDef* find_setting(std::string_view key) {
  auto found = std::find_if(std::begin(kTable), std::end(kTable), [&](const SettingDef& d) { return d.key == key; });
  return found == std::end(kTable) ? nullptr : found;
}

std::string describe_setting(const SettingDef& def) {
  bool open = def.high == std::numeric_limits<int64_t>::max();
  std::string range = "from " + std::to_string(def.low) + " to " + (open ? "2^63 - 1" : std::to_string(def.high));
  switch (def.type) {
    case text: return "a text";
    case integer: return "a whole number " + range;
    case integers: return "whole numbers " + range + ", separated by commas";
    case real: return "a number " + range;
    case boolean: return "true or false";
    case choice: break;
  }
  std::vector<std::string> names = split(def.choices, '|');
  std::string list = names[0];
  for (size_t i = 1; i < names.size(); ++i) list += (i + 1 < names.size() ? ", " : " or ") + names[i];
  return list;
}

SettingValue parse_setting(const SettingDef& def, const std::string& given, bool plain, ErrorKind kind,
                           const std::string& where) {
  auto wrong = [&] {
    bool unclear = !plain && def.type != choice && def.type != integers;  // "30" in quotes
    fail(kind, where + " must be " + describe_setting(def) + ", not " + (unclear ? "the text " : "") + shown(given));
  };
  YamlType type = plain ? yaml_type(given) : YamlType::text;
  switch (def.type) {
    case text: return given;
    case choice: {
      for (const std::string& name : split(def.choices, '|')) {
        if (name.ends_with(":N") ? is_numbered(name, given) : given == name) return given;
      }
      wrong();
      break;
    }
    case integer: {
      int64_t value = 0;
      if (type != YamlType::integer || !parse_number(given, value) || value < def.low || value > def.high) wrong();
      return value;
    }
    case integers: {
      std::string list;
      for (std::string part : split(given, ',')) {
        while (part.starts_with(' ')) part.erase(0, 1);
        while (part.ends_with(' ')) part.pop_back();
        int64_t value = 0;
        if (yaml_type(part) != YamlType::integer || !parse_number(part, value) || value < def.low || value > def.high)
          wrong();
        list += (list.empty() ? "" : ",") + std::to_string(value);
      }
      if (list.empty()) wrong();
      return list;
    }
    case real: {
      double value = 0;
      bool good = (type == YamlType::integer || type == YamlType::real) && parse_number(given, value);
      if (!good || !std::isfinite(value) || value < static_cast<double>(def.low) ||
          value > static_cast<double>(def.high))
        wrong();
      return value;
    }
    case boolean:
      if (type != YamlType::boolean) wrong();
      return given[0] == 't' || given[0] == 'T';
  }
  fail(ErrorKind::internal, "setting " + std::string(def.key) + " has no type");
}

std::vector<int64_t> parse_integers(const std::string& text) {
  std::vector<int64_t> numbers;
  for (const std::string& part : split(text, ',')) {
    int64_t value = 0;
    check(parse_number(part, value), "parse_integers: the text was not checked");
    numbers.push_back(value);
  }
  return numbers;
}

std::string nearest_word(std::string_view word, std::span<const std::string> known) {
  constexpr size_t kLongest = 64;  // no key is longer
  if (word.size() > kLongest) return "";
  std::string best;
  size_t least = std::max<size_t>(word.size() / 3, 1) + 1;
  for (const std::string& candidate : known) {
    size_t far = distance(word, candidate);
    if (far < least) {
      least = far;
      best = candidate;
    }
  }
  return best;
}

// Looks at whole keys and sections, then at the last words of keys and at names of flags: people write `steps: 30` and
// `cfg_scale: 4`.
std::string nearest_setting(std::string_view key) {
  std::vector<std::string> keys, names, owners;
  for (const SettingDef& def : kTable) {
    if (key.find('.') == std::string_view::npos) keys.emplace_back(def.key.substr(0, def.key.find('.')));
    keys.emplace_back(def.key);
    names.emplace_back(def.key.substr(def.key.find('.') + 1));
    owners.emplace_back(def.key);
    for (std::string flag : split(def.flags, ',')) {
      if (!flag.starts_with("--")) continue;
      flag.erase(0, 2);
      std::replace(flag.begin(), flag.end(), '-', '_');
      names.push_back(flag);
      owners.emplace_back(def.key);
    }
  }
  std::string whole = nearest_word(key, keys);
  if (!whole.empty()) return whole;
  std::string word(key.substr(key.rfind('.') + 1));
  std::replace(word.begin(), word.end(), '-', '_');
  std::string name = nearest_word(word, names);
  auto at = std::find(names.begin(), names.end(), name);
  return at == names.end() ? "" : owners[static_cast<size_t>(at - names.begin())];
}

std::string unknown_setting(std::string_view key) {
  std::string near = nearest_setting(key);
  return "unknown key " + shown(key) +
         (near.empty() ? " (docs/configuration.md lists the keys)" : "; did you mean '" + near + "'?");
}

}  // namespace kinora
