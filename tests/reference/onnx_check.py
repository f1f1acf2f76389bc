"""Exported ONNX decoders, judged by onnx and onnxruntime.

  onnx_check.py check MODEL.onnx                       onnx.checker, operators by domain
  onnx_check.py logits MODEL.onnx TOKENS OUT.npy       logits of the tokens in windows of --ctx, each from an empty cache
  onnx_check.py generate MODEL.onnx TOKENS --n 64      greedy, one token a step through the cache; tokens a second
  onnx_check.py genai FOLDER TOKENS --n 64             the same by onnxruntime-genai

TOKENS is a text file of ids. The last line of stdout is JSON.
"""

import argparse
import collections
import json
import time

import numpy as np


def session(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def empty_cache(model):
    """the past_* inputs, without a token in them"""
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    cache = {}
    for value in model.get_inputs():
        if value.name.startswith("past_key_values."):
            _, heads, _, d_head = value.shape
            cache[value.name] = np.zeros((1, heads, 0, d_head), kinds[value.type])
    return cache


def step(model, ids, cache, n_past):
    """logits [n, vocab] and the cache after them"""
    n = len(ids)
    feed = dict(
        cache,
        input_ids=np.array([ids], np.int64),
        attention_mask=np.ones((1, n_past + n), np.int64),
        position_ids=np.arange(n_past, n_past + n, dtype=np.int64)[None],
    )
    names = [value.name for value in model.get_outputs()]
    found = dict(zip(names, model.run(names, feed)))
    logits = found.pop("logits")[0].astype(np.float32)
    return logits, {name.replace("present.", "past_key_values."): value for name, value in found.items()}


def check(arguments):
    import onnx

    onnx.checker.check_model(arguments.model, full_check=True)
    model = onnx.load(arguments.model, load_external_data=False)
    domains = collections.Counter(node.domain or "ai.onnx" for node in model.graph.node)
    kinds = sorted({node.op_type for node in model.graph.node})
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return {"domains": domains, "operators": kinds, "opsets": opsets, "nodes": len(model.graph.node)}


def logits(arguments):
    model, rows = session(arguments.model, arguments.threads), []
    for start in range(0, len(arguments.ids), arguments.ctx):
        rows.append(step(model, arguments.ids[start : start + arguments.ctx], empty_cache(model), 0)[0])
    found = np.concatenate(rows)
    np.save(arguments.out, found)
    return {"tokens": len(found), "finite": bool(np.isfinite(found).all())}


def generate(arguments):
    model = session(arguments.model, arguments.threads)
    found, cache = step(model, arguments.ids, empty_cache(model), 0)
    tokens, n_past = [int(found[-1].argmax())], len(arguments.ids)
    start = time.perf_counter()
    while len(tokens) < arguments.n:
        found, cache = step(model, tokens[-1:], cache, n_past)
        n_past += 1
        tokens.append(int(found[-1].argmax()))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    step(model, (arguments.ids * 512)[:512], empty_cache(model), 0)
    prompt = 512 / (time.perf_counter() - start)
    return {"tokens": tokens, "tg_tokens_per_s": (len(tokens) - 1) / seconds, "pp_tokens_per_s": prompt}


def genai(arguments):
    import onnxruntime_genai

    config = onnxruntime_genai.Config(arguments.model)
    model = onnxruntime_genai.Model(config)
    tokenizer = onnxruntime_genai.Tokenizer(model)
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(arguments.ids) + arguments.n)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array(arguments.ids, np.int32))
    tokens, start = [], None
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
        start = start or time.perf_counter()
    seconds = time.perf_counter() - start
    rate = (len(tokens) - 1) / seconds if len(tokens) > 1 else 0.0
    encoded = [int(id) for id in tokenizer.encode(arguments.text)] if arguments.text else None
    return {"tokens": tokens, "tg_tokens_per_s": rate, "text": tokenizer.decode(tokens), "encoded": encoded}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = {"check": check, "logits": logits, "generate": generate, "genai": genai}
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("model")
    parser.add_argument("tokens", nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text")
    arguments = parser.parse_args()
    if arguments.tokens:
        with open(arguments.tokens) as file:
            arguments.ids = [int(word) for word in file.read().split()]
    print(json.dumps(verbs[arguments.verb](arguments)))


if __name__ == "__main__":
    main()
