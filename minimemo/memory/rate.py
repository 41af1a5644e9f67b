"""What a memory of a profile will weigh, before anything is coded.

Components of keys and values are close to Laplacian (that of most transform coefficients; Lam and Goodman, IEEE Trans.
Image Processing 9(10), 2000); the entropy of a Laplacian number rounded to a grid has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minimemo.memory.profile import Profile, Transform
from minimemo.memory.transform import FINER, TAIL

ABOVE_ENTROPY = 1.05  # what streams of bytes under zstd take, times the entropy of their symbols
VALUE_STEP = 1.4  # times the keys' step: KL at 31x is 0.027 with it, 0.034 with 2, 0.048 with 2.8
OVERHEAD = 4.0  # bytes a token: ids, checksums, index
LARGEST_STEPS = 1e5, 1e5
HEADER = 600.0  # bytes of a file: header and footer


def entropy(spread: np.ndarray) -> np.ndarray:
    """Bits a symbol of Laplacian numbers with standard deviations `spread`, in steps, rounded to whole steps."""
    decay = np.sqrt(2.0) / np.maximum(spread, 1e-3)  # a step's worth of it
    nonzero, next_one = np.exp(-decay / 2), np.exp(-decay)
    # which symbols are zero; of the others a sign and, geometric, how far out
    return _binary(nonzero) + nonzero * (1 + _binary(next_one) / (1 - next_one))


def step_for(halves: Sequence[Transform], bits: float) -> float:
    """The step at which the components of all `halves` take about `bits` a token together."""
    spread = np.concatenate([half.deviation.double().numpy() for half in halves])
    return _where_it_falls_to(bits, lambda step: float(entropy(spread / step).sum()))


def steps_for(profile: Profile, size: float) -> tuple[float, float]:
    """Steps of keys and values at which a memory has about `size` bytes a token."""
    return _both(_where_it_falls_to(size, lambda step: bytes_per_token(profile, step, VALUE_STEP * step)))


def steps_for_memory(profile: Profile, size: float, tokens: int) -> tuple[float, float]:
    """Steps of keys and values at which `memory_bytes` is about `size`."""
    return _both(_where_it_falls_to(size, lambda step: memory_bytes(profile, step, VALUE_STEP * step, tokens)))


def memory_bytes(profile: Profile, key_step: float, value_step: float, tokens: int) -> float:
    """Expected of a whole memory.bin of `tokens` coded tokens: the last ones take more (klt.TAIL), which shows in a
    short memory."""
    near = min(TAIL, tokens)
    finer = bytes_per_token(profile, key_step / FINER, value_step / FINER)
    return HEADER + (tokens - near) * bytes_per_token(profile, key_step, value_step) + near * finer


def _both(key_step: float) -> tuple[float, float]:
    return float(f"{key_step:.6g}"), float(f"{VALUE_STEP * key_step:.6g}")


def _where_it_falls_to(value: float, falling: Callable[[float], float]) -> float:
    low, high = -46.0, 46.0  # logarithms
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(float(np.exp(middle))) > value else (low, middle)
    return float(np.exp(high))


def bytes_per_token(profile: Profile, key_step: float, value_step: float) -> float:
    """Expected of a document like those that the profile was made from, everything in memory.bin counted."""
    bits = sum(
        float(entropy(half.deviation.double().numpy() / step).sum())
        for kind, step in ((profile.keys, key_step), (profile.values, value_step))
        for half in kind
    )
    return bits / 8 * ABOVE_ENTROPY + OVERHEAD


def _binary(p: np.ndarray) -> np.ndarray:
    """Entropy of a choice with probability p, in bits."""
    inside = np.clip(p, 1e-15, 1 - 1e-15)
    return -inside * np.log2(inside) - (1 - inside) * np.log2(1 - inside)
