"""Documents that report pages are made of in the tests: small ones, and one with every section and hostile names.

They are written as JSON and read by the records, so that null stands for an error that is infinite or NaN.
"""

from __future__ import annotations

import math

from sam3lite_convert.records.parity import ParityDocument
from sam3lite_convert.records.record import Json, JsonValue
from sam3lite_convert.records.verify import VerifyDocument

SCRIPT = "<script>alert(1)</script>"
OVERRIDE = "cat \u202egod\u202c <b>bold</b> & \"quotes\" 'single' \x1b[31m\n</pre></details>"
KEY = 'detector."quoted"\n<img src=x onerror=alert(2)>.' + "very_long_name_without_a_break" * 8
PROMPTS = [
    SCRIPT,
    "a small brown dog that lies on the warm windowsill beside a grey cat while it rains outside the old house",
    "красный автомобиль на мокрой улице ночью",
    "夜の濡れた通りに停まっている赤い車と、傘をさして歩いている人",
    "سيارة حمراء في شارع مبلل ليلا",
    "बारिश में गीली सड़क पर लाल गाड़ी",
    "👩‍🚀 on the moon!!!",
    OVERRIDE,
    "unbroken" * 30,
]
END, START = 49407, 49406


def tap(
    name: str,
    error: float | None = 0.0,
    alone: float | None = 0.0,
    noise: float | None = None,
    diverges: bool = False,
) -> Json:
    """One tap; None is infinite."""
    limit = 4 * (noise or 0.0)
    bad = diverges or error is None or error > limit
    status = "diverges" if diverges else "carried" if bad else "equal" if error == alone == 0 else "within"
    return {
        "name": name,
        "read_by_detector": name != "pooled",
        "shape": [4, 16, 512],
        "max_abs_diff": error,
        "mean_abs_diff": error and error / 20,
        "relative_l2": error and error / 8,
        "cosine": None if error is None else 1 - error / 400,
        "position": [3, 11, 407],
        "reference_value": -12.345678901,
        "candidate_value": None if error is None else -12.345678901 + error,
        "isolated_max_abs_diff": alone,
        "isolated_mean_abs_diff": alone and alone / 20,
        "judged_by": "isolated",
        "tolerance": limit,
        "isolated_tolerance": limit,
        "floor": None if noise is None else {"propagated": noise, "isolated": noise / 2,
                                             "mean_propagated": noise / 9, "mean_isolated": noise / 18},
        "floors": None if error is None else (error / noise if noise else 0.0),
        "diverges": diverges,
        "within": not bad,
        "status": status,
        "valid_max_abs_diff": error,
        "padded_max_abs_diff": error,
    }  # fmt: skip


def names(layers: int) -> list[str]:
    return ["embeddings", *(f"layers.{i}" for i in range(layers)), "final_layer_norm", "projected", "pooled"]


def parity(**fields: JsonValue) -> ParityDocument:
    """A parity document: an exact verdict on the weights, and these fields in place of its own."""
    document: Json = {
        "schema_version": 1,
        "checkpoint": "s0.pt",
        "converted": "converted/s0-packed",
        "reference": "original TextStudentEncoder",
        "candidate": "packed",
        "candidate_encoder": "packed, eager attention",
        "attention": "eager",
        "dtype": "float32",
        "inputs": {"what": "the dummy [49406, 320, 1125, 49407, 0 ...], batch 1, length 16", "prompts": [],
                   "prompts_total": 0, "shape": [1, 16], "ids": [[START, 320, 1125, END, *[0] * 12]]},
        "verdict": "exact",
        "summary": "0.0 at every tap that the detector reads",
        "not_read": [],
        "tolerance": 0.0,
        "tolerance_is": "measured: 4 noise floors at each tap",
        "smallest_passing_tolerance": 0.0,
        "max_abs_diff": 0.0,
        "first_divergence": None,
        "place": None,
        "unseen": [],
        "also_diverging": [],
        "not_given": [],
        "layers": [tap(name) for name in names(6)],
        "values": {},
        "diagnosis": None,
        "notes": [],
        "verdicts": {"weights": "exact", "behaviour": None},
        "behaviour": None,
        "worst_prompts": [],
        "not_compared": 0,
        "not_read_allowed": False,
        "released": None,
        "original_repo": None,
        "saved_activations": None,
        "judged": None,
        "source": None,
        "fetched": None,
        "page": page(),
    }  # fmt: skip
    return ParityDocument.from_json(document | fields)


