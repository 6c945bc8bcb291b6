"""The PEFT that the tuners are written for; another one is refused before anything of it is imported.

What they build on (quantization backends, state dicts read off the layers) is new in 0.21 and internal to PEFT.
"""

from importlib.metadata import PackageNotFoundError, version

SUPPORTED = (0, 21)


def check(installed: str | None) -> None:
    """Raise ImportError unless `installed` is a version of PEFT 0.21, or None if there is none."""
    if installed is None:
        raise ImportError("lowdim.adapters are PEFT tuners, and PEFT is not installed: pip install 'lowdim[peft]'")
    if tuple(installed.split(".")[:2]) != tuple(map(str, SUPPORTED)):
        raise ImportError(
            f"PEFT {installed} is installed, and lowdim.adapters are written for >=0.21,<0.22: "
            "pip install 'peft>=0.21,<0.22', or take a version of lowdim for your PEFT"
        )


try:
    check(version("peft"))
except PackageNotFoundError:
    check(None)
