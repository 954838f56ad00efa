"""The common way to port a checkpoint: load everything, rename in memory, build the model, save it.

    python benchmarks/common_way.py CHECKPOINT FOLDER_OF_THE_TRANSFORMERS_LAYOUT OUTPUT

The names come from the receipt of a conversion, so that both do the same work.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, Sam3LiteTextModel


def main(checkpoint: str, converted: str, output: str) -> None:
    """Write ``output`` with save_pretrained."""
    receipt = json.loads((Path(converted) / "conversion.json").read_text())
    source = torch.load(checkpoint, weights_only=True, map_location="cpu")["model"]
    state = {}
    for key, entry in receipt["tensors"].items():
        tensor = source[entry["source"]]
        if entry["operation"] == "split":
            tensor = tensor.chunk(3)["qkv".index(entry["part"])]
        elif entry["operation"] == "transpose":
            tensor = tensor.T
        elif entry["operation"] == "drop_class_row":
            tensor = tensor[:, -entry["shape"][1] :]
        state[key] = tensor  # a view: load_state_dict copies, so nothing is gained by copying here
    model = Sam3LiteTextModel(AutoConfig.from_pretrained(converted))
    model.load_state_dict(state)
    model.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
