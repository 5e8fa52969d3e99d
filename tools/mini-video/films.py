"""Films for kinora-mini-video: an emoji that moves, grows or turns on a plain background, and the prompts that say so.

`python films.py --out FOLDER` writes FOLDER/things.npz, the bitmaps that films are made of (from kinora-mini's, see
../mini/data.py, which must be there as FOLDER/all/things.npz or is made), and eval_prompts.jsonl here.
"""
import argparse
import json
import math
import pathlib
import random
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(1, str(HERE.parent / "mini"))
import data  # noqa: E402

SIDE, FRAMES, FPS, MOTION_SCORE = 128, 33, 16, 4
BITMAP = 64
SIZES = {"small": (32, 38), "": (46, 56), "large": (62, 72)}
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1), "down right": (1, 1), "down left": (-1, 1),
              "up right": (1, -1), "up left": (-1, -1)}
VERBS = ["moves", "moves", "moves", "goes", "flies", "slides", "travels"]
PHRASES = {
    "right": ["moves from left to right", "moves from left to right", "{verb} from left to right", "{verb} to the right", "moves right"],
    "left": ["moves from right to left", "moves from right to left", "{verb} from right to left", "{verb} to the left", "moves left"],
    "up": ["moves up", "moves up", "{verb} up", "{verb} upwards", "{verb} from bottom to top", "rises"],
    "down": ["moves down", "moves down", "{verb} down", "{verb} downwards", "{verb} from top to bottom", "falls"],
    "down right": ["{verb} from the top left to the bottom right"], "down left": ["{verb} from the top right to the bottom left"],
    "up right": ["{verb} from the bottom left to the top right"], "up left": ["{verb} from the bottom right to the top left"],
    "grows": ["grows", "grows", "gets bigger", "becomes larger"], "shrinks": ["shrinks", "shrinks", "gets smaller", "becomes smaller"],
    "clockwise": ["turns clockwise", "turns clockwise", "spins clockwise", "rotates clockwise", "turns", "spins"],
    "counterclockwise": ["turns counterclockwise", "turns counterclockwise", "spins counterclockwise", "rotates counterclockwise"],
    "still": ["stands still", "does not move", "stays still"]}
WEIGHTS = {"right": 14, "left": 14, "up": 14, "down": 14, "down right": 3, "down left": 3, "up right": 3, "up left": 3, "grows": 8,
           "shrinks": 8, "clockwise": 5, "counterclockwise": 5, "still": 6}
THINGS = (
    "cactus; tulip; sunflower; four leaf clover; maple leaf; mushroom; eggplant; watermelon; lemon; banana; pineapple; red apple; "
    "green apple; strawberry; hamburger; pizza; doughnut; birthday cake; wrapped gift; jack-o-lantern; Christmas tree; balloon; "
    "guitar; trumpet; basketball; soccer ball; trophy; house; castle; cat; dog; pig; rabbit; elephant; octopus; snail; snake; "
    "honeybee; lady beetle; tropical fish; turtle; penguin; whale; frog; panda; fox; owl; butterfly; unicorn; lion; duck; crab; "
    "T-Rex; flamingo; parrot; baby chick; crown; t-shirt; gem stone; red heart; blue heart; green heart; light bulb; bomb; "
    "fire; rocket; helicopter; bus; fire engine; taxi; tractor; sailboat; bicycle; umbrella; snowman; sun; star; "
    "crescent moon; cloud; key; bell; teddy bear; teapot; kite").split("; ")


def video_prompt(text, fps=FPS, score=MOTION_SCORE):
    """What the program makes of a prompt before it is encoded."""
    text = text.strip()
    return f"{text if text.endswith('.') else text + '.'} {fps} FPS. {score} motion score."


def visible(picture, colour):
    """Whether a bitmap [h, w, 4] stands out from a background colour."""
    opaque = picture[..., 3] > 128
    far = np.abs(picture[..., :3].astype(int) - np.array(colour)).max(-1) > 70
    return (far & opaque).sum() > 0.6 * opaque.sum()


