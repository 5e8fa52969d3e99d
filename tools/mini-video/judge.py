"""What is in a film and how it moves: the classifier of kinora-mini, and the outline of what is not background."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import films
from classifier import Classifier

DIRECTIONS = {name: torch.tensor(d, dtype=torch.float32) for name, d in films.DIRECTIONS.items()}


class Judge:
    def __init__(self, device="cpu"):
        known = films.data.thing_names()
        self.model = Classifier(len(known)).eval()
        state = load_file(films.HERE.parent / "mini/classifier.safetensors")
        self.model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        self.model.to(device)
        self.of_things = torch.tensor([known.index(name) for name in films.THINGS], device=device)

    @torch.no_grad()
    def thing(self, film):
        """Index in films.THINGS of what a film [frames, height, width, 3] in [-1, 1] shows."""
        frames = film[:: max(1, len(film) // 8)].permute(0, 3, 1, 2).float()
        return int(self.model(F.interpolate(frames, size=(256, 256), mode="bilinear"))[:, self.of_things].sum(0).argmax())

    @torch.no_grad()
    def background(self, film):
        """The named colour nearest to the median of the border."""
        edge = torch.cat([film[:, :3].flatten(0, 2), film[:, -3:].flatten(0, 2), film[:, :, :3].flatten(0, 2), film[:, :, -3:].flatten(0, 2)])
        colour = (edge.float().median(0).values + 1) * 127.5
        colours = films.data.BACKGROUNDS
        return min(colours, key=lambda name: float((torch.tensor(colours[name], device=film.device) - colour).square().sum()))

    @torch.no_grad()
    def motion(self, film):
        """One of films.WEIGHTS."""
        film = film.float()
        edge = torch.cat([film[:, 0], film[:, -1], film[:, :, 0], film[:, :, -1]], 1)
        distance = (film - edge.median(1).values[:, None, None]).abs().amax(-1)  # [frames, height, width]
        mask = (distance > 0.25).float()
        area = mask.sum((1, 2)).clamp(min=1)
        places = torch.arange(film.shape[1], device=film.device, dtype=torch.float32)
        x, y = (mask.sum(1) * places).sum(1) / area, (mask.sum(2) * places).sum(1) / area
        ends = lambda v: (v[:4].median(), v[-4:].median())
        (x0, x1), (y0, y1), (a0, a1) = ends(x), ends(y), ends(area)
        step = torch.stack([x1 - x0, y1 - y0]).cpu()
        if step.norm() > 0.14 * film.shape[1]:
            return max(DIRECTIONS, key=lambda d: float(step @ DIRECTIONS[d] / DIRECTIONS[d].norm()))
        if a1 / a0 > 2 or a1 / a0 < 0.5:
            return "grows" if a1 > a0 else "shrinks"
        return self.turning(film, mask, x, y)

    def turning(self, film, mask, x, y):
        """By which angle about its centre a frame fits the first one best, an eighth to a third of the film later."""
        n, side = len(film), film.shape[1]
        later = [n // 8, n // 6, n // 4, n // 3]
        angles = torch.arange(-150, 151, 15, device=film.device) * (torch.pi / 180)
        centre = lambda i: torch.stack([x[i], y[i]]) * (2 / side) - 1
        seen = film * mask[..., None]
        scores = []
        for i in later:
            here, there = centre(0), centre(i)
            c, s = angles.cos(), angles.sin()
            turn = torch.stack([torch.stack([c, s], 1), torch.stack([-s, c], 1)], 1)  # [angles, 2, 2]: back by the angle
            theta = torch.cat([turn, (here - turn @ there)[..., None]], 2)
            grid = F.affine_grid(theta, (len(angles), 3, side, side), align_corners=False)
            turned = F.grid_sample(seen[0].permute(2, 0, 1).expand(len(angles), -1, -1, -1), grid, align_corners=False)
            scores.append((turned - seen[i].permute(2, 0, 1)).abs().mean((1, 2, 3)))
        speed = []  # for each speed in degrees a frame, how well all fit
        for degrees in (-11, -10, -9, 0, 9, 10, 11):
            speed.append(sum(float(s[int(((angles * 180 / torch.pi) - degrees * i).abs().argmin())]) for s, i in zip(scores, later)))
        best = min(range(7), key=lambda k: speed[k])
        return "still" if best == 3 else "counterclockwise" if best < 3 else "clockwise"


