"""How many of the asked things and backgrounds are in the pictures:

    kinora generate --prompt-file PROMPTS -o 'FOLDER/{index}.png'     (the prompts of eval_prompts.jsonl, one a line)
    python evaluate.py FOLDER [--data FOLDER_WITH_THINGS] [--compare FOLDER]

With --data it first measures the classifier itself on composed scenes; --compare also gives the PSNR to the pictures of the same
names in another folder.
"""
import argparse
import json
import pathlib
import random

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import data
from classifier import Classifier

HERE = pathlib.Path(__file__).parent


def load_classifier(names):
    model = Classifier(len(names))
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(HERE / "classifier.safetensors").items()})
    return model.eval()


@torch.no_grad()
def measure_classifier(model, names, folder, count=512):
    _, bank = data.load_things(folder, "cpu")
    rng, index, found, asked, false = random.Random(99), {n: i for i, n in enumerate(names)}, 0, 0, 0
    for _ in range(count):
        _, things, background, _ = data.scene(rng, names)
        rows = data.jittered(rng, [(index[n], x, y, s) for n, x, y, s in things])
        colour = torch.tensor([[c / 255 for c in data.BACKGROUNDS[background]]])
        shown = model(data.compose(bank, torch.from_numpy(rows)[None], colour))[0] > 0
        wanted = torch.zeros(len(names), dtype=torch.bool)
        wanted[[index[t[0]] for t in things]] = True
        found += int((shown & wanted).sum())
        asked += int(wanted.sum())
        false += int((shown & ~wanted).sum())
    print(f"classifier on {count} composed scenes: finds {found / asked:.1%} of the things, {false / count:.3f} false ones a picture")


def background_of(picture):
    """The named colour nearest to the median of the border."""
    border = np.concatenate([picture[:6].reshape(-1, 3), picture[-6:].reshape(-1, 3), picture[:, :6].reshape(-1, 3), picture[:, -6:].reshape(-1, 3)])
    middle = np.median(border, axis=0)
    return min(data.BACKGROUNDS, key=lambda name: np.square(np.array(data.BACKGROUNDS[name]) - middle).sum())


def compare(folder, other):
    """Peak signal to noise ratio, in dB: of the mean squared error over all pictures, and the median of each picture's."""
    errors = []
    for path in sorted(pathlib.Path(folder).glob("*.png")):
        if (pathlib.Path(other) / path.name).exists():
            a, b = (np.asarray(Image.open(p).convert("RGB"), dtype=np.float64) for p in (path, pathlib.Path(other) / path.name))
            errors.append(np.square(a - b).mean())
    psnr = lambda error: 10 * np.log10(255**2 / max(error, 1e-9))
    print(f"{len(errors)} pictures: PSNR {psnr(np.mean(errors)):.1f} dB over all, {psnr(np.median(errors)):.1f} dB at the median")


@torch.no_grad()
def main(folder, scenes):
    names = data.thing_names()
    model = load_classifier(names)
    if scenes:
        measure_classifier(model, names, scenes)
    index, asked, found, right, whole, extra, count = {n: i for i, n in enumerate(names)}, 0, 0, 0, 0, 0, 0
    for number, line in enumerate((HERE / "eval_prompts.jsonl").read_text().splitlines()):
        path = pathlib.Path(folder) / f"{number}.png"
        if not path.exists():
            continue
        entry = json.loads(line)
        picture = np.asarray(Image.open(path).convert("RGB"))
        shown = model(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1)[0] > 0
        wanted = [index[t[0]] for t in entry["things"]]
        hits = int(shown[wanted].sum())
        asked, found, count = asked + len(wanted), found + hits, count + 1
        extra += int(shown.sum()) - hits
        good = background_of(picture) == entry["background"]
        right += good
        whole += good and hits == len(wanted)
    print(f"{count} pictures: things found {found}/{asked} = {found / asked:.1%}, background {right}/{count} = {right / count:.1%}, "
          f"all right {whole / count:.1%}, things not asked for {extra / count:.2f} a picture")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--compare")
    parser.add_argument("--data", default="")
    options = parser.parse_args()
    main(options.folder, options.data)
    if options.compare:
        compare(options.folder, options.compare)
