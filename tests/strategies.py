"""Random problems in which every term of the theorem is large enough for an error in it to show."""

from hypothesis import strategies as st

from theory.problem import Problem


@st.composite
def problems(draw: st.DrawFn, max_width: int = 16) -> Problem:
    """Any width, rank, depth, scales, decay and seed, and a step that keeps 30 steps finite.

    Every layer stays below B = max(1.2, 1.2 sigma_1^(1/L)) in norm, roughly, so eta <= 2 / (L B^(2L-2) + lam) descends.
    """
    width = draw(st.integers(3, max_width))
    rank = draw(st.integers(1, (width - 1) // 2))
    depth = draw(st.integers(2, 5))
    spectrum = tuple(sorted(draw(st.lists(st.floats(0.3, 5), min_size=rank, max_size=rank)), reverse=True))
    scales = tuple(draw(st.lists(st.floats(0.2, 1.2), min_size=depth, max_size=depth)))
    decay = draw(st.one_of(st.just(0.0), st.floats(1e-3, 0.5)))
    bound = max(1.2, 1.2 * spectrum[0] ** (1 / depth))
    lr = draw(st.floats(0.1, 0.9)) * 2 / (depth * bound ** (2 * depth - 2) + decay)
    seed = draw(st.integers(0, 2**16))
    return Problem(width, spectrum, depth, scales, lr, decay, seed)
