"""Multiple choice by likelihood, once more and independently: items from the data files by lm-evaluation-harness's rules,
tokens and logits from llama.cpp (oracle.py). Prints one JSON document: for each item the log-likelihood of each choice.

usage: tasks.py TASK MODEL.gguf DATA_ROOT --limit N [--lib DIR] [--threads N]
       TASK: hellaswag, piqa, arc-easy, lambada
"""

import argparse
import json
import os
import re
from pathlib import Path

import numpy as np
import oracle


def hellaswag_clean(text):
    """lm_eval/tasks/hellaswag/utils.py, preprocess"""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(root):
    for line in (root / "eval/hellaswag_val_1000.jsonl").read_text().splitlines():
        d = json.loads(line)
        context = hellaswag_clean(d["activity_label"] + ": " + d["ctx_a"] + " " + d["ctx_b"].capitalize())
        yield context, [hellaswag_clean(e) for e in d["endings"]], int(d["label"])


def piqa(root):
    labels = (root / "eval/piqa_valid-labels.lst").read_text().split()
    for line, label in zip((root / "eval/piqa_valid.jsonl").read_text().splitlines(), labels):
        d = json.loads(line)
        yield f"Question: {d['goal']}\nAnswer:", [d["sol1"], d["sol2"]], int(label)


def arc_easy(root):
    for d in json.loads((root / "eval/llm-adapters_ARC-Easy_test.json").read_text()):
        match = re.fullmatch(r".*?to the question: (.*?)\n\nAnswer1: (.*)\n\nAnswer format:.*", d["instruction"], re.S)
        question, rest = match.groups()
        choices = [c.strip() for c in re.split(r" Answer\d: ", rest)]
        yield f"Question: {question}\nAnswer:", choices, int(d["answer"][len("answer") :]) - 1


def lambada(root):
    for line in (root / "eval/lambada_2500.jsonl").read_text().splitlines():
        context, word = json.loads(line)["text"].rsplit(" ", 1)
        yield context, [word], 0


def encode(model, text):
    """Tokens of a text without BOS and with special tokens read as text."""
    return model.tokenize(text, add_special=False) if text else []


def score(model, context, continuation):
    """lm_eval/api/model.py, _encode_pair, then the sum of log-probabilities and whether each token was the likeliest"""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces:
        context, continuation = context[:-n_spaces], context[-n_spaces:] + continuation
    whole, head = list(encode(model, context + continuation)), list(encode(model, context))
    logits = model.logits(np.array(whole[:-1]), len(head) - 1).astype(np.float64)
    targets = np.array(whole[len(head) :])
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return float(log_p[np.arange(len(targets)), targets].sum()), bool((logits.argmax(-1) == targets).all())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("model", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--lib", type=Path, default=oracle.DEFAULT_LIB)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    a = parser.parse_args()
    items = {"hellaswag": hellaswag, "piqa": piqa, "arc-easy": arc_easy, "lambada": lambada}[a.task](a.root)
    model = oracle.Model(oracle.Library(a.lib), a.model, 1024, a.threads, exact=True)
    results = []
    for index, (context, choices, label) in enumerate(items):
        if a.limit is not None and index >= a.limit:
            break
        scored = [score(model, context, " " + choice) for choice in choices]
        lls = [ll for ll, _ in scored]
        by_byte = [ll / len(choice.encode()) for ll, choice in zip(lls, choices)]
        results.append(
            {
                "label": label,
                "log_likelihoods": lls,
                "greedy": [greedy for _, greedy in scored],
                "acc": int(np.argmax(lls)),
                "acc_norm": int(np.argmax(by_byte)),
            }
        )
    print(json.dumps({"items": results}))


if __name__ == "__main__":
    main()
