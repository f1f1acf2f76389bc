"""Llama 3's rotary factors as llama.cpp's converter and transformers compute them, in f64 with numpy only.

transformers `modeling_rope_utils._compute_llama3_parameters`: a frequency whose wavelength is below
original / high stays, one above original / low is divided by `factor`, between them the two are blended.
Prints the divisors as JSON: the content of crates/slmc-interop/tests/golden/rope_llama3.json.

usage: python tests/reference/interop_rope.py > crates/slmc-interop/tests/golden/rope_llama3.json
"""
import json

import numpy as np


def divisors(theta, d_head, factor, low, high, original):
    inv_freq = theta ** -(np.arange(0, d_head, 2) / d_head)
    wavelength = 2 * np.pi / inv_freq
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = np.where(wavelength > original / low, inv_freq / factor, inv_freq)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    scaled = np.where(between, blended, scaled)
    return (inv_freq / scaled).tolist()


settings = {
    'Llama 3.1 8B': dict(theta=500000.0, d_head=128, factor=8.0, low=1.0, high=4.0, original=8192),
    'Llama 3.2 1B': dict(theta=500000.0, d_head=64, factor=32.0, low=1.0, high=4.0, original=8192),
    'Llama 3.2 3B': dict(theta=500000.0, d_head=128, factor=32.0, low=1.0, high=4.0, original=8192),
}
print(json.dumps([dict(s, name=n, divisors=divisors(**s)) for n, s in settings.items()], indent=1))
