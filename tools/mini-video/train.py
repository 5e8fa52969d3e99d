"""Trains kinora-mini-video in two stages, each for a given time, on one GPU or, under torchrun, on several:

    torchrun --nproc-per-node 2 train.py autoencoder --data FOLDER --out FOLDER --minutes 5.5
    torchrun --nproc-per-node 2 train.py diffusion   --data FOLDER --out FOLDER --minutes 8     (needs FOLDER/autoencoder.safetensors)

Every stage writes its result to FOLDER every minute, so that stopping early loses nothing; --resume FOLDER begins with
what such a run has left. Progress, measured on scenes that are not trained on, goes to FOLDER/STAGE.log.
"""
import argparse
import contextlib
import copy
import json
import math
import pathlib
import random
import time
import traceback

import torch
import torch.distributed as dist
import torch.nn.functional as F

import films
import networks
import sampling
from judge import Judge
from networks import AUTOENCODER, TRANSFORMER, Autoencoder, CausalConv, Generator, inflate, pack
from optimizer import Muon
from text import Coder
from training import Clock, Group, Log, follow, load, psnr, save, write_sheet


# The autoencoder.

def check_norm(device, dtype, log):
    """The norm written here against PyTorch's."""
    x, norm = torch.randn(2, 3, 8, 8, 32, device=device, dtype=dtype, requires_grad=True), networks.Norm(8, 32).to(device)
    truth = F.silu(F.group_norm(x.float().permute(0, 4, 1, 2, 3), 8, eps=norm.eps)).permute(0, 2, 3, 4, 1)
    grad = torch.randn_like(truth)
    wanted = torch.autograd.grad(truth, x, grad)[0]
    for networks.NormSilu.mixed in (True, False):
        try:
            y = norm(x)
            got = torch.autograd.grad(y, x, grad.to(dtype))[0]
        except RuntimeError as error:
            log(f"the norm cannot mix types: {error}")
            continue
        far = max(float((y - truth).abs().max()), float((got - wanted).abs().max()))
        log(f"the norm differs by at most {far:.4f} from PyTorch's")
        assert far < 0.2
        return


def choose_convolution(group, dtype, log):
    """Times both ways of convolving in a level's typical shape and keeps the faster."""
    check_norm(group.device, dtype, log)
    if group.device.type != "cuda":
        return
    times = {True: math.inf, False: math.inf}
    for stacked in times:
        CausalConv.stacked = stacked
        layers = torch.nn.ModuleList([CausalConv(32, 32), CausalConv(32, 32)]).to(group.device)
        x = torch.randn(4, 33, 128, 128, 32, device=group.device, dtype=dtype, requires_grad=True)
        try:
            for _ in range(5):  # the first ones choose algorithms
                begin = time.time()
                layers[1](layers[0](x)).square().mean().backward()
                torch.cuda.synchronize()
                times[stacked] = time.time() - begin
                if times[stacked] > 2:
                    break
        except RuntimeError as error:
            log(f"{'stacked' if stacked else '3D'} convolution: {error}")
    CausalConv.stacked = bool(group.same(float(times[True] < times[False])))
    log(f"two convolutions of 4 films, forward and backward: 3D {times[False] * 1e3:.1f} ms, stacked 2D {times[True] * 1e3:.1f} ms")


def film_loss(y, x):
    """Absolute differences of films, of their edges and movements, and of smaller versions; more for what is not plain."""
    edge = torch.cat([x[:, :, 0], x[:, :, -1]], 2).median(2, keepdim=True).values[:, :, :, None]
    weight = 1 + 3 * ((x - edge).abs().amax(-1, keepdim=True) > 0.15).float()
    weight = weight / weight.mean()
    difference = y - x
    loss = (difference.abs() * weight).mean()
    for axis in (2, 3):
        loss = loss + (difference.diff(dim=axis).abs() * weight.narrow(axis, 1, x.shape[axis] - 1)).mean()
    if x.shape[1] > 1:
        loss = loss + 0.5 * (difference.diff(dim=1).abs() * weight[:, 1:]).mean()
    flat = difference.flatten(0, 1).permute(0, 3, 1, 2)
    for factor in (2, 4):
        loss = loss + 0.5 * F.avg_pool2d(flat, factor).abs().mean()
    return loss


