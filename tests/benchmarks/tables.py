"""How the results are printed."""

from rich.markup import escape
from rich.table import Table

WORDS = ("call", "peer", "what")


def table(title: str, *headings: str) -> Table:
    """Words to the left, numbers to the right."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        made.add_column(escape(heading), justify="left" if heading in WORDS else "right")
    return made


def digits(number: float) -> str:
    """Three of them that count, and no exponent."""
    return f"{float(f'{number:.3g}'):.12g}"
