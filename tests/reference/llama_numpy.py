"""The forward pass of a Llama-type decoder in float64 numpy: slow, short, and independent of slmc.

Written from the papers: RMSNorm (arXiv:1910.07467), rotary embedding (arXiv:2104.09864), SwiGLU (arXiv:2002.05202),
grouped-query attention (arXiv:2305.13245), with Llama 3.1's frequency bands as transformers documents them. Reads a
Hugging Face folder (Llama, Mistral, Qwen 2 and 3) or a GGUF of these architectures, quantized ones included.

usage: llama_numpy.py logits MODEL TOKENS.txt OUT.npy [--tokens N] [--adapter DIR]
TOKENS.txt holds token ids separated by white space; OUT.npy is f64 [n_tokens, vocab_size]. DIR is an adapter as PEFT
writes it, beside a Hugging Face folder: y += lora_alpha / r * (x A^T) B^T (arXiv:2106.09685, section 4.1).
"""

import argparse
import json
from pathlib import Path

import numpy as np


class HfFolder:
    """config.json and safetensors files. Rotary rows are two halves a head."""

    interleaved = False
    names = {
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "head": "lm_head",
        "block": "model.layers.{}.",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }

    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        if config["model_type"] not in ("llama", "mistral", "qwen2", "qwen3"):
            raise SystemExit(f"model_type {config['model_type']} is not handled")
        self.n_layers = config["num_hidden_layers"]
        self.n_heads = config["num_attention_heads"]
        self.n_kv_heads = config.get("num_key_value_heads", self.n_heads)
        self.d_head = config.get("head_dim") or config["hidden_size"] // self.n_heads
        self.eps = config["rms_norm_eps"]
        theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0)
        self.frequencies = theta ** (-np.arange(0, self.d_head, 2) / self.d_head)
        self.frequencies /= rope_divisors(self.frequencies, config.get("rope_scaling"))
        self.where = {}  # tensor name -> (file, dtype, shape, begin, end)
        for path in sorted(folder.glob("*.safetensors")):
            with open(path, "rb") as file:
                n = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(n))
            for name, info in header.items():
                if name != "__metadata__":
                    begin, end = (8 + n + offset for offset in info["data_offsets"])
                    self.where[name] = (path, info["dtype"], info["shape"], begin, end)

    def read(self, name):
        """f64 array, or None when there is no such tensor"""
        if name not in self.where:
            return None
        path, dtype, shape, begin, end = self.where[name]
        with open(path, "rb") as file:
            file.seek(begin)
            raw = file.read(end - begin)
        if dtype == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
        return values.astype(np.float64).reshape(shape)


class GgufFile:
    """One GGUF. Architecture `llama` keeps the two channels of a rotary pair side by side, the others as halves."""

    names = {
        "embedding": "token_embd",
        "final_norm": "output_norm",
        "head": "output",
        "block": "blk.{}.",
        "attn_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "o": "attn_output",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
    }

    def __init__(self, path):
        from gguf import GGUFReader  # only needed here

        reader = GGUFReader(path)
        meta = {name: field.contents() for name, field in reader.fields.items()}
        arch = meta["general.architecture"]
        if arch not in ("llama", "qwen2", "qwen3"):
            raise SystemExit(f"architecture {arch} is not handled")
        get = lambda key, default=None: meta.get(f"{arch}.{key}", default)
        self.interleaved = arch == "llama"
        self.n_layers = get("block_count")
        self.n_heads = get("attention.head_count")
        self.n_kv_heads = get("attention.head_count_kv", self.n_heads)
        self.d_head = get("attention.key_length") or get("embedding_length") // self.n_heads
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        theta = get("rope.freq_base", 10000.0)
        self.frequencies = theta ** (-np.arange(0, self.d_head, 2) / self.d_head)
        if get("rope.scaling.type", "none") == "linear":
            self.frequencies /= get("rope.scaling.factor")
        divisors = self.read("rope_freqs.weight")
        if divisors is not None:
            self.frequencies /= divisors

    def read(self, name):
        """f64 array, or None when there is no such tensor"""
        from gguf.quants import dequantize

        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        shape = [int(n) for n in reversed(tensor.shape)]
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float64).reshape(shape)


def rope_divisors(frequencies, scaling):
    """What stretched contexts divide each frequency by."""
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
    if kind == "default":
        return np.ones_like(frequencies)
    if kind == "linear":
        return np.full_like(frequencies, scaling["factor"])
    if kind != "llama3":
        raise SystemExit(f"rope_scaling {kind} is not handled")
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)  # 0: slow, divided; 1: fast, kept
    return 1 / (kept + (1 - kept) / factor)