def track(rng, motion, size):
    """Centre x, y, size and angle of the thing at the first and at the last frame: [8]."""
    s = rng.uniform(*SIZES[size])
    reach = s / 2 + 2
    free = lambda: rng.uniform(max(reach, 44), min(SIDE - reach, SIDE - 44))
    if motion in DIRECTIONS:
        dx, dy = DIRECTIONS[motion]
        low, high = reach + rng.uniform(0, 8), SIDE - reach - rng.uniform(0, 8)
        along = lambda d: (low, high) if d > 0 else (high, low)
        (x0, x1), (y0, y1) = (along(dx) if dx else (free(),) * 2), (along(dy) if dy else (free(),) * 2)
        if not dx:
            x1 = x0
        if not dy:
            y1 = y0
        return [x0, y0, s, 0, x1, y1, s, 0]
    x, y = 64 + rng.uniform(-8, 8), 64 + rng.uniform(-8, 8)
    if motion in ("grows", "shrinks"):
        a, b = rng.uniform(26, 32), rng.uniform(76, 90)
        a, b = (a, b) if motion == "grows" else (b, a)
        return [x, y, a, 0, x, y, b, 0]
    s *= 1.1
    angle = {"clockwise": 1, "counterclockwise": -1}.get(motion, 0) * rng.uniform(300, 360)
    return [x, y, s, 0, x, y, s, math.radians(angle)]


class Scenes:
    """Draws scenes of the things in things.npz."""

    def __init__(self, folder):
        stored = np.load(f"{folder}/things.npz")
        self.names, self.pictures = [str(name) for name in stored["names"]], stored["pictures"]
        self.backgrounds = {n: [b for b, c in data.BACKGROUNDS.items() if visible(p, c)] for n, p in zip(self.names, self.pictures)}

    def sample(self, rng, held_out=False):
        """dict of thing (index), motion, background, size and track; `held_out`: of a combination that training never
        draws."""
        while True:
            index, motion = rng.randrange(len(self.names)), rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            name = self.names[index]
            background = rng.choice(self.backgrounds[name])
            if data.held_out([name], motion, background) == held_out:
                break
        size = "" if motion in ("grows", "shrinks") else rng.choice(["", "", "", "small", "large"])
        return {"thing": index, "motion": motion, "background": background, "size": size, "track": track(rng, motion, size)}

    def prompt(self, rng, scene):
        """One of the ways in which a user may write it."""
        motion, background = scene["motion"], scene["background"]
        text = data.phrase(rng, self.names[scene["thing"]], scene["size"])
        text += " " + rng.choice(PHRASES[motion]).format(verb=rng.choice(VERBS))
        if background != "white" or rng.random() < 0.5:
            ending = rng.choice([" on a {}", " on a {}", " on a {}", " with a {}", ", {}"]).format(f"{background} background")
            text += ending.replace("on a orange", "on an orange").replace("with a orange", "with an orange")
        return text[0].upper() + text[1:] if rng.random() < 0.15 else text


def load_bank(folder, device):
    """[3·things, 4, 64, 64]: bitmaps with premultiplied colours, sharp, softer and soft, for smaller and smaller sizes."""
    import torch
    import torch.nn.functional as F

    pictures = torch.from_numpy(np.load(f"{folder}/things.npz")["pictures"]).to(device).float().permute(0, 3, 1, 2) / 255
    pictures[:, :3] *= pictures[:, 3:]
    levels = [pictures] + [F.interpolate(F.interpolate(pictures, size=(n, n), mode="area"), size=(BITMAP, BITMAP), mode="bilinear")
                           for n in (44, 32)]
    return torch.cat(levels)