def page(**fields: JsonValue) -> Json:
    """What stands on a page beside its command's result; these fields in place of its own."""
    command = "sam3lite parity --checkpoint s0.pt --converted converted/s0-packed --report parity.html"
    facts: Json = {"accounting": None, "counts": None, "receipt": None, "versions": VERSIONS,
                   "command": command, "made": "2026-11-21"}  # fmt: skip
    return facts | fields


VERSIONS: Json = {
    "sam3lite-convert": "0.1.0", "python": "3.11.7", "torch": "2.9.1+cpu", "transformers": None, "numpy": "2.3.5",
    "platform": "Linux-6.8.0-x86_64-with-glibc2.36",
}  # fmt: skip


def exact() -> ParityDocument:
    """The whole folder, and nothing differs."""
    return parity(page=page(accounting=accounting(), counts=COUNTS, receipt=receipt()), not_compared=1093)


def within_tolerance() -> ParityDocument:
    """transformers with sdpa: rounding at every tap."""
    floors = [1.5e-8 * (4 + i) ** 1.5 for i in range(10)]
    pairs = enumerate(zip(names(6), floors, strict=True))
    layers = [tap(name, floor * (0.3 + 0.25 * (i % 5)), floor * 0.4, floor) for i, (name, floor) in pairs]
    layers[0] = tap("embeddings", 0.0, 0.0, 1.5e-8)
    return parity(
        candidate_encoder="Sam3LiteTextTextModel (transformers 5.23.0), sdpa attention",
        candidate="transformers",
        converted=None,
        verdict="within_tolerance",
        tolerance=2.26e-5,
        max_abs_diff=1.02e-6,
        summary="max abs diff 1.02e-06 (tolerance 2.26e-05, measured: 4 noise floors at each tap)",
        smallest_passing_tolerance=1.02e-6,
        layers=layers,
        behaviour=behaviour(PROMPTS[1:4]),
        heat_map=heat_map(16, 64, 8, 1e-9, 1e-6),
        page=page(accounting=accounting(), counts=COUNTS, versions=VERSIONS | {"transformers": "5.23.0"}),
    )


def figures(error: float | None) -> Json:
    """The three numbers of text features."""
    return {
        "relative_l2": error,
        "cosine": None if error is None else 1 - error / 3,
        "max_abs_diff": error and error * 9,
    }


def moved(error: float, prompts: int, alone: int = 0) -> Json:
    """The error of a cause: ``prompts`` moved, ``alone`` tokens have no counterpart."""
    return figures(error) | {"prompts": prompts, "tokens_without_counterpart": alone}