class Adapter:
    """PEFT's adapter_config.json and adapter_model.safetensors: names and layout as its documentation has them."""

    def __init__(self, folder):
        from safetensors.numpy import load_file

        config = json.loads((folder / "adapter_config.json").read_text())
        self.scale = config["lora_alpha"] / config["r"]
        self.tensors = load_file(folder / "adapter_model.safetensors")

    def change(self, module, x):
        a = self.tensors.get(f"base_model.model.{module}.lora_A.weight")
        if a is None:
            return 0.0
        b = self.tensors[f"base_model.model.{module}.lora_B.weight"]
        return self.scale * (x @ a.astype(np.float64).T) @ b.astype(np.float64).T


class Decoder:
    """Computes the logits of a whole sequence; holds one block's weights at a time."""

    def __init__(self, source, adapter=None):
        self.source = source
        self.adapter = adapter
        self.scale = 1 / np.sqrt(source.d_head)

    def tensor(self, role, block=None, part="weight"):
        names = self.source.names
        prefix = "" if block is None else names["block"].format(block)
        return self.source.read(f"{prefix}{names[role]}.{part}")

    def linear(self, role, block, x):
        y = x @ self.tensor(role, block).T
        if self.adapter:
            names = self.source.names
            y = y + self.adapter.change(names["block"].format(block) + names[role], x)
        bias = self.tensor(role, block, "bias")
        return y if bias is None else y + bias

    def norm(self, gain, x):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.source.eps) * gain

    def rotate(self, x):
        """x [n_tokens, heads, d_head]: each pair of channels turned by position times frequency"""
        angle = np.arange(x.shape[0])[:, None, None] * self.source.frequencies
        cos, sin = np.cos(angle), np.sin(angle)
        half = x.shape[-1] // 2
        a, b = (x[..., 0::2], x[..., 1::2]) if self.source.interleaved else (x[..., :half], x[..., half:])
        out = np.empty_like(x)
        if self.source.interleaved:
            out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
        else:
            out[..., :half], out[..., half:] = a * cos - b * sin, a * sin + b * cos
        return out

    def attention(self, block, x):
        source, n = self.source, x.shape[0]
        heads = lambda role, count: self.linear(role, block, x).reshape(n, count, source.d_head)
        q, k, v = heads("q", source.n_heads), heads("k", source.n_kv_heads), heads("v", source.n_kv_heads)
        for role in ("q_norm", "k_norm"):
            gain = self.tensor(role, block)
            if gain is not None and role == "q_norm":
                q = self.norm(gain, q)
            elif gain is not None:
                k = self.norm(gain, k)
        q, k = self.rotate(q), self.rotate(k)
        future = np.triu(np.full((n, n), -np.inf), 1)
        out = np.empty((n, source.n_heads, source.d_head))
        for h in range(source.n_heads):
            shared = h * source.n_kv_heads // source.n_heads
            scores = q[:, h] @ k[:, shared].T * self.scale + future
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, h] = weights / weights.sum(-1, keepdims=True) @ v[:, shared]
        return self.linear("o", block, out.reshape(n, -1))

    def mlp(self, block, x):
        gate = self.linear("gate", block, x)
        return self.linear("down", block, gate / (1 + np.exp(-gate)) * self.linear("up", block, x))

    def logits(self, tokens):
        embedding = self.tensor("embedding")
        x = embedding[tokens]
        for block in range(self.source.n_layers):
            x = x + self.attention(block, self.norm(self.tensor("attn_norm", block), x))
            x = x + self.mlp(block, self.norm(self.tensor("ffn_norm", block), x))
        head = self.tensor("head")
        return self.norm(self.tensor("final_norm"), x) @ (embedding if head is None else head).T


def open_model(path):
    return HfFolder(path) if path.is_dir() else GgufFile(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["logits"])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", dest="n_tokens", type=int)
    parser.add_argument("--adapter", type=Path)
    arguments = parser.parse_args()
    tokens = np.array(arguments.tokens.read_text().split(), dtype=np.int64)[: arguments.n_tokens]
    adapter = Adapter(arguments.adapter) if arguments.adapter else None
    np.save(arguments.out, Decoder(open_model(arguments.model), adapter).logits(tokens))


if __name__ == "__main__":
    main()
