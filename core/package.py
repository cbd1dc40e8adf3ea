"""Where Weighbridge's own files lie."""

from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parents[1]
"""The folder of our packages and their data: `weighbridge/` where it is installed, the root of a
checkout.
"""
