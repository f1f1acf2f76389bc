"""A full-precision teacher from a quantized Llama GGUF.

Weights that come out of a 4-bit file lie on that file's grid, so quantizing them again loses nothing and measures
nothing. Three kinds of permutation leave the function of a Llama decoder as it is and take the weights off the grid:

  residual   the channels of the residual stream, in every tensor that reads or writes it and in every norm's gain
  mlp        the d_ff channels between gate/up and down, block by block
  head       the d_head channels between value and attention output, one permutation a key-value head, since the
             query heads of a group share it (query and key can't be permuted: rotary pairs tie their channels)

Then matrices are rounded to f16 once, so that all three files written hold the same numbers.

usage: float_teacher.py SRC.gguf OUT [--seed 1234]
OUT becomes a Hugging Face folder that also holds model-f16.gguf and model-f32.gguf. Works for what SmolLM2 is: a Llama
architecture with a tied head and a byte-level BPE tokenizer that splits digits.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from safetensors.numpy import save_file

CONTROL_TOKEN = 3  # tokenizer.ggml.token_type
BLOCK_READERS = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")  # columns are the residual stream
BLOCK_WRITERS = ("attn_output", "ffn_down")  # rows are
BLOCK_NORMS = ("attn_norm", "ffn_norm")
HF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Source:
    """The quantized file: its metadata, and its tensors as f32."""

    def __init__(self, path):
        self.reader = GGUFReader(path)
        self.meta = {name: field.contents() for name, field in self.reader.fields.items()}
        self.names = [tensor.name for tensor in self.reader.tensors]
        if self.meta["general.architecture"] != "llama" or "output.weight" in self.names:
            raise SystemExit(f"{path}: only Llama models with a tied head are handled")
        self.n_layers = self.meta["llama.block_count"]
        self.d_model = self.meta["llama.embedding_length"]
        self.d_ff = self.meta["llama.feed_forward_length"]
        self.n_heads = self.meta["llama.attention.head_count"]
        self.n_kv_heads = self.meta["llama.attention.head_count_kv"]
        self.d_head = self.d_model // self.n_heads

    def weights(self):
        """name -> f32 array, rows = output features"""
        shape = lambda tensor: tuple(int(n) for n in reversed(tensor.shape))
        return {
            t.name: dequantize(t.data, t.tensor_type).reshape(shape(t)).astype(np.float32) for t in self.reader.tensors
        }


def permute_channels(weights, source, seed):
    """Changes `weights` in place. The order of the draws is part of the result: residual; then in each block mlp, heads."""
    rng = np.random.default_rng(seed)
    residual = rng.permutation(source.d_model)
    weights["token_embd.weight"] = weights["token_embd.weight"][:, residual]
    weights["output_norm.weight"] = weights["output_norm.weight"][residual]
    n_groups = source.n_heads // source.n_kv_heads
    for block in range(source.n_layers):
        name = lambda role: f"blk.{block}.{role}.weight"
        for role in BLOCK_NORMS + BLOCK_WRITERS:
            weights[name(role)] = weights[name(role)][residual]
        for role in BLOCK_READERS:
            weights[name(role)] = weights[name(role)][:, residual]

        mlp = rng.permutation(source.d_ff)
        weights[name("ffn_gate")] = weights[name("ffn_gate")][mlp]
        weights[name("ffn_up")] = weights[name("ffn_up")][mlp]
        weights[name("ffn_down")] = weights[name("ffn_down")][:, mlp]

        heads = [rng.permutation(source.d_head) for _ in range(source.n_kv_heads)]
        rows = np.concatenate([h * source.d_head + heads[h] for h in range(source.n_kv_heads)])
        columns = np.concatenate([h * source.d_head + heads[h // n_groups] for h in range(source.n_heads)])
        weights[name("attn_v")] = weights[name("attn_v")][rows]
        weights[name("attn_output")] = weights[name("attn_output")][:, columns]


def round_to_f16(weights):
    """Matrices only: norms stay f32 in the GGUFs."""
    for name, weight in weights.items():
        if weight.ndim == 2:
            rounded = weight.astype(np.float16)
            if not np.isfinite(rounded).all():
                raise SystemExit(f"{name} does not fit f16")
            weights[name] = rounded.astype(np.float32)


def half_split_rows(weight, n_heads):
    """Rotary rows from llama.cpp's interleaved pairs to Hugging Face's two halves."""
    d_head = weight.shape[0] // n_heads
    order = np.arange(d_head).reshape(d_head // 2, 2).T.reshape(-1)
    rows = (np.arange(n_heads)[:, None] * d_head + order).reshape(-1)
    return weight[rows]


def write_safetensors(weights, source, out):
    tensors = {"model.embed_tokens.weight": weights["token_embd.weight"], "model.norm.weight": weights["output_norm.weight"]}
    n_heads = {"attn_q": source.n_heads, "attn_k": source.n_kv_heads}
    for block in range(source.n_layers):
        for role, hf_name in HF_NAMES.items():
            weight = weights[f"blk.{block}.{role}.weight"]
            if role in n_heads:
                weight = half_split_rows(weight, n_heads[role])
            tensors[f"model.layers.{block}.{hf_name}.weight"] = weight
    halves = {name: np.ascontiguousarray(weight.astype(np.float16)) for name, weight in tensors.items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})


def write_config(source, out):
    meta = source.meta
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "hidden_act": "silu",
        "hidden_size": source.d_model,
        "initializer_range": 1 / 24,
        "intermediate_size": source.d_ff,
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "head_dim": source.d_head,
        "num_attention_heads": source.n_heads,
        "num_hidden_layers": source.n_layers,
        "num_key_value_heads": source.n_kv_heads,
        "pretraining_tp": 1,
        # The GGUF holds an f32: six digits give back the number that was meant.
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_scaling": None,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": meta["llama.vocab_size"],
    }
    write_json(out / "config.json", config, ascii_only=True)
    ids = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    write_json(out / "generation_config.json", ids)


def write_tokenizer(source, out):
    meta = source.meta
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": tokens[i], **flags} for i, kind in enumerate(kinds) if kind == CONTROL_TOKEN]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    no_space, space = ({"type": "ByteLevel", "add_prefix_space": s, **byte_level} for s in (False, True))
    digits = {"type": "Digits", "individual_digits": True}
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": meta["tokenizer.ggml.merges"],
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, no_space]},
        "post_processor": None,
        "decoder": space,
        "model": bpe,
    }
    write_json(out / "tokenizer.json", tokenizer, indent=1)

    named = lambda kind: tokens[meta[f"tokenizer.ggml.{kind}_token_id"]]
    special = {
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "unk_token": named("unknown"),
        "pad_token": named("padding"),
    }
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token["id"]): {"content": token["content"], **flags} for token in added},
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": meta["tokenizer.chat_template"],
    }
    write_json(out / "tokenizer_config.json", settings)
    write_json(out / "special_tokens_map.json", special, ascii_only=True)


def write_json(path, value, indent=2, ascii_only=False):
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")


def write_gguf(weights, source, path, file_type, matrix_type):
    writer = GGUFWriter(path, "llama")
    rewritten = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in source.reader.fields.items():
        if name.startswith("GGUF.") or name in rewritten:
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    writer.add_file_type(file_type)
    for name in source.names:
        kind = matrix_type if weights[name].ndim == 2 else np.float32
        writer.add_tensor(name, np.ascontiguousarray(weights[name].astype(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1234)
    arguments = parser.parse_args()
    source = Source(arguments.source)
    weights = source.weights()
    permute_channels(weights, source, arguments.seed)
    round_to_f16(weights)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_safetensors(weights, source, arguments.out)
    write_config(source, arguments.out)
    write_tokenizer(source, arguments.out)
    write_gguf(weights, source, arguments.out / "model-f16.gguf", 1, np.float16)
    write_gguf(weights, source, arguments.out / "model-f32.gguf", 0, np.float32)


if __name__ == "__main__":
    main()
