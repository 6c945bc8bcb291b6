"""Random problems in which every term of the theorem is large enough for an error in it to show."""

from dataclasses import replace

from hypothesis import strategies as st

from theory.problem import Problem


@st.composite
def problems(draw: st.DrawFn, max_width: int = 16) -> Problem:
    """Any width, rank, depth, scales, decay, momentum, seed, and a step of 0.05 to 0.9 of the limit."""
    width = draw(st.integers(3, max_width))
    rank = draw(st.integers(1, (width - 1) // 2))
    depth = draw(st.integers(2, 5))
    spectrum = tuple(sorted(draw(st.lists(st.floats(0.3, 5), min_size=rank, max_size=rank)), reverse=True))
    scales = tuple(draw(st.lists(st.floats(0.2, 1.2), min_size=depth, max_size=depth)))
    decay = draw(st.one_of(st.just(0.0), st.floats(1e-3, 0.5)))
    beta = draw(st.one_of(st.just(0.0), st.floats(0.1, 0.9)))
    problem = Problem(width, spectrum, depth, scales, 1e-9, decay, beta, seed=draw(st.integers(0, 2**16)))
    return replace(problem, lr=draw(st.floats(0.05, 0.9)) * problem.stable_lr)