def render(bank, things, tracks, colours, frames=None, start=0, side=None, corner=0):
    """Films [batch, frames, side, side, 3] in [-1, 1]: things [batch] indices, tracks [batch, 8], colours [batch, 3] in [0, 1].
    Of a film's frames and pixels only those from `start` (a number or [batch]) and `corner` (likewise [batch, 2]: x, y)."""
    import torch
    import torch.nn.functional as F

    batch, count, frames, side = len(things), len(bank) // 3, frames or FRAMES, side or SIDE
    start = torch.as_tensor(start, device=bank.device).reshape(-1, 1, 1)
    corner = torch.as_tensor(corner, device=bank.device).expand(batch, 2)
    u = (start + torch.arange(frames, device=bank.device)[:, None]) / (FRAMES - 1)
    x, y, size, angle = (tracks[:, None, :4] * (1 - u) + tracks[:, None, 4:] * u).flatten(0, 1).unbind(-1)
    left, top = corner.repeat_interleave(frames, 0).unbind(1)
    level = (size < 52).long() + (size < 38).long()
    cos, sin, zoom = angle.cos(), angle.sin(), side / size
    # From a place in the picture to one in the bitmap: turned back and enlarged around the centre.
    right, down = (left + side / 2 - x) * 2 / size, (top + side / 2 - y) * 2 / size
    theta = torch.stack([torch.stack([cos * zoom, sin * zoom, cos * right + sin * down], 1),
                         torch.stack([-sin * zoom, cos * zoom, cos * down - sin * right], 1)], 1)
    grid = F.affine_grid(theta, (batch * frames, 4, side, side), align_corners=False)
    index = things.repeat_interleave(frames) + level * count
    layer = F.grid_sample(bank[index], grid, align_corners=False).permute(0, 2, 3, 1)
    picture = layer[..., :3] + colours.repeat_interleave(frames, 0)[:, None, None] * (1 - layer[..., 3:])
    return (picture * 2 - 1).unflatten(0, (batch, frames))


def colours_of(rng, scenes):
    shade = lambda: rng.uniform(-0.03, 0.03)
    return [[min(max(c / 255 + d, 0), 1) for c in data.BACKGROUNDS[s["background"]]] for s in scenes for d in [shade()]]


def tensors_of(rng, scenes, device):
    """What render takes of scenes."""
    import torch

    return (torch.tensor([s["thing"] for s in scenes], device=device), torch.tensor([s["track"] for s in scenes], device=device),
            torch.tensor(colours_of(rng, scenes), device=device))


def write_things(out):
    if not (pathlib.Path(out) / "all/things.npz").exists():
        data.extract(f"{out}/all")
    stored = np.load(f"{out}/all/things.npz")
    known = {str(name): picture for name, picture in zip(stored["names"], stored["pictures"])}
    # Reduced with premultiplied colours, so that what is transparent does not colour the edges.
    reduced = []
    for name in THINGS:
        picture = known[name].astype(np.float32) / 255
        picture[..., :3] *= picture[..., 3:]
        picture = picture.reshape(BITMAP, known[name].shape[0] // BITMAP, BITMAP, -1, 4).mean((1, 3))
        picture[..., :3] /= np.maximum(picture[..., 3:], 1e-3)
        reduced.append((picture * 255 + 0.5).clip(0, 255).astype(np.uint8))
    np.savez_compressed(f"{out}/things.npz", names=np.array(THINGS), pictures=np.stack(reduced))


def write_eval_prompts(folder, count=100, seed=4321):
    scenes, rng = Scenes(folder), random.Random(seed)
    with open(HERE / "eval_prompts.jsonl", "w") as out:
        for _ in range(count):
            s = scenes.sample(rng, held_out=True)
            s["prompt"] = scenes.prompt(rng, s)
            s["track"] = [round(v, 2) for v in s["track"]]
            out.write(json.dumps({**s, "thing": scenes.names[s["thing"]]}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    folder = parser.parse_args().out
    write_things(folder)
    write_eval_prompts(folder)
