"""Every layer of a linear classifier trained on whitened data sets the classes apart by the same, predicted factor.

After Yaras et al. 2023 (arXiv 2306.01154): K = 5 classes of n = 10 samples, X X^T = I_50, layers of 50 x 50 and a last
one of 5 x 50, eps = 0.5, step 1 on the mean over the K N = 250 numbers of Y, that is eta = 1 / 250 on ours (in (c)
L = 4 and step 10, eta = 1 / 25), until 1/2 the mean square is below 1e-6, looked at every 100 steps.

The straight line is a law for linear networks with an orthogonal start; theory.collapse proves it. ReLU has none: its
first layer separates less than the next ones, and where the last one ends depends on when training stops. Gaussian and
uniform starts have no invariant block and theory no exact number; their curves are nearly straight, and lower.
"""

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from sims.classifier import Activation, descent, loss_value, separations, whitened
from sims.dynamics import Weights
from sims.run import observe
from sims.start import STARTS
from sims.sweep import Sweep, in_process
from theory.collapse import separation, separation_factor, separation_law

Series = Float64[np.ndarray, " depth"]
COLOURS = (style.BLUE, style.ORANGE, style.GREEN)


@dataclass(frozen=True)
class Network:
    """A classifier, its data and how long it trains."""

    classes: int = 5
    """K, and the rows of the last layer."""
    samples: int = 10
    """n samples a class; inputs and hidden layers are K n wide."""
    depth: int = 8
    """L, the number of layers."""
    activation: Activation = "linear"
    """linear or relu."""
    start: str = "orthogonal"
    """orthogonal, gaussian or uniform; of equal norms."""
    scale: float = 0.5
    """eps."""
    step: float = 1.0
    """Step on the mean loss; eta = step / (K N)."""
    tolerance: float = 1e-6
    """Stop when the mean loss is below."""
    steps: int = 60_000
    """At most so many steps."""
    every: int = 100
    """Look after so many."""
    seed: int = 0
    """Seeds data and start."""

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start = {self.start!r}: take one of {', '.join(STARTS)}")
        if not 0 < self.step < np.inf or self.tolerance <= 0:
            raise ValueError(f"step = {self.step}, tolerance = {self.tolerance}: take finite numbers > 0")
        separation_law(self.classes, self.samples, self.depth, self.scale)  # refuses sizes that the law does not cover

    @property
    def law(self) -> Series:
        """The straight line."""
        return separation_law(self.classes, self.samples, self.depth, self.scale)

    @property
    def least(self) -> Series:
        """What the law times `separation_factor` promises as the least."""
        return self.law * separation_factor(self.classes, self.samples, self.depth, self.scale)


def train(network: Network) -> dict[str, np.ndarray]:
    """Train it: `steps` taken, the mean `loss`, D_0, ..., D_{L-1} `measured`, and `predicted` if theory has them."""
    rng, width = np.random.default_rng(network.seed), network.classes * network.samples
    data = whitened(network.classes, network.samples, width, rng)
    dims = (width,) * network.depth + (network.classes,)
    weights = STARTS[network.start](dims, (network.scale,) * network.depth, rng)
    count = network.classes * width  # K N
    lr = network.step / count

    def measure(found: Weights) -> tuple[float, ...]:
        return (loss_value(found, data, network.activation) / count,)

    step, label = descent(data, lr, network.activation), f"{network.activation}, L = {network.depth}"
    run = observe(step, weights, network.steps, network.every, measure, label, lambda v: v[0] < network.tolerance)
    result = {
        "steps": run.steps[-1:].astype(float),
        "loss": run.values[-1],
        "measured": separations(run.state, data, network.activation),
    }
    if network.activation == "linear" and network.start == "orthogonal":
        exact = separation(weights, data.inputs, data.labels, lr)
        result["predicted"] = next(islice(exact, int(run.steps[-1]), None))
    return result


