"""llama.cpp's quantizations: which there are, who can write them, and what they ask of a model."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Quantization:
    """One kind of GGUF file."""

    file_type: int
    """llama.cpp's number for it."""
    block: int
    """Weights that share a scale: what the width of every matrix must be a multiple of."""
    bits: float
    """About how many bits a weight takes."""
    numpy: bool = False
    """Written without a compiler."""
    needs_imatrix: bool = False


# File types are numbers of `llama_ftype` in llama.h; mixed types (…_M, …_L) store some matrices in
# more bits than others, hence the odd averages.
QUANTIZATIONS: Final = {
    "F32": Quantization(0, 1, 32, numpy=True),
    "F16": Quantization(1, 1, 16, numpy=True),
    "BF16": Quantization(32, 1, 16, numpy=True),
    "Q8_0": Quantization(7, 32, 8.5, numpy=True),
    "Q5_1": Quantization(9, 32, 6, numpy=True),
    "Q5_0": Quantization(8, 32, 5.5, numpy=True),
    "Q4_1": Quantization(3, 32, 5, numpy=True),
    "Q4_0": Quantization(2, 32, 4.5, numpy=True),
    "Q6_K": Quantization(18, 256, 6.6),
    "Q5_K_M": Quantization(17, 256, 5.7),
    "Q5_K_S": Quantization(16, 256, 5.5),
    "Q4_K_M": Quantization(15, 256, 4.9),
    "Q4_K_S": Quantization(14, 256, 4.6),
    "Q3_K_L": Quantization(13, 256, 4.3),
    "Q3_K_M": Quantization(12, 256, 3.9),
    "Q3_K_S": Quantization(11, 256, 3.5),
    "Q2_K": Quantization(10, 256, 3.2),
    "Q2_K_S": Quantization(21, 256, 3.0, needs_imatrix=True),
    "IQ4_NL": Quantization(25, 32, 4.6),
    "IQ4_XS": Quantization(30, 256, 4.4),
    "IQ3_M": Quantization(27, 256, 3.7),
    "IQ3_S": Quantization(26, 256, 3.5),
    "IQ3_XS": Quantization(22, 256, 3.3, needs_imatrix=True),
    "IQ3_XXS": Quantization(23, 256, 3.1, needs_imatrix=True),
    "IQ2_M": Quantization(29, 256, 2.7, needs_imatrix=True),
    "IQ2_S": Quantization(28, 256, 2.5, needs_imatrix=True),
    "IQ2_XS": Quantization(20, 256, 2.4, needs_imatrix=True),
    "IQ2_XXS": Quantization(19, 256, 2.1, needs_imatrix=True),
}
WHOLE: Final = frozenset({"F32", "F16", "BF16", "Q8_0"})
"""So close to the weights that an importance matrix has nothing to weigh."""
