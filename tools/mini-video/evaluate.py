"""Makes films of the held-out prompts with the program and judges them:

    python evaluate.py --data FOLDER --out FOLDER [--program ../../build/kinora] [--model FOLDER] [--count 100] [--pictures 25]
                       [--arguments "--quantize int8"] [--compare FOLDER]

--data is the folder of films.py. Films that are in --out already are not made again. For the first --pictures prompts it
also gives the program a first picture and compares the film's first frame with it. --arguments are more of the program's;
--compare gives the PSNR to the films of the same prompts in another --out, and does not measure the judge once more.
"""
import argparse
import json
import pathlib
import random
import shlex
import subprocess
import time

import numpy as np
import torch
from PIL import Image

import films
from judge import Judge


def read_film(folder):
    frames = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(frames)).float() / 127.5 - 1


def make(args, folder, prompt, seed, *more):
    """Frames as pictures in `folder`; seconds it took, or none if they were there."""
    if folder.exists() and any(folder.glob("*.png")):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    command = [args.program, "generate", "--video", prompt, "--seed", str(seed), "-q", "-o", f"{folder}/{{index}}.png", *more]
    command += shlex.split(args.arguments)
    begin = time.time()
    subprocess.run(command + (["--model", args.model] if args.model else []), check=True, stdout=subprocess.DEVNULL)
    return time.time() - begin


def measure_judge(judge, args):
    """How often the judge is right about films made from the bitmaps themselves."""
    scenes, bank, rng, right = films.Scenes(args.data), films.load_bank(args.data, "cpu"), random.Random(99), [0, 0, 0]
    for _ in range(100):
        scene = scenes.sample(rng)
        film = films.render(bank, *films.tensors_of(rng, [scene], "cpu"))[0]
        right[0] += judge.thing(film) == scene["thing"]
        right[1] += judge.motion(film) == scene["motion"]
        right[2] += judge.background(film) == scene["background"]
    print("the judge, on 100 films made from the bitmaps: thing {}, motion {}, background {} right".format(*right))


def judge_texts(judge, args, entries):
    right, moving, wrong, seconds = {"thing": 0, "motion": 0, "background": 0, "direction": 0}, 0, [], []
    for i, entry in enumerate(entries):
        took = make(args, args.out / f"text-{i:03}", entry["prompt"], 1000 + i)
        seconds += [took] if took else []
        film = read_film(args.out / f"text-{i:03}")
        seen = {"thing": films.THINGS[judge.thing(film)], "motion": judge.motion(film), "background": judge.background(film)}
        for key, value in seen.items():
            right[key] += value == entry[key]
            if value != entry[key]:
                wrong.append(f"{i}: \"{entry['prompt']}\" looks like {value}")
        if entry["motion"] in films.DIRECTIONS:
            moving += 1
            right["direction"] += seen["motion"] == entry["motion"]
    n = len(entries)
    print(*wrong, sep="\n")
    part = {key: f"{value / (max(moving, 1) if key == 'direction' else n):.1%}" for key, value in right.items()}
    print(f"{n} films from text: right thing {part['thing']}, right direction {part['direction']} of the {moving} that move, right "
          f"motion of any kind {part['motion']}, background {part['background']}")
    if seconds:
        print(f"{sum(seconds) / len(seconds):.1f} s a film, {max(seconds):.1f} s at most")


def judge_pictures(judge, args, entries):
    bank, rng, values, right = films.load_bank(args.data, "cpu"), random.Random(7), [], 0
    for i, entry in enumerate(entries):
        scene = {**entry, "thing": films.THINGS.index(entry["thing"])}
        picture = films.render(bank, *films.tensors_of(rng, [scene], "cpu"), 1)[0, 0]
        given = ((picture + 1) * 127.5).round().clamp(0, 255).byte()
        path = args.out / f"picture-{i:03}.png"
        Image.fromarray(given.numpy()).save(path)
        make(args, args.out / f"picture-{i:03}", entry["prompt"], 2000 + i, "-i", str(path))
        film = read_film(args.out / f"picture-{i:03}")
        error = ((film[0] - given.float() / 127.5 + 1) / 2).square().mean()
        values.append(float(-10 * torch.log10(error.clamp(min=1e-9))))
        right += judge.motion(film) == entry["motion"]
    n = len(entries)
    print(f"{n} films from a picture: first frame {sum(values) / n:.1f} dB from the picture on average, {min(values):.1f} dB at worst; "
          f"right motion {right / n:.1%}")


def compare(args, count):
    """Peak signal to noise ratio, in dB: of the mean squared error over all films, and the median of each film's."""
    errors = []
    for i in range(count):
        ours, theirs = (read_film(folder / f"text-{i:03}") for folder in (args.out, args.compare))
        errors.append(float((ours - theirs).square().mean()) / 4)
    psnr = lambda error: -10 * np.log10(max(error, 1e-9))
    print(f"{count} films from text: PSNR {psnr(np.mean(errors)):.1f} dB over all, {psnr(np.median(errors)):.1f} dB at the median")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--program", default=str(films.HERE.parents[1] / "build/kinora"))
    parser.add_argument("--model", default="")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=25)
    parser.add_argument("--arguments", default="")
    parser.add_argument("--compare", type=pathlib.Path)
    options = parser.parse_args()
    judge = Judge()
    if not options.compare:
        measure_judge(judge, options)
    entries = [json.loads(line) for line in (films.HERE / "eval_prompts.jsonl").read_text().splitlines()][:options.count]
    judge_texts(judge, options, entries)
    if options.compare:
        compare(options, len(entries))
    if options.pictures:
        judge_pictures(judge, options, entries[:options.pictures])