def behaviour(prompts: list[str], **fields: JsonValue) -> Json:
    """The second verdict over these prompts."""
    ids = [START, 320, 2368, 1929, END]
    rows = [
        {"prompt": p, "original": ids + [0] * 11, "as_used": ids + [END] * 27, "valid": {"original": 5, "as_used": 5}}
        | figures(0.61 / (i + 1))
        for i, p in enumerate(prompts)
    ]
    causes = [
        ("sequence_length", "padded to 32 in place of 16: the position table is stretched", 0.42, 40),
        ("pad_id", "padded with 49407 in place of 0", 0.31, 40),
        ("mask", "padding is masked in attention; the original attends to it", 0.118, 38),
        ("text_cleaning", "HTML entities and broken encodings are not repaired", 0.0212, 2),
        ("attention", "sdpa in place of eager attention", 4.1e-7, 40),
        ("start", "a cause that moves no prompt", 0.0, 0),
    ]
    recipe: Json = {
        "code": "ids = tokenizer(prompts, padding='max_length', max_length=16, truncation=True, "
        "return_tensors='pt').input_ids  # the original's length, a long line that has to scroll by itself\n"
        "\nout = model(input_ids=ids, attention_mask=None)\n"
        f"print({SCRIPT!r})",
        "verdict": "exact",
        "summary": "the text features of every valid token equal the original's bit for bit",
    }
    document: Json = {
        "verdict": "differs",
        "summary": "the text features of valid tokens differ from the original's: relative L2 6.13e-01, "
        "max abs diff 5.52e+00; "
        "3 tokens exist on one side only and were not compared",
        "remedy": "The weights are not the cause. Call the model as in the recipe.",
        "tolerance": 1e-6,
        "context": 16,
        "built_in": False,
        "longer_than_the_processor_pads": 2,
        "tokenizer": "CLIPTokenizer of openai/clip-vit-base-patch32",
        "prompts_total": 40,
        "prompts": rows,
        "causes": [{"name": n, "words": w} | moved(e, k) for n, w, e, k in causes],
        "together": moved(0.613, 40, alone=3),
        "absent": [{"name": "truncation", "words": f"both cut at 16 {SCRIPT}"}],
        "notes": [f"2 prompts are longer than the call pads {OVERRIDE}"],
        "candidate": "Sam3Processor's tokenizer call and Sam3LiteTextModel (transformers 5.23.0), sdpa attention",
        "recipe": recipe | moved(0.0, 0),
    }
    return document | fields


def heat_map(rows: int, columns: int, wide: int, low: float, high: float) -> Json:
    """Errors between ``low`` and ``high`` in every cell."""
    span = math.log(high / low)
    values = [
        [low * math.exp(span * abs(math.sin(0.13 * x * (1 + y % 3)) * math.cos(0.29 * y))) for x in range(columns)]
        for y in range(rows)
    ]
    return {"tap": "layers.3", "isolated": True, "prompt": None, "row": 2, "positions": rows,
            "channels": columns * wide, "channels_per_column": wide, "values": values}  # fmt: skip


COUNTS: Json = {"source": 1281, "mapped": 912, "dropped": 369, "target": 1204}


def accounting() -> Json:
    """Every tensor of a checkpoint by component."""
    rows = {
        "vision_encoder": (464, 410, {"rotary tables": 32, "sam2 neck": 22}, 461_840_000),
        "text_encoder": (111, 111, {}, 42_540_000),
        "geometry_encoder": (76, 70, {"points projectors": 6}, 8_220_000),
        "detr_encoder": (108, 108, {}, 9_470_000),
        "detr_decoder": (175, 175, {}, 11_580_000),
        "mask_decoder": (28, 28, {}, 2_300_000),
        "dot_product_scoring": (10, 10, {}, 1_180_000),
        "tracker": (309, 0, {"tracker": 309}, 11_740_000),
    }
    dropped = {
        "rotary tables": (32, "freqs_cis: rotary tables are computed by the target"),
        "sam2 neck": (22, "sam2_convs: the SAM 2 neck has no counterpart"),
        "points projectors": (6, "points projectors: point prompts have no counterpart"),
        "tracker": (309, "tracker: the video tracker is not part of this model"),
    }
    return {
        "components": {n: {"keys": k, "mapped": m, "dropped": d, "parameters": p} for n, (k, m, d, p) in rows.items()},
        "total": {"keys": 1281, "mapped": 912, "parameters": 548_870_000,
                  "dropped": {kind: tensors for kind, (tensors, _) in dropped.items()}},
        "dropped_kinds": [{"kind": k, "tensors": n, "reason": why} for k, (n, why) in dropped.items()],
    }  # fmt: skip


