"""llama.cpp as a second opinion on a GGUF, through ctypes: does it load, how does it tokenize, what does it predict?

The libraries come from `cargo xtask fetch DIR oracle` (npm: @node-llama-cpp/linux-x64@3.22.1). The structures below are
those of the llama.h which that package was built from; another version needs other structures.

usage: oracle.py load   MODEL                        loads it, or says why not (exit 1)
       oracle.py tokens MODEL TEXT                   token ids of a text file, one line
       oracle.py logits MODEL TOKENS.txt OUT.npy [--tokens N]
                                                     f32 [n_tokens, vocab_size], computed with an f32 cache
       oracle.py ppl    MODEL TEXT [--chunks N]      perplexity by llama-perplexity's protocol
       oracle.py kld    BASE MODEL TEXT [--chunks N] mean KL(base || model) and same top-1, same protocol
       … --ctx N        tokens of a chunk (512); --threads N (all cores); --lib DIR (models-cache/oracle/…)
       … --lora ADAPTER a low-rank adapter as GGUF beside the (last) model: logits, ppl, kld
"""

import argparse
import ctypes as c
import json
import os
import sys
from pathlib import Path

import numpy as np

DEFAULT_LIB = Path(__file__).resolve().parents[2] / "models-cache/oracle/package/bins/linux-x64"
F32_CACHE, NO_FLASH_ATTENTION = 0, 0


def fields(text):
    """'u32 n_ctx n_batch; ptr cb' -> a ctypes field list"""
    kinds = {"ptr": c.c_void_p, "i32": c.c_int32, "u32": c.c_uint32, "f32": c.c_float, "bool": c.c_bool, "size": c.c_size_t}
    found = []
    for group in text.split(";"):
        kind, *names = group.split()
        found += [(name, kinds[kind]) for name in names]
    return found


class ModelParams(c.Structure):
    """llama_model_params"""

    _fields_ = fields(
        "ptr devices tensor_buft_overrides; i32 n_gpu_layers split_mode load_mode lazy_mode main_gpu;"
        "ptr tensor_split progress_callback progress_callback_user_data kv_overrides;"
        "bool vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"
    )


class ContextParams(c.Structure):
    """llama_context_params"""

    _fields_ = fields(
        "u32 n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq;"
        "i32 n_threads n_threads_batch ctx_type rope_scaling_type pooling_type attention_type flash_attn_type;"
        "f32 rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow;"
        "u32 yarn_orig_ctx; f32 defrag_thold; ptr cb_eval cb_eval_user_data; i32 type_k type_v;"
        "ptr abort_callback abort_callback_data;"
        "bool embeddings offload_kqv no_perf op_offload swa_full kv_unified; ptr samplers; size n_samplers; ptr ctx_other"
    )


class Batch(c.Structure):
    """llama_batch"""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


LOG_HOOK = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
SIGNATURES = {  # name: (result, arguments…)
    "llama_log_set": (None, LOG_HOOK, c.c_void_p),
    "llama_backend_init": (None,),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (c.c_void_p, c.c_char_p, ModelParams),
    "llama_model_free": (None, c.c_void_p),
    "llama_init_from_model": (c.c_void_p, c.c_void_p, ContextParams),
    "llama_free": (None, c.c_void_p),
    "llama_model_get_vocab": (c.c_void_p, c.c_void_p),
    "llama_vocab_n_tokens": (c.c_int32, c.c_void_p),
    "llama_vocab_get_add_bos": (c.c_bool, c.c_void_p),
    "llama_vocab_bos": (c.c_int32, c.c_void_p),
    "llama_tokenize": (
        c.c_int32,
        c.c_void_p,
        c.c_char_p,
        c.c_int32,
        c.POINTER(c.c_int32),
        c.c_int32,
        c.c_bool,
        c.c_bool,
    ),
    "llama_batch_init": (Batch, c.c_int32, c.c_int32, c.c_int32),
    "llama_batch_free": (None, Batch),
    "llama_decode": (c.c_int32, c.c_void_p, Batch),
    "llama_get_logits_ith": (c.POINTER(c.c_float), c.c_void_p, c.c_int32),
    "llama_get_memory": (c.c_void_p, c.c_void_p),
    "llama_memory_clear": (None, c.c_void_p, c.c_bool),
    "llama_adapter_lora_init": (c.c_void_p, c.c_void_p, c.c_char_p),
    "llama_set_adapters_lora": (c.c_int32, c.c_void_p, c.POINTER(c.c_void_p), c.c_size_t, c.POINTER(c.c_float)),
}


class Library:
    """libllama with its log kept instead of printed."""

    def __init__(self, folder):
        if not (folder / "libllama.v0.5.0.so").is_file():
            raise SystemExit(f"no llama.cpp in {folder}: run `cargo xtask fetch` or give --lib DIR")
        c.CDLL(str(folder / "libggml-base.so"), c.RTLD_GLOBAL)
        ggml = c.CDLL(str(folder / "libggml.v0.5.0.so"), c.RTLD_GLOBAL)
        self.llama = c.CDLL(str(folder / "libllama.v0.5.0.so"), c.RTLD_GLOBAL)
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(self.llama, name)
            function.restype, function.argtypes = result, arguments
        self.log = []
        self.hook = LOG_HOOK(lambda level, text, _: self.log.append(text.decode(errors="replace")))  # kept alive
        self.llama.llama_log_set(self.hook, None)
        self.llama.llama_backend_init()

    def last_words(self):
        return "".join(self.log[-8:]).strip()


