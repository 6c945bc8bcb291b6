"""GaLore, Fira, APOLLO and Frugal as their papers and their authors' code say it, slowly and in float64.

Nothing is shared with lowdim.optimizers: projections are dense d x d matrices, residuals are formed, norms are taken of
what they are norms of.
"""

import numpy as np


def side_of(shape: tuple[int, int], proj_type: str) -> str:
    rows, columns = shape
    short = "right" if rows >= columns else "left"
    long = "left" if rows >= columns else "right"
    return {"std": short, "reverse_std": long, "left": "left", "right": "right"}[proj_type]


class Reference:
    """One weight. `rule` is galore, fira-code, fira-paper, apollo, apollo-mini or frugal."""

    def __init__(self, weight, rank, gap, scale, proj_type="std", rule="galore", **changes):
        self.weight, self.rank, self.gap, self.scale, self.rule = weight.copy(), rank, gap, scale, rule
        self.side = side_of(weight.shape, proj_type)
        self.lr, self.betas, self.eps, self.decay = 0.05, (0.9, 0.99), 1e-6, 0.1
        self.authors, self.moments, self.sign_scale, self.bases = False, "keep", 1.0, None
        self.corrects = True
        self.__dict__.update(changes)
        self.step, self.basis, self.limit = 0, None, None

    def update(self, gradient):
        g = gradient if self.side == "left" else gradient.T
        if self.step % self.gap == 0:
            self.refresh(g)
        core = self.basis.T @ g
        self.step += 1
        beta1, beta2 = self.betas
        self.first = beta1 * self.first + (1 - beta1) * core
        self.second = beta2 * self.second + (1 - beta2) * core**2
        root, corrected = (np.sqrt(1 - beta2**self.step), 1 - beta1**self.step) if self.corrects else (1.0, 1.0)
        if self.authors:
            plain = self.first / (np.sqrt(self.second) + self.eps)
        else:
            plain = self.first / (np.sqrt(self.second) + self.eps * root)
        direction = self.rule_of(g, core, plain, root / corrected)
        change = self.lr * (direction if self.side == "left" else direction.T)
        shrink = 1 - self.lr * self.decay
        self.weight = (self.weight - change) * shrink if self.authors else self.weight * shrink - change

    def refresh(self, g):
        before = self.basis
        self.basis = np.linalg.svd(g)[0][:, : self.rank] if self.bases is None else self.bases(self.step)
        if before is None or self.moments == "reset":
            self.first, self.second = np.zeros((2, self.rank, g.shape[1]))
            self.step = 0 if before is None else self.step
        elif self.moments == "rotate":
            turn = self.basis.T @ before
            self.first, self.second = turn @ self.first, turn**2 @ self.second

    def rule_of(self, g, core, plain, correction):
        """The whole step over lr. `plain` is Adam's direction without its bias correction."""
        inside = self.scale * self.basis @ plain * correction
        if self.rule == "galore":
            return inside
        if self.rule == "frugal":
            rest = g - self.basis @ core
            rest[:, np.linalg.norm(rest, axis=0) < 1e-13 * np.linalg.norm(g, axis=0)] = 0  # rounding has no sign
            return inside + self.sign_scale * np.sign(rest)
        axis = None if self.rule == "apollo-mini" else 0
        factors = np.linalg.norm(plain, axis=axis) / (np.linalg.norm(core, axis=axis) + 1e-8)
        if self.rule == "fira-paper":
            rest = (g - self.basis @ core) * factors * correction
            return inside + self.scale * self.limited(rest)
        if self.rule == "fira-code":
            rest = (g - self.scale * self.basis @ core) * factors
            return inside + self.limited(rest) * correction
        return np.sqrt(self.scale) * self.limited(g * factors) * correction

    def limited(self, rest):
        norm = np.linalg.norm(rest)
        factor = 1.0 if self.limit is None else max(norm / (self.limit + 1e-8), 1.01) / 1.01
        self.limit = norm / factor
        return rest / factor
