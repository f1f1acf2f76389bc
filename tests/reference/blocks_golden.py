"""Golden blocks for slmc-blocks, from gguf-py (the reference implementation of ggml's layouts in numpy).

    blocks_golden.py write FOLDER       write blocks.bin, the committed golden file
    blocks_golden.py hashes FILE.gguf   print `sha256 type name` of each tensor, dequantized to f32

blocks.bin is a run of records, all little-endian:
    kind u8 (0 decode, 1 encode) | name length u8 | name | n_weights u32 | n_bytes u32 | bytes | f32 weights
A decode record says: these bytes decode to these weights. An encode record says: these weights encode to these
bytes. NaN is written as one bit pattern, since payloads are not part of the layout.

Needs numpy and gguf 0.19.
"""

import hashlib
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

DECODED = {
    "f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16,
    "q4_0": Type.Q4_0, "q4_1": Type.Q4_1, "q5_0": Type.Q5_0, "q5_1": Type.Q5_1, "q8_0": Type.Q8_0,
    "q2_k": Type.Q2_K, "q3_k": Type.Q3_K, "q4_k": Type.Q4_K, "q5_k": Type.Q5_K, "q6_k": Type.Q6_K,
    "iq4_nl": Type.IQ4_NL, "iq4_xs": Type.IQ4_XS, "mxfp4": Type.MXFP4,
}
ENCODED = ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
SEED = 20240229


def canonical(weights: np.ndarray) -> np.ndarray:
    weights = weights.astype(np.float32).ravel().copy()
    weights[np.isnan(weights)] = np.nan
    return weights


def record(kind: int, name: str, packed: np.ndarray, weights: np.ndarray) -> bytes:
    packed = np.ascontiguousarray(packed).view(np.uint8).ravel()
    head = struct.pack("<BB", kind, len(name)) + name.encode()
    return head + struct.pack("<II", weights.size, packed.size) + packed.tobytes() + canonical(weights).tobytes()


def hard_weights(rng: np.random.Generator) -> np.ndarray:
    """Blocks of 32 that real tensors hold, and those that break encoders."""
    blocks = [rng.normal(0, scale, 32) for scale in (1e-6, 1e-3, 0.02, 0.1, 1.0, 30.0)]
    blocks += [rng.standard_t(3, 32) for _ in range(10)]
    blocks.append(np.zeros(32))
    blocks.append(np.full(32, 0.25))
    blocks.append(np.full(32, -0.25))
    blocks.append(np.abs(rng.normal(0, 1, 32)))
    blocks.append(-np.abs(rng.normal(0, 1, 32)))
    spike = np.zeros(32)
    spike[17] = -5.0
    blocks.append(spike)
    # Equal magnitudes of both signs: the first one gives the scale its sign.
    blocks.append(np.where(np.arange(32) % 3 == 0, 1.5, -1.5))
    blocks.append(np.where(np.arange(32) % 3 == 0, -1.5, 1.5))
    # Numbers that lie on the rounding boundaries of 4, 5 and 8 bits.
    blocks.append((np.arange(32) - 16) / 4)
    blocks.append((np.arange(32) - 16) / 2 + 0.5)
    blocks.append(np.concatenate([[127.0], np.arange(31) + 0.5]))
    blocks.append(np.concatenate([[-127.0], -np.arange(31) - 0.5]))
    # Scales that are subnormal in f16, and the largest that it holds.
    blocks.append(rng.normal(0, 1e-6, 32))
    blocks.append(rng.uniform(-60000, 60000, 32))
    return np.concatenate(blocks).astype(np.float32)


def float_edges() -> np.ndarray:
    """Numbers where narrower floats round, underflow or stay special."""
    around = np.array([1.0, 2.0**-14, 2.0**-24, 2.0**-25, 65504.0, 0.1, 3.3], dtype=np.float32).view(np.uint32)
    steps = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001], dtype=np.uint32)
    near = (around[:, None] + steps[None, :]).ravel().view(np.float32)
    near = near[np.abs(near) < 65520]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype=np.float32)
    return np.concatenate([near, -near, special]).astype(np.float32)


def golden() -> bytes:
    rng = np.random.default_rng(SEED)
    records = []
    for name, qtype in DECODED.items():
        block_weights, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
        n_blocks = {1: 256, 32: 24, 256: 4}[block_weights]
        packed = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
        if name == "mxfp4":
            packed[:6, 0] = [0, 1, 2, 253, 254, 255]  # the ends of the shared exponent's range
        with np.errstate(all="ignore"):
            weights = quants.dequantize(packed, qtype)
        records.append(record(0, name, packed, weights))
    for name in ENCODED:
        weights = hard_weights(rng)
        if gguf.GGML_QUANT_SIZES[DECODED[name]][0] == 1:
            weights = float_edges()
        packed = quants.quantize(weights.reshape(1, -1), DECODED[name])
        records.append(record(1, name, packed, weights))
    return b"".join(records)


def hashes(path: str) -> None:
    for tensor in gguf.GGUFReader(path).tensors:
        with np.errstate(all="ignore"):
            weights = canonical(quants.dequantize(tensor.data, tensor.tensor_type))
        print(hashlib.sha256(weights.tobytes()).hexdigest(), tensor.tensor_type.name.lower(), tensor.name)


def main() -> None:
    match sys.argv[1:]:
        case ["write", folder]:
            data = golden()
            (Path(folder) / "blocks.bin").write_bytes(data)
            print(len(data), "bytes,", "sha256", hashlib.sha256(data).hexdigest())
        case ["hashes", path]:
            hashes(path)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