def autoencoder_batch(rng, scenes, bank, kind, args, device):
    """Films [batch, frames, height, width, 3]: pictures, crops around the thing, or whole films."""
    count = {"pictures": 16 * args.batch, "crops": 4 * args.batch, "films": args.batch}[kind]
    chosen = [scenes.sample(rng) for _ in range(count)]
    things, tracks, colours = films.tensors_of(rng, chosen, device)
    if kind == "films":
        return films.render(bank, things, tracks, colours)
    frames, side = (1, films.SIDE) if kind == "pictures" else (min(17, films.FRAMES), min(96, films.SIDE))
    start = torch.tensor([rng.randint(0, films.FRAMES - frames) for _ in chosen], device=device)
    if kind == "pictures":
        return films.render(bank, things, tracks, colours, 1, start)
    u = (start[:, None] + frames // 2) / (films.FRAMES - 1)
    centre = tracks[:, :2] * (1 - u) + tracks[:, 4:6] * u
    corner = (centre - side / 2 + torch.empty_like(centre).uniform_(-12, 12)).clamp(0, films.SIDE - side).round()
    return films.render(bank, things, tracks, colours, frames, start, side, corner)


@torch.no_grad()
def test_autoencoder(model, batch, judge, dtype):
    """What to log, rows for a sheet, and the scaling factor."""
    film, things = batch
    model, film = model.eval(), film.to(dtype)
    z = torch.cat([model.moments(f)[0] for f in film.split(4)])
    alone = torch.cat([model.moments(f[:, :1])[0] for f in film.split(4)])
    mixed = torch.cat([alone, z[:, 1:]], 1)  # as image to video decodes it
    y = torch.cat([model.decode(v) for v in z.split(4)]).clamp(-1, 1)
    w = torch.cat([model.decode(v) for v in mixed.split(4)]).clamp(-1, 1)
    per_film = [psnr(a, b) for a, b in zip(y, film)]
    first = [psnr(a[0], b[0]) for a, b in zip(w, film)]
    right = sum(judge.thing(f) == t for f, t in zip(y, things)) / len(things)
    text = (f"psnr {sum(per_film) / len(per_film):.2f} least {min(per_film):.2f}, first frame from a picture {sum(first) / len(first):.2f} "
            f"least {min(first):.2f}, thing known {right:.1%}, latents std {float(z.float().std()):.3f} mean {float(z.float().mean()):.3f}")
    return text, [row for pair in zip(film[:8], y[:8]) for row in pair], 1 / float(z.float().std())


def train_autoencoder(args, group, log):
    device, dtype, rng = group.device, args.dtype, random.Random(100 + group.rank + 1000 * bool(args.resume))
    scenes, bank = films.Scenes(args.data), films.load_bank(args.data, device)
    choose_convolution(group, dtype, log)
    model = Autoencoder()
    if args.resume:
        model.load_state_dict(load(args.resume, "autoencoder"))
    model.to(device)
    group.share(model)
    parameters = list(model.parameters())
    rate = args.rate or 2e-3
    optimizer = Muon([p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1], rate, dtype=dtype,
                     fused=device.type == "cuda")
    ema, clock = copy.deepcopy(model), Clock(group, args.minutes, rate, 50)
    judge, held = Judge(device), random.Random(7)
    chosen = [scenes.sample(held, held_out=True) for _ in range(args.tested)]
    tested = films.render(bank, *films.tensors_of(held, chosen, device)), [s["thing"] for s in chosen]

    def finish(last):
        if group.rank:
            return
        text, rows, factor = test_autoencoder(ema, tested, judge, dtype)
        log(f"autoencoder {clock.spent()} {text}")
        save(ema, args.out, "autoencoder")
        pathlib.Path(f"{args.out}/autoencoder.json").write_text(json.dumps({"scaling_factor": factor}))
        if last:
            write_sheet(f"{args.out}/autoencoder.png", rows)

    only_pictures = args.pictures > 0
    while clock.part < 1:
        step_rate = clock.tick()
        for g in optimizer.param_groups:
            g["lr"] = step_rate
        if only_pictures and clock.part >= args.pictures:
            log(f"autoencoder {clock.spent()} from pictures to films")
            inflate(model), inflate(ema)
            optimizer.forget()
            only_pictures = False
        kind = "pictures" if only_pictures or random.Random(clock.step).random() < 0.15 else "crops" if clock.part < args.crops else "films"
        x = autoencoder_batch(rng, scenes, bank, kind, args, device)
        mean, log_variance = model.moments(x.to(dtype))
        mean, log_variance = mean.float(), log_variance.float().clamp(-30, 20)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        # A little more noise makes the decoder forgive what the diffusion gets slightly wrong.
        z = z + torch.randn_like(z) * mean.std().detach() * 0.08 * torch.rand(len(z), 1, 1, 1, 1, device=device)
        y = model.decode(z.to(dtype)).float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = film_loss(y, x) + args.divergence * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        group.mean_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        follow(ema, model, clock.step, 0.998)
        if clock.step == 1 or clock.every("log", 10):
            log(f"autoencoder {clock.spent()} {tuple(x.shape)} loss {loss.item():.4f} l1 {(y - x).abs().mean().item():.4f} "
                f"divergence {divergence.item():.2f} noise {torch.exp(0.5 * log_variance).mean().item() / mean.std().item():.3f}")
        if clock.every("save", args.save_seconds) and clock.part < 1:
            group.share(model)  # they are the same already but for what rounding may have done
            finish(False)
    finish(True)


# The transformer and its text encoders.

class Bank:
    """Latents of films, made anew all the time, with a few ways to ask for each."""

    def __init__(self, args, group, autoencoder, coder, size):
        self.args, self.device, self.autoencoder, self.coder = args, group.device, autoencoder, coder
        self.scenes, self.bitmaps = films.Scenes(args.data), films.load_bank(args.data, group.device)
        self.rng, self.size, self.filled, self.at = random.Random(200 + group.rank + 1000 * bool(args.resume)), size, 0, 0
        side, channels = films.SIDE // 8, AUTOENCODER["latent_channels"]
        empty = lambda *shape, **kind: torch.empty(size, *shape, device=group.device, **kind)
        self.films = empty((films.FRAMES - 1) // 4 + 1, side, side, channels, dtype=torch.bfloat16)
        self.pictures = empty(2, side, side, channels, dtype=torch.bfloat16)  # the first and the last frame by themselves
        self.ways = 3
        self.t5 = empty(self.ways, networks.TOKENS, dtype=torch.int64)
        self.clip = empty(self.ways, networks.CLIP_TOKENS, dtype=torch.int64)
        self.none = [ids.to(group.device) for ids in coder([""])]

    def prompt(self, scene):
        text, rng = self.scenes.prompt(self.rng, scene), self.rng
        usual = rng.random() < 0.9
        fps = films.FPS if usual else rng.choice([8, 10, 12, 15, 16, 20, 24, 25, 30])
        return films.video_prompt(text, fps, films.MOTION_SCORE if usual else rng.randint(1, 15))

    @torch.no_grad()
    def add(self, count):
        chosen = [self.scenes.sample(self.rng) for _ in range(count)]
        x = films.render(self.bitmaps, *films.tensors_of(self.rng, chosen, self.device)).to(self.args.dtype)
        place = torch.arange(self.at, self.at + count, device=self.device) % self.size
        self.films[place] = self.autoencoder.moments(x)[0].to(torch.bfloat16)
        ends = torch.stack([x[:, 0], x[:, -1]], 1).flatten(0, 1)[:, None]
        self.pictures[place] = self.autoencoder.moments(ends)[0].unflatten(0, (count, 2))[:, :, 0].to(torch.bfloat16)
        ids = self.coder([self.prompt(s) for s in chosen for _ in range(self.ways)])
        for to, values in zip((self.t5, self.clip), ids):
            to[place] = values.to(self.device).unflatten(0, (count, self.ways))
        self.at = (self.at + count) % self.size
        self.filled = min(self.size, self.filled + count)

    def draw(self, count):
        """Latents, condition (packed, with its mask), ids of T5 and of CLIP."""
        where = torch.randint(self.filled, (count,), device=self.device)
        way = torch.randint(self.ways, (count,), device=self.device)
        z = self.films[where].float() * self.args.factor
        ends = self.pictures[where].float() * self.args.factor
        # Half of the films from text alone; the others begin with a picture, end with one, or both.
        kind = torch.rand(count, device=self.device)
        first, last = (kind > 0.5) & ((kind < 0.86) | (kind > 0.93)), kind > 0.86
        condition = torch.zeros(*z.shape[:-1], z.shape[-1] + 1, device=self.device)
        for at, picture, chosen in ((0, ends[:, 0], first), (-1, ends[:, 1], last)):
            picture = F.pad(picture, (1, 0), value=1.0)
            condition[:, at] = picture * chosen[:, None, None, None]
        drop = torch.rand(count, 1, device=self.device) < self.args.drop
        t5, clip = (torch.where(drop, none, ids[where, way]) for none, ids in zip(self.none, (self.t5, self.clip)))
        return pack(z), pack(condition), t5, clip


def diffusion_loss(model, tables, batch, shift, autocast):
    clean, condition, t5, clip = batch
    noise, t = torch.randn_like(clean), torch.sigmoid(torch.randn(len(clean), device=clean.device))
    t = shift * t / (1 + (shift - 1) * t)
    with autocast():
        hidden, pooled = model.encode(t5, clip)
        velocity = model.transformer(torch.lerp(clean, noise, t[:, None, None]), condition, hidden, pooled, t, tables)
    return F.mse_loss(velocity.float(), noise - clean)


def is_hidden(name, parameter):
    """Whether it is a matrix between hidden states, not one of an input, a table or a modulation."""
    return parameter.dim() == 2 and any(part in name for part in ("_blocks.", ".block.", ".layers.")) and not any(
        part in name for part in (".lin.", "bias"))


def compile_blocks(model, log):
    """Both kinds of blocks, which are most of the work; compiling a part takes less time than the whole."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    for block in list(model.transformer.double_blocks) + list(model.transformer.single_blocks):
        block.compile(dynamic=False)


def drop_compiled(model):
    for block in list(model.transformer.double_blocks) + list(model.transformer.single_blocks):
        block._compiled_call_impl = None


def test_diffusion(model, autoencoder, coder, judge, args, device, count, **settings):
    """Films of the held-out prompts, judged: a line to log, rows for a sheet."""
    entries = [json.loads(line) for line in (films.HERE / "eval_prompts.jsonl").read_text().splitlines()][:count]
    made = []
    for i in range(0, len(entries), 50):
        part = entries[i:i + 50]
        ids = [v.to(device) for v in coder([films.video_prompt(e["prompt"]) for e in part] + [""])]
        z = sampling.sample(model, ids, args.autocast, seed=i, **settings) / args.factor
        made += [f for v in z.split(5) for f in autoencoder.decode(v.to(args.dtype)).float().clamp(-1, 1)]
    right = {"thing": 0, "motion": 0, "background": 0, "moved": 0}
    moving = 0
    for film, e in zip(made, entries):
        motion = judge.motion(film)
        right["thing"] += films.THINGS[judge.thing(film)] == e["thing"]
        right["background"] += judge.background(film) == e["background"]
        right["motion"] += motion == e["motion"]
        if e["motion"] in films.DIRECTIONS:
            moving += 1
            right["moved"] += motion == e["motion"]
    n = len(made)
    return (f"{settings} thing {right['thing'] / n:.1%} direction {right['moved'] / max(moving, 1):.1%} of {moving}, any motion "
            f"{right['motion'] / n:.1%} background {right['background'] / n:.1%} of {n}"), made


def picture_test(model, autoencoder, coder, args, device, count, **settings):
    """Image to video: how near the first frame is to the picture given."""
    scenes, bank, rng = films.Scenes(args.data), films.load_bank(args.data, device), random.Random(8)
    chosen = [scenes.sample(rng, held_out=True) for _ in range(count)]
    given = films.render(bank, *films.tensors_of(rng, chosen, device), 1)
    with torch.no_grad():
        first = autoencoder.moments(given.to(args.dtype))[0].float() * args.factor
    ids = [v.to(device) for v in coder([films.video_prompt(scenes.prompt(rng, s)) for s in chosen] + [""])]
    z = sampling.sample(model, ids, args.autocast, seed=3, first=first, **settings) / args.factor
    with torch.no_grad():
        made = [f for v in z.split(5) for f in autoencoder.decode(v.to(args.dtype)).float().clamp(-1, 1)]
    judge, values = Judge(device), [psnr(f[0], g[0]) for f, g in zip(made, given)]
    moves = sum(judge.motion(f) == s["motion"] for f, s in zip(made, chosen)) / count
    things = sum(judge.thing(f) == s["thing"] for f, s in zip(made, chosen)) / count
    return f"image to video: first frame psnr {sum(values) / count:.2f} least {min(values):.2f}, motion {moves:.1%}, thing {things:.1%}", made


def train_diffusion(args, group, log):
    device, coder = group.device, Coder(args.data)
    source = args.autoencoder or args.out
    autoencoder = Autoencoder()
    autoencoder.load_state_dict(load(source, "autoencoder"))
    autoencoder.to(device).eval().requires_grad_(False)
    args.factor = json.loads(pathlib.Path(f"{source}/autoencoder.json").read_text())["scaling_factor"]
    choose_convolution(group, args.dtype, log)
    model = Generator(*coder.sizes())
    if args.resume:
        model.load(load(args.resume, "generator"))
    model.to(device)
    group.share(model)
    parameters = list(model.parameters())
    ema = copy.deepcopy(model).eval()
    if args.compile:
        compile_blocks(model, log)
    rate = args.rate or 1.2e-3
    inside = [p for name, p in model.named_parameters() if is_hidden(name, p)]
    chosen = {id(p) for p in inside}
    optimizer = Muon(inside, [p for p in parameters if id(p) not in chosen], rate, weight_decay=0.01, dtype=args.dtype,
                     fused=device.type == "cuda")
    latents = (films.FRAMES - 1) // 4 + 1, films.SIDE // 16, films.SIDE // 16
    tables = networks.rope_tables(TRANSFORMER, networks.TOKENS, *latents, device)
    shift = sampling.flow_shift(latents[1] * latents[2], latents[0])
    clock = Clock(group, args.minutes, rate, args.warmup)
    bank = Bank(args, group, autoencoder, coder, args.bank)
    while bank.filled < args.first:
        bank.add(args.chunk)
    log(f"diffusion {clock.spent()} {bank.filled} films to begin with, flow shift {shift:.3f}, {sum(p.numel() for p in parameters) / 1e6:.1f}M parameters")
    judge = Judge(device)

    def finish(last):
        if group.rank:
            return
        save(ema, args.out, "generator")
        text, made = test_diffusion(ema, autoencoder, coder, judge, args, device, args.tested, steps=args.sweep[0]["steps"], guidance=4.0)
        log(f"diffusion {clock.spent()} {text}")
        if not last:
            return
        write_sheet(f"{args.out}/diffusion.png", made[:24])
        for settings in args.sweep:
            text, _ = test_diffusion(ema, autoencoder, coder, judge, args, device, 2 * args.tested, **settings)
            log(f"at the end {text}")
        for image_guidance in (1.0, 2.0, 3.0):
            text, made = picture_test(ema, autoencoder, coder, args, device, min(50, args.tested), steps=args.sweep[0]["steps"],
                                      guidance=4.0, image_guidance=image_guidance)
            log(f"at the end, image guidance {image_guidance}: {text}")
            if image_guidance == 2.0:
                write_sheet(f"{args.out}/pictures.png", made[:12])

    while clock.part < 1:
        step_rate = clock.tick()
        for g in optimizer.param_groups:
            g["lr"] = step_rate
        if clock.step % args.refresh == 0 and clock.part < 0.93:
            bank.add(args.chunk)
        try:
            loss = diffusion_loss(model, tables, bank.draw(args.batch), shift, args.autocast)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        except Exception:
            if clock.step > 1 or not args.compile:
                raise
            log("compiling failed; going on without\n" + traceback.format_exc())
            drop_compiled(model)
            loss = diffusion_loss(model, tables, bank.draw(args.batch), shift, args.autocast)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        group.mean_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        follow(ema, model, clock.step, 0.9995)
        if clock.step in (1, 2, 20) or clock.every("log", 10):
            log(f"diffusion {clock.spent()} loss {loss.item():.4f} films seen {bank.filled} (more since: {bank.at})")
            if not math.isfinite(loss.item()):
                raise RuntimeError("the loss is not finite")
        if clock.every("save", args.save_seconds) and clock.part < 1:
            group.share(model)  # they are the same already but for what rounding may have done
            finish(False)
    finish(True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=["autoencoder", "diffusion"])
    parser.add_argument("--data", required=True, help="folder of films.py and text.py")
    parser.add_argument("--out", required=True)
    parser.add_argument("--resume", default="", help="folder with weights to begin with")
    parser.add_argument("--autoencoder", default="", help="folder with the autoencoder, if not --out")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=0, help="a GPU's films in a step (8 for the autoencoder, 256)")
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--pictures", type=float, default=0.28, help="until then the autoencoder sees pictures only")
    parser.add_argument("--crops", type=float, default=0.6, help="until then crops of 17 frames, then whole films")
    parser.add_argument("--divergence", type=float, default=1e-3)
    parser.add_argument("--drop", type=float, default=0.1, help="part of the films without text")
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--bank", type=int, default=30000, help="films kept by a GPU")
    parser.add_argument("--first", type=int, default=3072, help="films made before training begins")
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--refresh", type=int, default=3, help="a chunk is added every so many steps")
    parser.add_argument("--tested", type=int, default=50)
    parser.add_argument("--save-seconds", type=float, default=60)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a test of this program: small batches, few films")
    args = parser.parse_args()
    args.sweep = [dict(steps=s, guidance=g) for s, g in ((12, 2.0), (12, 3.0), (12, 4.0), (12, 6.0), (16, 4.0), (20, 4.0))]
    if args.tiny:
        args.bank, args.first, args.chunk, args.tested, args.batch, args.sweep = 8, 2, 2, 2, args.batch or 1, [dict(steps=2, guidance=3.0)]
        films.SIDE, films.FRAMES = 64, 9
    args.batch = args.batch or {"autoencoder": 8, "diffusion": 256}[args.stage]
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
    group = Group(args.device)
    args.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    args.autocast = (lambda: torch.autocast("cuda", torch.bfloat16)) if args.device == "cuda" else contextlib.nullcontext
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    log = Log(args, group)
    torch.manual_seed(1000 * args.seed + group.rank)
    {"autoencoder": train_autoencoder, "diffusion": train_diffusion}[args.stage](args, group, log)
    if group.size > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
