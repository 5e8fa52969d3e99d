"""Muon ("Muon: An optimizer for hidden layers in neural networks", Keller Jordan, 2024) for matrices and convolutions,
AdamW for the rest, with one learning rate for both: the update of a matrix is scaled to what AdamW's would be."""
import torch


def orthogonal(g, steps=5):
    """[batch, rows, columns] -> about the nearest matrices whose singular values are 1, by the quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """`matrices` and `others` are lists of parameters."""

    def __init__(self, matrices, others, lr, betas=(0.9, 0.98), momentum=0.95, weight_decay=0.0, dtype=torch.bfloat16, fused=False):
        super().__init__([{"params": matrices}], dict(lr=lr))
        self.momentum, self.weight_decay, self.dtype = momentum, weight_decay, dtype
        self.adam = torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=0.0, fused=fused)
        self.shapes = {}
        for p in matrices:
            self.shapes.setdefault((p.shape[0], p[0].numel()), []).append(p)
            self.state[p]["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self):
        rate = self.param_groups[0]["lr"]
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for (rows, columns), parameters in self.shapes.items():
            gradients = [p.grad for p in parameters]
            buffers = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
            ahead = torch._foreach_lerp(gradients, buffers, self.momentum)
            update = orthogonal(torch.stack([g.reshape(rows, columns) for g in ahead]).to(self.dtype))
            updates = [u.view_as(p).to(p.dtype) for u, p in zip(update, parameters)]
            if self.weight_decay:
                torch._foreach_mul_(parameters, 1 - rate * self.weight_decay)
            torch._foreach_add_(parameters, updates, alpha=-rate * 0.2 * max(rows, columns) ** 0.5)

    def forget(self):
        """Begins anew, after the parameters have been changed from outside."""
        self.adam.state.clear()
        for parameters in self.shapes.values():
            for p in parameters:
                self.state[p]["momentum"].zero_()

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        self.adam.zero_grad(set_to_none)
