"""Scenes for kinora-mini: emoji laid out on a plain background, and the prompts that describe them.

`python data.py --out FOLDER` extracts the pictures and names of the things in things.txt from the Debian packages
fonts-noto-color-emoji and unicode-cldr-core into FOLDER/things.npz. Everything else works from that file.
"""
import argparse
import hashlib
import io
import json
import pathlib
import random
import xml.etree.ElementTree as ElementTree

import numpy as np

HERE = pathlib.Path(__file__).parent
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
NAMES = "/usr/share/unicode/cldr/common/annotations/en.xml"
SIZE = 256  # of a picture
BITMAP = 128  # of a thing

BACKGROUNDS = {"red": (214, 48, 49), "orange": (240, 147, 43), "yellow": (250, 220, 90), "green": (76, 175, 80),
               "blue": (52, 120, 219), "purple": (142, 68, 173), "pink": (248, 165, 194), "brown": (121, 85, 61),
               "black": (20, 20, 20), "gray": (140, 140, 140), "white": (250, 250, 250), "teal": (0, 150, 140)}
SIZES = {"small": 60, "": 92, "large": 136}
SIZE_WORDS = {"small": ["small", "little", "tiny"], "large": ["large", "big", "huge"]}
PLACES = {"in the top left corner": (60, 60), "at the top": (128, 60), "in the top right corner": (196, 60),
          "on the left": (60, 128), "in the middle": (128, 128), "on the right": (196, 128),
          "in the bottom left corner": (60, 196), "at the bottom": (128, 196), "in the bottom right corner": (196, 196)}
# How the first thing lies to the second: unit vector from the second to the first, and the phrases for it.
RELATIONS = {"left": ((-1, 0), ["left of", "to the left of"]), "right": ((1, 0), ["right of", "to the right of"]),
             "above": ((0, -1), ["above", "over"]), "below": ((0, 1), ["below", "under"])}
ALIASES = {"star": ["star", "yellow star"], "doughnut": ["doughnut", "donut"], "automobile": ["automobile", "car", "red car"],
           "headphone": ["headphone", "headphones"], "television": ["television", "tv"], "sauropod": ["sauropod", "dinosaur"],
           "snow-capped mountain": ["snow-capped mountain", "mountain"], "soft ice cream": ["soft ice cream", "ice cream"],
           "gem stone": ["gem stone", "diamond"], "cheese wedge": ["cheese wedge", "cheese"], "honeybee": ["honeybee", "bee"],
           "lady beetle": ["lady beetle", "ladybug"], "wrapped gift": ["wrapped gift", "gift", "present"],
           "french fries": ["french fries", "fries"], "hot pepper": ["hot pepper", "chili"], "red heart": ["red heart", "heart"],
           "baby chick": ["baby chick", "chick"], "evergreen tree": ["evergreen tree", "tree"], "hourglass done": ["hourglass"],
           "fire engine": ["fire engine", "fire truck"], "t-shirt": ["t-shirt", "shirt"], "open book": ["open book", "book"]}
HELD_OUT = 40  # one combination in so many is kept from training
NO_ARTICLE = ("bread", "sushi", "broccoli", "garlic", "soap", "fire")
SINGULAR = ("cactus", "octopus", "bus", "compass", "hippopotamus")


def thing_names():
    return [name.strip() for name in (HERE / "things.txt").read_text().replace("\n", ";").split(";") if name.strip()]


def spoken_names(name):
    return [alias.lower() for alias in ALIASES.get(name, [name])]