def receipt() -> Json:
    """A conversion.json without its tensors."""
    return {
        "tool": {"name": "sam3lite-convert", "version": "0.1.0", "mappings_sha256": "035e011e" * 8},
        "source": {"name": "s0.pt", "size": 2_205_231_568, "sha256": "87bba749" * 8, "repo": "somebody/EfficientSAM3",
                   "file": "sam3_litetext/efficient_sam3_image_encoder_mobileclip_s0_ctx16.pt", "commit": "0a1b" * 10,
                   "etag": "d34db33f" * 8, "format": "zip", "wrapper": "model", "prefix": "detector."},
        "layout": "packed",
        "component": "all",
        "dtype": "float32",
        "options": {"dtype": None, "context": 16, "causal": False, "max_shard_size": None},
        "architecture": {"variant": "MobileCLIP-S0", "hidden_size": 512, "num_hidden_layers": 6,
                         "num_attention_heads": 8, "context_length": 16, "causal_masking": False},
        "counts": {"source": 1281, "mapped": 912, "dropped": 369, "target": 1204},
        "notes": ["assumed attention heads: as many as the DETR decoder"],
    }  # fmt: skip


def differs() -> ParityDocument:
    """Every section, 12 layers, an infinite error, prompts in several scripts, names that would break a page."""
    layers = []
    for i, name in enumerate(names(12)):
        noise = 1.5e-8 * (4 + i) ** 1.6
        if i < 4:
            layers.append(tap(name, 0.0, 0.0, noise))
        elif i == 4:
            layers.append(tap(name, 0.438, 0.438, noise, diverges=True))
        elif i == 11:
            layers.append(tap(name, None, None, noise, diverges=True))
        else:
            layers.append(tap(name, 0.46 + 0.05 * i, 3e-8 if i % 2 else 0.0, noise))
    heat = heat_map(32, 64, 12, 2e-7, 0.6)
    cells = heat["values"]
    cells[0] = cells[1] = [0.0] * 64
    cells[9][20:24] = [None] * 4
    heat["prompt"] = SCRIPT
    tensors = [
        {"target": f"text_encoder.layers.3.{part}", "source": f"{KEY}.{part}", "rule": "text attention qkv",
         "table": "text-packed.ini", "operation": "keep",
         "fault": "its rows are in the order k, q, v; the original's are q, k, v" if part == "in_proj" else None}
        for part in ("out_proj", "in_proj", "fc1", "fc2")
    ]  # fmt: skip
    prompts = [*PROMPTS, *(f"prompt number {i}" for i in range(11))]
    remedy = "Fix the weights first: as long as they differ, no call gives the original's features."
    return parity(
        checkpoint=f"{SCRIPT}.pt",
        converted="ported/" + "a-folder-with-a-name-that-goes-on-and-on-without-an-end" * 2,
        verdict="differs",
        tolerance=2.26e-5,
        max_abs_diff=None,
        summary="max abs diff inf (tolerance 2.26e-05, measured: 4 noise floors at each tap)",
        smallest_passing_tolerance=None,
        first_divergence="layers.3",
        place="layers.3",
        also_diverging=["layers.10"],
        layers=layers,
        inputs={"what": f"{len(PROMPTS)} prompts, length 16", "prompts": PROMPTS,
                "prompts_total": len(PROMPTS), "shape": [len(PROMPTS), 16],
                "ids": [[START, 320 + i, END, *[0] * 13] for i in range(len(PROMPTS))]},
        diagnosis={"tap": "layers.3", "cause": f"q and k are swapped {SCRIPT}", "fits": [
            {"key": "a", "cause": "q and k are swapped", "remaining_error": 1e-7, "likely": True},
            {"key": "b", "cause": "the layer is another one's", "remaining_error": 4e-7, "likely": False}],
            "tensors": tensors},
        notes=["the position table of 77 rows was resized to 16", OVERRIDE, KEY],
        behaviour=behaviour(prompts, remedy=remedy),
        verdicts={"weights": "differs", "behaviour": "differs"},
        heat_map=heat,
        worst_prompts=[{"prompt": p, "index": i, "tap": "layers.10", **figures(0.6 / (i + 1))}
                       for i, p in enumerate(PROMPTS)],
        original_repo={"path": "checkouts/efficientsam3", "commit": "0a1b2c3d" * 5, "files": ["sam3/text.py", KEY],
                       "stood_in": ["timm", "iopath"],
                       "against_original_ref": {"verdict": "exact", "max_abs_diff": 0.0, "first_divergence": None}},
        page=page(accounting=accounting(), counts=COUNTS, receipt=receipt(),
                  versions=VERSIONS | {"transformers": "5.23.0"},
                  command=f"sam3lite parity --checkpoint '{SCRIPT}.pt' --prompts-file prompts.txt --report p.html"),
    )  # fmt: skip


