"""Where Weighbridge's own files lie."""

from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parents[1]
"""The folder of our packages and their data: `weighbridge/` where it is installed, else the root
of a checkout.
"""
CHECKOUT: Final = PACKAGE if (PACKAGE / "pyproject.toml").exists() else None
"""The root of the checkout that this runs from, with tests and benchmarks; None where installed."""