def extract(folder):
    """Writes things.npz: `names` and `pictures` [things, BITMAP, BITMAP, 4] uint8."""
    from fontTools.ttLib import TTFont
    from PIL import Image

    font = TTFont(FONT)
    characters = font.getBestCmap()
    strikes = font["CBDT"].strikeData[0]
    by_name = {}
    for node in ElementTree.parse(NAMES).getroot().iter("annotation"):
        code = node.get("cp").replace("\ufe0f", "")
        if node.get("type") == "tts" and len(code) == 1 and ord(code) in characters:
            by_name[node.text] = characters[ord(code)]
    names, pictures = [], []
    for name in thing_names():
        if name not in by_name or by_name[name] not in strikes:
            print("left out, not in the font or CLDR:", name)
            continue
        picture = Image.open(io.BytesIO(strikes[by_name[name]].imageData)).convert("RGBA")
        square = Image.new("RGBA", (max(picture.size),) * 2)
        square.paste(picture, ((square.width - picture.width) // 2, (square.height - picture.height) // 2))
        names.append(name)
        pictures.append(np.asarray(square.resize((BITMAP, BITMAP), Image.LANCZOS)))
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(f"{folder}/things.npz", names=np.array(names), pictures=np.stack(pictures))
    print(len(names), "things")


def held_out(things, relation, background):
    """Whether a scene belongs to the evaluation: decided by its combination alone, in any order of the things."""
    key = json.dumps([sorted(things), relation, background])
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % HELD_OUT == 0


def article(noun):
    plural = noun.endswith("s") and not noun.endswith("ss") and noun not in SINGULAR
    return noun if plural or noun in NO_ARTICLE else ("an " if noun[0] in "aeiou" else "a ") + noun


def phrase(rng, name, size):
    noun = rng.choice(spoken_names(name))
    if size:
        noun = f"{rng.choice(SIZE_WORDS[size])} {noun}"
    return article(noun) if rng.random() < 0.85 else noun


def one_thing(rng, names):
    name, size = rng.choice(names), rng.choice(["", "", "small", "large"])
    text, (x, y), place = phrase(rng, name, size), (128, 128), "in the middle"
    if rng.random() < 0.6:
        place = rng.choice(list(PLACES))
        x, y = PLACES[place]
        text += " " + (place if place != "in the middle" else rng.choice(["in the middle", "in the center"]))
    reach = SIZES[size] / 2 + 4
    x, y = min(max(x, reach), SIZE - reach), min(max(y, reach), SIZE - reach)
    return text, [(name, x, y, SIZES[size])], place


def two_things(rng, names):
    pair = rng.sample(names, 2)
    sizes = [rng.choice(["", "", "", "small", "large"]) for _ in pair]
    first, second = (phrase(rng, n, s) for n, s in zip(pair, sizes))
    if rng.random() < 0.15:
        places = rng.sample([p for p in PLACES if "corner" in p], 2)
        things = [(n, *PLACES[p], min(SIZES[s], 100)) for n, s, p in zip(pair, sizes, places)]
        return f"{first} {places[0]} and {second} {places[1]}", things, " ".join(sorted(places))
    relation = rng.choice(list(RELATIONS))
    (dx, dy), words = RELATIONS[relation]
    roll = rng.random()
    if roll < 0.12 and relation == "left":
        text = f"{first} next to {second}"
    elif roll < 0.3 and relation == "left":
        text = f"{first} and {second}"
    else:
        text = f"{first} {rng.choice(words)} {second}"
    gap = 6
    a, b = SIZES[sizes[0]], SIZES[sizes[1]]
    total = min(a + b + gap, SIZE - 8)
    a, b = a * total / (a + b + gap), b * total / (a + b + gap)
    start, along = 128 - total / 2, dx + dy
    centre_a = start + a / 2 if along < 0 else start + total - a / 2
    centre_b = start + total - b / 2 if along < 0 else start + b / 2
    spots = [(centre_a, 128), (centre_b, 128)] if dx else [(128, centre_a), (128, centre_b)]
    return text, [(n, *spot, s) for n, spot, s in zip(pair, spots, (a, b))], relation


def three_things(rng, names):
    trio = rng.sample(names, 3)
    parts = [phrase(rng, n, "") for n in trio]
    if rng.random() < 0.6:
        spots, relation = [(46, 128), (128, 128), (210, 128)], "row"
        text = f"{parts[0]}, {parts[1]} and {parts[2]}" + rng.choice(["", " in a row"])
    else:
        spots, relation = [(128, 46), (128, 128), (128, 210)], "column"
        text = f"{parts[0]} above {parts[1]} above {parts[2]}"
    return text, [(n, x, y, 78) for n, (x, y) in zip(trio, spots)], relation


def scene(rng, names, want_held_out=False):
    """(prompt, [(name, x, y, size)], background, relation): centres and sizes in pixels."""
    while True:
        text, things, relation = rng.choices([one_thing, two_things, three_things], [0.35, 0.45, 0.2])[0](rng, names)
        background = rng.choice(list(BACKGROUNDS))
        if held_out([t[0] for t in things], relation, background) != want_held_out:
            continue
        if any(t[0].startswith(background + " ") for t in things):
            continue  # a red circle on red cannot be seen
        if background == "white" and rng.random() < 0.7:
            return text, things, background, relation
        ending = rng.choice([" on a {}", " on a {}", " on a {}", " with a {}", ", {}"]).format(f"{background} background")
        if ending.startswith(" on a orange"):
            ending = ending.replace("on a", "on an")
        return text + ending, things, background, relation


def jittered(rng, things):
    """The numbers a scene is composed from: [3, 4] of (index or -1, x, y, size)."""
    rows = np.full((3, 4), -1, np.float32)
    for i, (index, x, y, size) in enumerate(things):
        rows[i] = index, x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), size * rng.uniform(0.95, 1.05)
    return rows


def compose(bank, things, backgrounds):
    """Pictures [B, 3, SIZE, SIZE] in [-1, 1] on the bank's device.

    bank [K, 4, BITMAP, BITMAP] float in [0, 1] with premultiplied colours; things [B, 3, 4]; backgrounds [B, 3] in [0, 1].
    """
    import torch
    import torch.nn.functional as F

    batch = things.shape[0]
    picture = backgrounds[:, :, None, None].expand(batch, 3, SIZE, SIZE)
    for i in range(3):
        index, x, y, size = things[:, i].unbind(1)
        shown = (index >= 0).float()[:, None, None, None]
        scale = SIZE / size.clamp(min=1)
        shift_x, shift_y = (128 - x) / 128 * scale, (128 - y) / 128 * scale
        zero = torch.zeros_like(scale)
        theta = torch.stack([torch.stack([scale, zero, shift_x], 1), torch.stack([zero, scale, shift_y], 1)], 1)
        grid = F.affine_grid(theta, (batch, 4, SIZE, SIZE), align_corners=False)
        layer = F.grid_sample(bank[index.long().clamp(min=0)], grid, align_corners=False) * shown
        picture = layer[:, :3] + picture * (1 - layer[:, 3:])
    return picture * 2 - 1


def load_things(folder, device):
    import torch

    data = np.load(f"{folder}/things.npz")
    pictures = torch.from_numpy(data["pictures"]).to(device).float().permute(0, 3, 1, 2) / 255
    pictures[:, :3] *= pictures[:, 3:]
    return [str(name) for name in data["names"]], pictures


def write_eval_prompts(folder, count=200, seed=1234):
    """eval_prompts.jsonl: prompts whose combination of things, relation and background training never sees."""
    rng, names = random.Random(seed), [str(name) for name in np.load(f"{folder}/things.npz")["names"]]
    with open(HERE / "eval_prompts.jsonl", "w") as out:
        for _ in range(count):
            text, things, background, relation = scene(rng, names, want_held_out=True)
            placed = [[n, round(x), round(y), round(s)] for n, x, y, s in things]
            out.write(json.dumps({"prompt": text, "things": placed, "background": background, "relation": relation}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    folder = parser.parse_args().out
    extract(folder)
    write_eval_prompts(folder)
