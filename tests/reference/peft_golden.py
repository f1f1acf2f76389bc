"""Logits of a model with an adapter beside it, by peft: run by hand, for tests/lora_oracles.rs.

    SLMC_KEEP_ADAPTER=/tmp/adapter cargo test --release --test lora_oracles pefts       # writes the adapter that is asked about
    python tests/reference/peft_golden.py recipes/tiny-teacher/model /tmp/adapter > tests/reference/peft_golden.json

needs: torch, transformers, peft, from PyPI.
"""

import json
import sys

import peft
import torch
import transformers

IDS = list(range(5, 400, 7))
VOCABULARY = list(range(3, 4096, 257))


def main():
    base, adapter = sys.argv[1:]
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        without = plain(ids).logits[0]
        logits = peft.PeftModel.from_pretrained(plain, adapter)(ids).logits[0]
    document = {
        "made_by": f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        "ids": IDS,
        "vocabulary": VOCABULARY,
        "moved_at_most": (logits - without).abs().max().item(),
        "logits": [[round(x, 6) for x in row] for row in logits[:, VOCABULARY].tolist()],
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
