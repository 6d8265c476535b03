"""Logits and tokens of a real GGUF file as the reference implementation reads it.

    pip install torch transformers gguf
    python tests/data/make_reference.py FILE.gguf reference.npz

`benchmarks/checkpoints.py FILE.gguf --reference reference.npz` compares with them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = Path(__file__).with_name("paragraph.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    place = {"gguf_file": args.file.name}
    folder = args.file.resolve().parent
    tokenizer = AutoTokenizer.from_pretrained(folder, **place)
    model = AutoModelForCausalLM.from_pretrained(
        folder, **place, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = tokenizer.encode(TEXT.read_text("utf-8"))[:220]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([tokens])).logits[0]
    np.savez_compressed(args.out, tokens=np.array(tokens), logits=logits.numpy())
    print(len(tokens), "tokens")


if __name__ == "__main__":
    main()
