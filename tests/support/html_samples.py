"""Documents that report pages are made of in the tests: small ones, and one with every section and hostile names.

They are written as JSON and read by the records, so that null stands for an error that is infinite or NaN.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from sam3lite_convert.parity.picture_files import synthetic_picture
from sam3lite_convert.parity.pictures import NO_PICTURES, Objects, pictures_of
from sam3lite_convert.records.detector import DetectorDocument
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
        "misshapen": [],
        "needed": [],
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
    command = "sam3lite parity s0.pt --converted converted/s0-packed --report parity.html"
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
    return figures(error) | {"prompts": prompts, "tokens_without_counterpart": alone, "calls_failed": 0}


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
                  command=f"sam3lite parity '{SCRIPT}.pt' --prompts-file prompts.txt --report p.html"),
    )  # fmt: skip


STAGES = {
    "vision trunk": ["patch_embed", "ln_pre", *(f"blocks.{i}" for i in range(12))],
    "neck": [f"convs.{i}" for i in range(3)],
    "text": [*(f"transformer.{i}" for i in range(6)), "final_layer_norm", "projector"],
    "geometry": ["boxes_direct_project", "label_embed", "encode.0", "encode.1", "encode.2", "encode_norm"],
    "encoder": [f"transformer.encoder.layers.{i}" for i in range(6)],
    "decoder": [f"transformer.decoder.layers.{i}.{part}" for i in range(6) for part in range(2)],
    "scoring": ["dot_prod_scoring.prompt_mlp", "dot_prod_scoring"],
    "masks": ["segmentation_head.pixel_decoder", "segmentation_head.mask_predictor.mask_embed"],
}


def detector(taps: dict[str, list[Json]] | None = None, **fields: JsonValue) -> DetectorDocument:
    """A document of the whole detector: an exact verdict, and these fields in place of its own. ``taps`` by stage."""
    by_stage = taps or {name: [tap(t) for t in own] for name, own in STAGES.items()}
    document: Json = {
        "schema_version": 1,
        "checkpoint": "s0.pt",
        "converted": "converted/s0-packed",
        "reference": "original detector (original_ref)",
        "candidate": "packed",
        "candidate_encoder": "PackedModel, sdpa attention",
        "attention": "sdpa",
        "dtype": "float32",
        "inputs": {"what": "one picture and the dummy ids", "size": 336, "image": "built-in picture", "prompt": None,
                   "ids": [[START, 320, 1125, END, *[0] * 12]], "boxes": [], "box_labels": []},
        "verdict": "exact",
        "summary": "0.0 at every tap",
        "not_read": [],
        "misshapen": [],
        "needed": [],
        "tolerance": 0.0,
        "tolerance_is": "measured: 4 noise floors at each tap",
        "smallest_passing_tolerance": 0.0,
        "max_abs_diff": 0.0,
        "first_divergence": None,
        "place": None,
        "unseen": [],
        "also_diverging": [],
        "not_given": [],
        "layers": [t for own in by_stage.values() for t in own],
        "stages": [stage(name, own, 0.2 + n, 0.3 * n) for n, (name, own) in enumerate(by_stage.items())],
        "outputs": [{"name": name, "max_abs_diff": 0.0, "relative_l2": 0.0} for name in OUTPUTS],
        "diagnosis": None,
        "notes": [],
        "not_read_allowed": False,
        "behaviour": None,
        "source": None,
        "fetched": None,
        "page": page(command="sam3lite parity s0.pt --component detector --report detector.html"),
    }  # fmt: skip
    return DetectorDocument.from_json(document | fields)


OUTPUTS = ("pred_logits", "pred_boxes", "pred_masks", "presence_logit_dec", "semantic_seg")


def stage(name: str, taps: list[Json], original: float, candidate: float) -> Json:
    """One stage of these taps, with its seconds on both sides."""
    worst = max(taps, key=lambda t: float("inf") if t["floors"] is None else t["floors"])
    errors = [[math.inf if t[key] is None else t[key] for t in taps] for key in ("max_abs_diff", "relative_l2")]
    greatest = [None if math.isinf(max(values)) else max(values) for values in errors]
    return {"name": name, "taps": [t["name"] for t in taps], "max_abs_diff": greatest[0], "relative_l2": greatest[1],
            "floors": worst["floors"], "worst_tap": worst["name"], "diverges": any(t["diverges"] for t in taps),
            "seconds_reference": original, "seconds_candidate": candidate}  # fmt: skip


@cache
def seen(moved: int) -> tuple[Json, ...]:
    """The page's pictures: the candidate's masks are moved by so many pixels, and one is missing if they are."""
    size, masks = 336, []
    for cx, cy, radius in ((168, 289, 27), (276, 57, 28), (227, 150, 48)):
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        masks.append((x - cx) ** 2 + (y - cy) ** 2 <= radius**2)
    boxes = torch.tensor([[141, 262, 195, 316], [248, 29, 304, 85], [179, 102, 275, 198]]).float()
    original = Objects(torch.stack(masks), boxes, torch.tensor([0.97, 0.91, 0.64]))
    left = 2 if moved else 3
    theirs = Objects(torch.roll(original.masks, moved, 2)[:left], boxes[:left] + moved, original.scores[:left])
    return tuple(p.to_json() for p in pictures_of(synthetic_picture(size), original, theirs, 0.5))


def detector_exact() -> DetectorDocument:
    """A whole detector of which nothing differs."""
    return detector(pictures=list(seen(0)), page=page(accounting=accounting(), counts=COUNTS, receipt=receipt()))


def detector_within() -> DetectorDocument:
    """Rounding at every tap, and no Pillow: no pictures."""
    taps, n = {}, 0
    for name, own in STAGES.items():
        taps[name] = []
        for t in own:
            n += 1
            floor = 1e-7 * 1.08**n
            taps[name].append(tap(t, floor * (0.4 + 0.3 * (n % 5)), floor * 0.1 * (1 + n % 4), floor))
    return detector(
        taps,
        converted=None,
        candidate="transformers",
        candidate_encoder="Sam3LiteTextModel (transformers 5.23.0), sdpa attention",
        verdict="within_tolerance",
        tolerance=1.1e-4,
        max_abs_diff=2.1e-5,
        summary="max abs diff 2.10e-05 (tolerance 1.10e-04, measured: 4 noise floors at each tap)",
        smallest_passing_tolerance=2.1e-5,
        outputs=[{"name": name, "max_abs_diff": 1.3e-5, "relative_l2": 2.2e-6} for name in OUTPUTS],
        pictures=[],
        notes=[NO_PICTURES],
        page=page(accounting=accounting(), counts=COUNTS),
    )


def detector_differs() -> DetectorDocument:
    """Every section, a fault in the encoder that is carried on, an infinite error, names that would break a page."""
    taps, n = {}, 0
    for name, own in STAGES.items():
        taps[name] = []
        for t in own:
            n += 1
            floor = 1e-7 * 1.08**n
            if t == "transformer.encoder.layers.3":
                made = tap(t, 0.31, 0.31, floor, diverges=True)
            elif name == "masks":
                made = tap(f"{t}.{KEY}", None, None, floor, diverges=True)
            elif name in ("decoder", "scoring") or t in (
                "transformer.encoder.layers.4",
                "transformer.encoder.layers.5",
            ):
                made = tap(t, 0.2 + 0.01 * n, floor * 0.4, floor)
            else:
                made = tap(t, floor * (0.2 + 0.1 * (n % 5)), 0.0 if name == "text" else floor * 0.2, floor)
            taps[name].append(made)
    tensors = [{"target": f"detr_encoder.layers.3.{part}", "source": f"{KEY}.{part}", "rule": "encoder qkv",
                "table": "detector.ini", "operation": "split", "fault": fault}
               for part, fault in (("self_attn.q_proj", "its rows are those of k"), ("mlp.fc1", None))]  # fmt: skip
    return detector(
        taps,
        checkpoint=f"{SCRIPT}.pt",
        converted="ported/" + "a-folder-with-a-name-that-goes-on-and-on-without-an-end" * 2,
        inputs={"what": f"one picture, one prompt and 2 boxes {OVERRIDE}", "size": 1008,
                "image": f"{SCRIPT}-{'unbroken' * 12}.png", "prompt": PROMPTS[1],
                "ids": [[START, *range(320, 334), END], [START, 320, END, *[0] * 13]],
                "boxes": [[0.45, 0.55, 0.3, 0.4], [0.123456, 0.5, 1.0, 1e-5]], "box_labels": [True, False]},
        verdict="differs",
        tolerance=1.1e-4,
        max_abs_diff=None,
        summary="max abs diff inf (tolerance 1.10e-04, measured: 4 noise floors at each tap)",
        smallest_passing_tolerance=None,
        first_divergence="transformer.encoder.layers.3",
        place="transformer.encoder.layers.3",
        also_diverging=[t["name"] for t in taps["masks"]],
        outputs=[{"name": name, "max_abs_diff": None if "mask" in name else 0.4, "relative_l2": 0.12}
                 for name in (*OUTPUTS, SCRIPT)],
        not_read=[KEY],
        diagnosis={"tap": "transformer.encoder.layers.3", "cause": f"q and k are swapped {SCRIPT}", "fits": [
            {"key": "a", "cause": "q and k are swapped", "remaining_error": 1e-7, "likely": True},
            {"key": "b", "cause": "the layer is another one's", "remaining_error": 4e-7, "likely": False}],
            "tensors": tensors},
        notes=["rotary tables were computed for the size", OVERRIDE, KEY],
        pictures=list(seen(4)),
        page=page(accounting=accounting(), counts=COUNTS, receipt=receipt(),
                  versions=VERSIONS | {"transformers": "5.23.0"},
                  command=f"sam3lite parity '{SCRIPT}.pt' --component detector --report p.html"),
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
                     command="sam3lite verify converted/s0-packed s0.pt --report verify.html"),
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


STACKS = {
    "vision_encoder": [("blocks", 32, 16), ("convs", 4, 6)],
    "text_encoder": [("transformer", 12, 16)],
    "geometry_encoder": [("encode", 3, 28)],
    "detr_encoder": [("layers", 6, 26)],
    "detr_decoder": [("layers", 6, 34)],
    "dot_product_scoring": [("layers", 2, 4)],
    "mask_decoder": [("conv_layers_of_the_pixel_decoder", 3, 2), ("norms", 3, 2)],
    "tracker": [("layers", 4, 77), ("encoder", 13, 2)],
}


def places() -> list[Json]:
    """1,500 tensors by layer as a large checkpoint has them: about 500 are wrong, all of some layers."""
    rows: list[Json] = []
    for component, stacks in STACKS.items():
        rows.append({"component": component, "stack": "", "layer": None, "tensors": 7, "off": 1, "filled": 2,
                     "relative_l2": 2e-5, "max_abs_diff": 1e-4})  # fmt: skip
        for stack, layers, tensors in stacks:
            for layer in range(layers):
                n = len(rows)
                off = tensors if n % 7 == 0 else 0 if n % 5 == 0 else tensors // 3
                known = off == 0 or n % 11 == 0  # a cause gives the values to the bit
                rows.append({"component": component, "stack": stack, "layer": layer, "tensors": tensors, "off": off,
                             "filled": 0, "relative_l2": None if known or n == 31 else 10.0 ** -(n % 6),
                             "max_abs_diff": None if known else 0.1 * n})  # fmt: skip
    return rows


def faults() -> VerifyDocument:
    """A large folder with faults in every component, and more findings and patterns than stand on a page at once."""
    cause = "values differ a little: relative L2 0.525 over all, largest 10.7 ({}.backbone.layers.23.attention.bias)"
    findings = [
        finding(n, f"{name}.backbone.layers.{{0,8,13,18,22,27,31}}.attention.v_proj.bias (7)", cause.format(name))
        | {"component": name}
        for n, name in enumerate([*STACKS] * 4)
    ]
    for n, found in enumerate(findings):
        found["patterns"] = [f"{found['patterns'][0]}{i}" for i in range(n)] + [KEY]
    return verification(
        verdict="mismatch",
        up_to=None,
        summary="; ".join(f"{name}: {n} of 538 differ, by {n} causes" for n, name in enumerate(STACKS)),
        findings=findings,
        places=places(),
    )


def structure() -> VerifyDocument:
    """A folder of which no values were compared: no faults, and nothing that is lost."""
    places = [{"component": name, "stack": "", "layer": None, "tensors": 40, "off": 0, "filled": 0,
               "relative_l2": None, "max_abs_diff": None} for name in STACKS]  # fmt: skip
    return verification(
        verdict="structure_only",
        up_to=None,
        summary="names, shapes and dtypes of 1,204 tensors fit; no values were compared",
        component="video",
        compared=0,
        not_compared=1204,
        places=places,
        lost_words=[],
        page=page(accounting=accounting(), counts=COUNTS, command="sam3lite verify a/b c/d --report verify.html"),
    )


PORT: Json = {
    "file": f"{SCRIPT}-activations.npz", "format": "npz", "dtypes": {"float16": 9}, "reference_dtype": "float32",
    "isolated": 4, "ids": "the ids of the file", "checkpoint_sha256": "87bba749" * 8,
    "names": {"layers.1": KEY},
}  # fmt: skip


def port_passes() -> ParityDocument:
    """A port that ran elsewhere and gave every tap."""
    return parity(port=PORT, candidate_encoder="mine in MLX", converted=None)


def port_differs() -> ParityDocument:
    """A port that gave some taps, and differs between two of them."""
    layers = [tap(name, 0.0, 0.0, 1e-7) for name in names(6)]
    layers[4] = tap("layers.3", 0.357, 0.0, 1e-7, diverges=True) | {"judged_by": "propagated"}
    return parity(
        port=PORT,
        candidate_encoder="a port whose name says a lot, " + "unbroken" * 12,
        converted=None,
        verdict="differs",
        summary="max abs diff 3.57e-01 at the 9 of 10 taps that were given",
        max_abs_diff=0.357,
        smallest_passing_tolerance=0.357,
        first_divergence="layers.3",
        place="between layers.0 and layers.3",
        unseen=["layers.1", "layers.2"],
        not_given=["layers.1", "layers.2"],
        misshapen=[{"name": "layers.1", "called": KEY, "shape": [4, 512, 16], "reference_shape": [4, 16, 512]}],
        layers=layers,
        diagnosis={"tap": "layers.3", "cause": "no known fault explains it", "fits": [],
                   "tensors": [{"target": "a", "source": KEY, "rule": "r", "table": "t", "operation": "keep",
                                "fault": None}]},
    )  # fmt: skip


def graph() -> ParityDocument:
    """A graph of other weights as the candidate."""
    other = {"name": "MatMul_12", "taps": ["layers.2"], "what": f"MatMul_12 has other weights: {KEY}", "tensors": [KEY]}
    layers = [tap(name, 1e-8, 1e-8, 1e-8) for name in names(6)]
    layers[3] = tap("layers.2", 0.02, 0.02, 1e-8, diverges=True)
    return parity(
        candidate="onnx",
        candidate_encoder="ONNX graph in onnxruntime 1.32.0 (CPUExecutionProvider)",
        graph={"runtime": "onnxruntime 1.32.0", "provider": "CPUExecutionProvider", "optimised": True,
               "file": "model.int8.onnx", "sha256": "ded684aa" * 8, "differences": [other]},
        verdict="differs",
        summary="max abs diff 2.00e-02 (tolerance 1.99e-06, measured: 4 noise floors at each tap)",
        smallest_passing_tolerance=0.02,
        max_abs_diff=0.02,
        first_divergence="layers.2",
        place="layers.2",
        layers=layers,
        diagnosis={"tap": "layers.2", "cause": "the graph's own weights", "fits": [], "tensors": [], "graph": [other]},
        not_compared=1093,
    )  # fmt: skip


PARITY = {
    "exact": exact, "within tolerance": within_tolerance, "differs": differs, "port passes": port_passes,
    "port differs": port_differs, "graph": graph,
}  # fmt: skip
DETECTOR = {
    "detector exact": detector_exact,
    "detector within tolerance": detector_within,
    "detector differs": detector_differs,
}
VERIFY = {"proven": proven, "mismatch": mismatch, "faults": faults, "structure": structure}