@dataclass(frozen=True)
class Spec:
    """The networks of the four panels."""

    network: Network = Network()
    """What they have in common, and the one whose start (d) changes."""
    depths: tuple[int, ...] = (6, 8, 10)
    """(a): L of the linear networks."""
    relu_depths: tuple[int, ...] = (6, 8)
    """(b): L of the ReLU networks."""
    longer: float = 0.2
    """(b): train the last of these once more, until its loss is so many times the tolerance."""
    scales: tuple[float, ...] = (0.5, 0.25, 0.125)
    """(c): eps."""
    shallow: Network = Network(depth=4, step=10.0)
    """(c): the network whose scale changes."""

    def quick(self) -> "Spec":
        """The same for three classes of six samples."""
        network = replace(self.network, classes=3, samples=6, depth=6)
        shallow = replace(self.shallow, classes=3, samples=6, step=3.0)
        return replace(self, network=network, shallow=shallow, depths=(4, 6), relu_depths=(4, 6))

    def full(self) -> "Spec":
        """The paper's: ReLU with ten layers as well, and as many steps as it takes; about five CPU minutes."""
        return replace(self, network=replace(self.network, steps=500_000), relu_depths=(6, 8, 10))


@dataclass(frozen=True, eq=False)
class Curve:
    """D_0, ..., D_{L-1} of one trained network, and its mean loss at the end."""

    network: Network
    loss: float
    measured: Series
    predicted: Series
    """What theory says, exactly; NaN if it has nothing to say."""

    @property
    def fitted(self) -> Series:
        """The straight line through log D_l, by least squares."""
        layers, logs = np.arange(len(self.measured)), np.log(self.measured)
        return np.exp(np.polyval(np.polyfit(layers, logs, 1), layers))

    @property
    def bend(self) -> float:
        """The largest distance from that line, in decades."""
        return float(np.abs(np.log10(self.measured / self.fitted)).max())