class Model:
    """One GGUF on the CPU with a context of n_ctx tokens, and an adapter if one is named."""

    def __init__(self, library, path, n_ctx, n_threads, exact=False, lora=None):
        self.library, self.llama = library, library.llama
        params = self.llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = self.llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp refuses {path}: {library.last_words()}")
        params = self.llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = n_threads
        if exact:  # instead of an f16 cache and fused attention
            params.type_k = params.type_v = F32_CACHE
            params.flash_attn_type = NO_FLASH_ATTENTION
        self.context = self.llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp makes no context for {path}: {library.last_words()}")
        if lora:
            adapter = self.llama.llama_adapter_lora_init(self.model, str(lora).encode())
            if not adapter:
                raise SystemExit(f"llama.cpp refuses {lora}: {library.last_words()}")
            if self.llama.llama_set_adapters_lora(self.context, (c.c_void_p * 1)(adapter), 1, (c.c_float * 1)(1.0)):
                raise SystemExit(f"llama.cpp does not apply {lora}: {library.last_words()}")
        self.vocab = self.llama.llama_model_get_vocab(self.model)
        self.vocab_size = self.llama.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text, add_special=True):
        raw = text.encode()
        ids = (c.c_int32 * (len(raw) + 8))()
        count = self.llama.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), add_special, False)
        if count < 0:
            raise SystemExit("llama.cpp found more tokens than bytes")
        return np.array(ids[:count])

    def logits(self, tokens, first=0):
        """f32 [len(tokens) - first, vocab_size] of one sequence from an empty cache"""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        batch = self.llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position] = int(token)
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = position >= first
        status = self.llama.llama_decode(self.context, batch)
        if status != 0:
            raise SystemExit(f"llama_decode gave {status}: {self.library.last_words()}")
        rows = np.empty((len(tokens) - first, self.vocab_size), np.float32)
        for row, position in enumerate(range(first, len(tokens))):
            at = self.llama.llama_get_logits_ith(self.context, position)
            rows[row] = np.ctypeslib.as_array(at, (self.vocab_size,))
        self.llama.llama_batch_free(batch)
        return rows

    def chunks(self, tokens, n_ctx, n_chunks):
        """llama-perplexity's: no overlap, each begun with BOS if the model wants one, the second half scored"""
        for chunk in range(min(n_chunks, len(tokens) // n_ctx)):
            ids = tokens[chunk * n_ctx : (chunk + 1) * n_ctx].copy()
            if self.llama.llama_vocab_get_add_bos(self.vocab):
                ids[0] = self.llama.llama_vocab_bos(self.vocab)
            yield ids

    def scored(self, ids):
        """log-probabilities f64 [n, vocab_size] at the scored positions, and the token that came next at each"""
        half = len(ids) // 2
        logits = self.logits(ids, half)[:-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), ids[half + 1 :]


def perplexity(model, text, n_ctx, n_chunks):
    nll, count = 0.0, 0
    for ids in model.chunks(model.tokenize(text), n_ctx, n_chunks):
        log_p, targets = model.scored(ids)
        nll -= log_p[np.arange(len(targets)), targets].sum()
        count += len(targets)
    return {"ppl": float(np.exp(nll / count)), "tokens": count}


def divergence(base, model, text, n_ctx, n_chunks):
    kld, same, count, nll = 0.0, 0, 0, np.zeros(2)
    for ids in base.chunks(base.tokenize(text), n_ctx, n_chunks):
        (p, targets), (q, _) = base.scored(ids), model.scored(ids)
        kld += (np.exp(p) * (p - q)).sum()
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        nll -= [log[np.arange(len(targets)), targets].sum() for log in (p, q)]
        count += len(targets)
    ppl_base, ppl = np.exp(nll / count)
    result = {"kld": kld / count, "same_top": same / count, "ppl": ppl, "ppl_base": ppl_base, "tokens": count}
    return {name: float(value) if name != "tokens" else value for name, value in result.items()}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    shapes = {
        "load": ["model"],
        "tokens": ["model", "text"],
        "logits": ["model", "tokens", "out"],
        "ppl": ["model", "text"],
        "kld": ["base", "model", "text"],
    }
    for verb, names in shapes.items():
        sub = verbs.add_parser(verb)
        for name in names:
            sub.add_argument(name, type=Path)
        sub.add_argument("--lib", type=Path, default=DEFAULT_LIB)
        sub.add_argument("--threads", type=int, default=os.cpu_count())
        sub.add_argument("--ctx", type=int, default=512)
        if verb in ("ppl", "kld"):
            sub.add_argument("--chunks", type=int, default=20)
        if verb in ("logits", "ppl", "kld"):
            sub.add_argument("--lora", type=Path)
        if verb == "logits":
            sub.add_argument("--tokens", dest="n_tokens", type=int)
    return parser.parse_args()


def main():
    a = arguments()
    library = Library(a.lib)
    lora = getattr(a, "lora", None)
    open_model = lambda path, n_ctx=a.ctx, exact=False, lora=None: Model(library, path, n_ctx, a.threads, exact, lora)
    if a.verb == "load":
        print(json.dumps({"vocab_size": open_model(a.model).vocab_size}))
    elif a.verb == "tokens":
        print(*open_model(a.model).tokenize(a.text.read_text(encoding="utf-8")))
    elif a.verb == "logits":
        tokens = np.array(a.tokens.read_text().split(), dtype=np.int64)[: a.n_tokens]
        np.save(a.out, open_model(a.model, len(tokens), exact=True, lora=lora).logits(tokens))
    elif a.verb == "ppl":
        model = open_model(a.model, lora=lora)
        print(json.dumps(perplexity(model, a.text.read_text(encoding="utf-8"), a.ctx, a.chunks)))
    else:
        text = a.text.read_text(encoding="utf-8")
        print(json.dumps(divergence(open_model(a.base), open_model(a.model, lora=lora), text, a.ctx, a.chunks)))


if __name__ == "__main__":
    sys.exit(main())