def verification(**fields: JsonValue) -> VerifyDocument:
    """A proof, and these fields in place of its own."""
    tensor = "detector.backbone.vision_backbone.trunk.pos_embed"
    by_kind: Json = {"sam2 neck": 22, "points projectors": 6, "rotary tables": 32, "tracker": 309}
    document: Json = {
        "schema_version": 1,
        "folder": "converted/s0-packed", "checkpoint": "s0.pt", "option": "s0.pt", "source": None, "targets": 1204,
        "verdict": "proven", "up_to": "the cast to float16", "layout": "packed", "component": "all",
        "summary": "1,204 of 1,204 tensors turn back into their source, up to the cast to float16",
        "dtype": "float16", "checked": 1204, "compared": 1204, "not_compared": 0,
        "findings": [], "mismatched": [], "missing": [], "unexpected": [],
        "lost": {
            "dropped": {"tensors": 369, "bytes": 722504, "by_kind": by_kind},
            "class_row": {"tensor": tensor, "rows": 1, "bytes": 512},
            "cast": {"dtype": "float16", "tensors": 1204, "changed_values": 12_345_678, "overflowed_values": 0,
                     "max_abs_error": 2.4e-4},
        },
        "lost_words": [
            "369 dropped tensors (22 sam2 neck, 6 points projectors, 32 rotary tables, 309 tracker)",
            f"the class row of {tensor}",
            "what the cast rounded off (12,345,678 values, max abs error 0.00024)",
        ],
        "notes": [],
        "page": page(accounting=accounting(), counts=COUNTS, receipt=receipt(),
                     command="sam3lite verify converted/s0-packed --checkpoint s0.pt --report verify.html"),
    }  # fmt: skip
    return VerifyDocument.from_json(document | fields)


def proven() -> VerifyDocument:
    """A folder that is its checkpoint."""
    return verification()


def finding(n: int, key: str, cause: str) -> Json:
    """One finding of one key."""
    return {"code": f"V-{n}", "component": "detr_encoder", "cause": cause, "keys": [key], "patterns": [key],
            "summary": f"DETR encoder: {cause}"}  # fmt: skip


def mismatch() -> VerifyDocument:
    """A folder of another tool with more faults than a list shows."""
    fault = "its rows are in the order k, q, v; the original's are q, k, v"
    keys = [f"text_encoder.layers.{i}.attention.in_proj_weight" for i in range(250)]
    return verification(
        folder="ported",
        verdict="mismatch",
        up_to=None,
        dtype="float32",
        summary="text encoder: 250 of 555 differ; the other 1,204 are equal to the bit",
        findings=[finding(n, key, fault) for n, key in enumerate([*keys, KEY])],
        mismatched=[*({"key": key, "why": fault} for key in keys), {"key": KEY, "why": OVERRIDE}],
        missing=[f"text_encoder.layers.{i}.fc1.bias" for i in range(3)],
        unexpected=[KEY, *(f"extra.{i}" for i in range(300))],
        lost_words=[f"the class row of {KEY}"],
        notes=["no conversion.json; another tool wrote this folder"],
        page=page(accounting=accounting(), counts=COUNTS, command=f"sam3lite verify {SCRIPT}"),
    )


PARITY = {"exact": exact, "within tolerance": within_tolerance, "differs": differs}
VERIFY = {"proven": proven, "mismatch": mismatch}