@dataclass(frozen=True, eq=False)
class Data:
    """The curves of the panels."""

    spec: Spec
    linear: tuple[Curve, ...]
    relu: tuple[Curve, ...]
    scaled: tuple[Curve, ...]
    started: tuple[Curve, ...]


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Train all networks."""
    relu = [replace(spec.network, depth=depth, activation="relu") for depth in spec.relu_depths]
    grids = [
        [replace(spec.network, depth=depth) for depth in spec.depths],
        [*relu, replace(relu[-1], tolerance=spec.longer * spec.network.tolerance)],
        [replace(spec.shallow, scale=scale) for scale in spec.scales],
        [replace(spec.network, start=start) for start in STARTS],
    ]
    found = iter(sweep(train, [network for grid in grids for network in grid]))
    return Data(spec, *(tuple(_curve(network, next(found)) for network in grid) for grid in grids))


def _curve(network: Network, result: dict[str, np.ndarray]) -> Curve:
    measured = result["measured"]
    return Curve(network, float(result["loss"][0]), measured, result.get("predicted", measured * np.nan))


def check(data: Data) -> list[Claim]:
    """Linear: exact, inside the proven bounds, straight. ReLU and other starts: what was found, with room for seeds.

    Exactness: rounding, 1e-16 a step over up to 1e4 steps: 1e-11. The bounds are those of the gradient flow; a step of
    a few per cent of the stability limit moves D_l by less than they leave. Straight within 0.02 decades: 5 %.
    """
    exact, orthogonal, others = (*data.linear, *data.scaled), data.started[0], data.started[1:]
    *relu, longer = data.relu
    claims = [
        _worst("mean loss / tolerance", [c.loss / c.network.tolerance for c in (*exact, *data.started, *data.relu)], 1),
        _worst("linear: |D_l / predicted - 1|", [c.measured / c.predicted - 1 for c in (*exact, orthogonal)], 1e-11),
        _worst("linear: D_l / law, l >= 1", [(c.measured / c.network.law)[1:] for c in exact], 1),
        _worst("linear: proven least D_l / D_l, l >= 1", [(c.network.least / c.measured)[1:] for c in exact], 1),
        _worst("linear: distance of log10 D_l from a straight line", [c.bend for c in exact], 0.02),
        _worst("gaussian, uniform: distance of log10 D_l from a straight line", [c.bend for c in others], 0.2),
    ]
    ends, scales = [c.measured[-1] for c in data.scaled], [c.network.scale for c in data.scaled]
    order = np.polyfit(np.log(scales), np.log(ends), 1)[0] / (2 * data.spec.shallow.depth - 2)
    lower = [c.measured[-1] / orthogonal.measured[-1] for c in others]
    factors = np.array([(c.measured[1:4] / c.measured[:3]) / (c.network.law[1:4] / c.network.law[:3]) for c in relu])
    last, shorter, law = data.linear[1].measured[-1], relu[-1].measured[-1], data.linear[1].network.law[-1]
    return [
        *claims,
        Claim("linear, second depth: last D", last, at_least=0.7 * law, at_most=law),
        Claim("relu, last depth: last D", shorter, at_least=1e-3 * law, at_most=law),
        Claim("linear: order of the last D in eps / (2 L - 2)", order, at_least=0.97, at_most=1.03),
        Claim("gaussian, uniform: last D / that of orthogonal, least", np.min(lower), at_least=0.05),
        Claim("gaussian, uniform: last D / that of orthogonal, most", np.max(lower), at_most=1),
        Claim("relu: D_1 / D_0 over D_3 / D_2, least", (factors[:, 0] / factors[:, 2]).min(), at_least=1.3),
        Claim("relu: D_3 / D_2 over the linear law's, most", factors[:, 2].max(), at_most=0.85),
        Claim("relu: distance of log10 D_l from a straight line, least", np.min([c.bend for c in relu]), at_least=0.05),
        Claim("relu: last D, trained longer / before", longer.measured[-1] / shorter, at_least=0.05, at_most=0.98),
    ]


def _worst(text: str, found: list[float] | list[Series], bound: float) -> Claim:
    return Claim(f"{text}, max", float(np.max([np.abs(value).max() for value in found])), at_most=bound)


def draw(data: Data) -> Figure:
    """Measured as points; theory, or the straight line where there is none, as lines."""
    figure, axes = style.panels(2, 2, height=2.2)
    shown = (data.linear, "depth"), (data.relu, "depth"), (data.scaled, "scale"), (data.started, "start")
    for axis, (curves, field) in zip(axes, shown, strict=True):
        for curve, colour in zip(curves, COLOURS, strict=False):
            _draw_curve(axis, curve, colour, field, longer=curve is data.relu[-1])
        axis.set_xticks(range(curves[-1].network.depth))
        axis.set(xlabel="layer $l$", ylabel=r"$D_l = \mathrm{tr}\,\Sigma_W / \mathrm{tr}\,\Sigma_B$")
    axes[0].semilogy([], [], "-", color=style.BLACK, lw=0.8, label="theory, exact")
    axes[0].semilogy([], [], ":", color=style.BLACK, lw=0.8, label="theory, law")
    axes[1].semilogy([], [], "--", color=style.BLACK, lw=0.8, label="best straight line")
    for axis in axes:
        axis.legend(loc="lower left")
    style.title(axes, "linear", "ReLU", rf"linear, $L = {data.spec.shallow.depth}$", "linear, other starts")
    return figure


def _draw_curve(axis: Axes, curve: Curve, colour: str, field: str, longer: bool) -> None:
    layers, value = range(len(curve.measured)), getattr(curve.network, field)
    label = {"depth": f"$L = {value}$", "scale": rf"$\epsilon = {value}$", "start": f"{value}"}[field]
    if longer:
        axis.semilogy(layers, curve.measured, "x", color=colour, label=f"{label}, longer")
        return
    axis.semilogy(layers, curve.measured, "o", color=colour, label=label)
    if np.isfinite(curve.predicted).all():
        axis.semilogy(layers, curve.predicted, "-", color=colour, lw=0.8)
        axis.semilogy(layers, curve.network.law, ":", color=style.BLACK, lw=0.8)
    else:
        axis.semilogy(layers, curve.fitted, "--", color=colour, lw=0.8)
