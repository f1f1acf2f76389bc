"""GPTQ, AWQ and compressed-tensors, from the definitions of the programs that made them; numpy only.

    packed_layouts.py write crates/slmc-interop/tests/golden/packed.json
    packed_layouts.py check PACKED_FOLDER FLOAT_FOLDER

`write` makes random matrices and packs them as each program's own packing does, word by word; `check` unpacks a
folder that slmc wrote and compares every weight with a float folder's (safetensors, f32), bit for bit.

Definitions followed:
  GPTQ: GPTQModel `nn_modules/qlinear` and `utils/model.py` (`pack`; `convert_gptq_v1_to_v2_format` adds one to every
    zero point), bits 2, 4 and 8
  AWQ: AutoAWQ `modules/linear/gemm.py` (`from_linear`) and `utils/packing_utils.py` (AWQ_REVERSE_ORDER)
  compressed-tensors: `compressors/quantized_compressors/pack_quantized.py` (`pack_to_int32`, `unpack_from_int32`)
"""

import json
import pathlib
import sys

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
AWQ_REVERSE_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


# --- unpacking: tensors to weights [out, in], as the programs' own dequantization computes them


def rows_of_words(words, bits):
    """[rows, words] to [rows, words * levels a word], low bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    levels = (words.view(np.uint32)[:, :, None] >> shifts[None, None, :]) & ((1 << bits) - 1)
    return levels.reshape(words.shape[0], -1).astype(np.int64)


def columns_of_words(words, bits):
    """[words, columns] to [words * levels a word, columns], low bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    levels = (words.view(np.uint32)[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
    return levels.reshape(-1, words.shape[1]).astype(np.int64)


def unpack_gptq(tensors, bits, v2):
    levels = columns_of_words(tensors["qweight"], bits)
    zeros = rows_of_words(tensors["qzeros"], bits) + (0 if v2 else 1)
    group = tensors["g_idx"]
    scales = tensors["scales"].astype(np.float32)
    return (scales[group] * (levels - zeros[group]).astype(np.float32)).T


def unpack_awq(tensors, group_size):
    def unpack(words):
        levels = rows_of_words(words, 4)
        order = np.arange(levels.shape[1]).reshape(-1, 8)[:, AWQ_REVERSE_ORDER].reshape(-1)
        return levels[:, order]

    levels, zeros = unpack(tensors["qweight"]), unpack(tensors["qzeros"])
    scales = tensors["scales"].astype(np.float32).repeat(group_size, axis=0)
    return ((levels - zeros.repeat(group_size, axis=0)).astype(np.float32) * scales).T


def unpack_compressed(tensors, bits):
    rows, columns = (int(n) for n in tensors["weight_shape"])
    half = 1 << (bits - 1)
    levels = rows_of_words(tensors["weight_packed"], bits)[:, :columns] - half
    scale = tensors["weight_scale"].astype(np.float32)
    group_size = columns // scale.shape[1]
    zeros = np.zeros(scale.shape, np.int64)
    if "weight_zero_point" in tensors:
        zeros = columns_of_words(tensors["weight_zero_point"], bits)[:rows] - half
    spread = lambda x: x.repeat(group_size, axis=1)
    return (levels - spread(zeros)).astype(np.float32) * spread(scale)


# --- packing, as the programs do it


def pack_gptq(levels, scales, zeros, g_idx, bits, v2):
    intweight = levels.T.astype(np.uint32)
    n = 32 // bits
    qweight = np.zeros((intweight.shape[0] // n, intweight.shape[1]), np.uint32)
    for row in range(qweight.shape[0]):
        for j in range(n):
            qweight[row] |= intweight[row * n + j] << np.uint32(bits * j)
    stored = (zeros.T.astype(np.int64) - (0 if v2 else 1)).astype(np.uint32)
    qzeros = np.zeros((stored.shape[0], stored.shape[1] // n), np.uint32)
    for column in range(qzeros.shape[1]):
        for j in range(n):
            qzeros[:, column] |= stored[:, column * n + j] << np.uint32(bits * j)
    return {
        "qweight": qweight.view(np.int32),
        "qzeros": qzeros.view(np.int32),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": g_idx.astype(np.int32),
    }


def pack_awq(levels, scales, zeros):
    def pack(matrix):
        words = np.zeros((matrix.shape[0], matrix.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for i in range(8):
                words[:, column] |= matrix[:, column * 8 + AWQ_ORDER[i]].astype(np.uint32) << np.uint32(i * 4)
        return words.view(np.int32)

    return {"qweight": pack(levels.T), "qzeros": pack(zeros.T), "scales": np.ascontiguousarray(scales.T)}


def pack_to_int32(value, bits, packed_dim=1):
    """Of signed levels."""
    value = (value + (1 << (bits - 1))).astype(np.uint32)
    n = 32 // bits
    size = -(-value.shape[packed_dim] // n)
    padding = size * n - value.shape[packed_dim]
    value = np.pad(value, [(0, 0), (0, padding)] if packed_dim == 1 else [(0, padding), (0, 0)])
    packed = np.zeros((value.shape[0], size) if packed_dim == 1 else (size, value.shape[1]), np.uint32)
    for i in range(n):
        packed |= (value[:, i::n] if packed_dim == 1 else value[i::n, :]) << np.uint32(bits * i)
    return packed.view(np.int32)


def pack_compressed(levels, scales, zeros, bits, symmetric):
    half = 1 << (bits - 1)
    tensors = {
        "weight_packed": pack_to_int32(levels.astype(np.int64) - half, bits),
        "weight_scale": scales,
        "weight_shape": np.array(levels.shape, np.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack_to_int32(zeros.astype(np.int64) - half, bits, packed_dim=0)
    return tensors


# --- golden file


def golden_case(rng, layout, bits, group_size, symmetric, act_order, rows=32, columns=64):
    groups = -(-columns // group_size)
    top = (1 << bits) - 1
    levels = rng.integers(0, top + 1, (rows, columns))
    least = 1 if layout == "gptq" else 0
    zeros = rng.integers(least, top + 1, (rows, groups))
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    scales = (rng.normal(size=(rows, groups)) * 0.01).astype(np.float16)
    order = rng.permutation(columns) if act_order else np.arange(columns)
    g_idx = np.empty(columns, np.int64)
    g_idx[order] = np.arange(columns) // group_size
    if layout in ("gptq", "gptq_v2"):
        tensors = pack_gptq(levels, scales, zeros, g_idx, bits, layout == "gptq_v2")
        weights = unpack_gptq(tensors, bits, layout == "gptq_v2")
    elif layout == "awq":
        tensors = pack_awq(levels, scales, zeros)
        weights = unpack_awq(tensors, group_size)
    else:
        tensors = pack_compressed(levels, scales, zeros, bits, symmetric)
        weights = unpack_compressed(tensors, bits)
    direct = (levels - zeros[:, g_idx]).astype(np.float32) * scales.astype(np.float32)[:, g_idx]
    assert (weights.view(np.uint32) == direct.view(np.uint32)).all() or (weights == direct).all(), layout
    return {
        "layout": layout,
        "bits": bits,
        "group_size": group_size,
        "rows": rows,
        "columns": columns,
        "column_order": order.tolist() if act_order else None,
        "levels": levels.astype(np.uint8).tobytes().hex(),
        "scales": scales.astype("<f2").tobytes().hex(),
        "zero_points": zeros.astype(np.uint8).tobytes().hex(),
        "tensors": {
            name: {"shape": list(tensor.shape), "bytes": np.ascontiguousarray(tensor).tobytes().hex()}
            for name, tensor in tensors.items()
        },
    }


def write(path):
    rng = np.random.default_rng(7)
    cases = [
        golden_case(rng, "gptq", 4, 32, True, False),
        golden_case(rng, "gptq", 4, 32, False, True),
        golden_case(rng, "gptq", 8, 64, True, False),
        golden_case(rng, "gptq_v2", 4, 16, False, False),
        golden_case(rng, "gptq_v2", 2, 48, False, True),
        golden_case(rng, "awq", 4, 32, False, False),
        golden_case(rng, "awq", 4, 64, True, False),
        golden_case(rng, "compressed-tensors", 4, 32, True, False),
        golden_case(rng, "compressed-tensors", 4, 32, False, False, rows=32),
        golden_case(rng, "compressed-tensors", 8, 64, False, False),
    ]
    lines = ",\n".join(json.dumps(case) for case in cases)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(f"[\n{lines}\n]\n")
    print(len(cases), "cases")


# --- a folder that slmc wrote


def load(folder):
    from safetensors.numpy import load_file

    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def check(packed_folder, float_folder):
    config = json.loads((pathlib.Path(packed_folder) / "config.json").read_text())["quantization_config"]
    packed, floats = load(packed_folder), load(float_folder)
    modules = {}
    for name, tensor in packed.items():
        module, _, suffix = name.rpartition(".")
        modules.setdefault(module, {})[suffix] = tensor
    n_packed, n_floats = 0, 0
    for module, tensors in modules.items():
        name = f"{module}.weight"
        expected = floats[name].astype(np.float32)
        method = config["quant_method"]
        if "weight" in tensors:
            n_floats += 1
            weights = tensors["weight"].astype(np.float32)
        elif method == "gptq":
            weights = unpack_gptq(tensors, config["bits"], config["checkpoint_format"] == "gptq_v2")
        elif method == "awq":
            columns = tensors["qweight"].shape[0]
            weights = unpack_awq(tensors, columns // tensors["scales"].shape[0])
        else:
            args = config["config_groups"]["group_0"]["weights"]
            weights = unpack_compressed(tensors, args["num_bits"])
        n_packed += "weight" not in tensors
        assert weights.shape == expected.shape, (name, weights.shape, expected.shape)
        assert (weights == expected).all(), name
    assert n_packed > 0
    print(f"{packed_folder}: {n_packed} packed and {n_floats} float tensors are the same weights")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", path]:
            write(path)
        case ["check", packed_folder, float_folder]:
            check(packed_folder, float_folder)
        case _:
            sys.exit(__doc__)
