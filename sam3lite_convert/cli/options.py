"""The options of every command: their types, their names on the command line and their help."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sam3lite_convert.errors import CannotRun


class Component(str, Enum):
    """What of a checkpoint is converted."""

    all = "all"
    text = "text"


class Dtype(str, Enum):
    """Floating types of an output or a run."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Attention(str, Enum):
    """How the transformers library computes attention."""

    eager = "eager"
    sdpa = "sdpa"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Mapping = Annotated[
    Path | None, typer.Option("--mapping", help="Folder with mapping tables; a table there replaces ours of its name.")
]
Causal = Annotated[
    bool, typer.Option("--causal", help="State that the text encoder masks causally (weights cannot tell).")
]
Layout = Annotated[str, typer.Option(help="packed, transformers, original, or one that --mapping adds.")]
ComponentOption = Annotated[Component, typer.Option(help="The whole detector, or its text encoder alone.")]
CheckpointArgument = Annotated[
    str,
    typer.Argument(metavar="CHECKPOINT", help="A local file, an alias (s0, s1, l, s0-32, ...) or a path on the Hub."),
]
CheckpointOption = Annotated[
    str | None, typer.Option(help="A local file, an alias (s0, s1, l, ...) or a path on the Hub.")
]
RepoId = Annotated[str, typer.Option("--repo-id", help="Hub repository where names are looked up.")]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit of that repository.")]
CacheDir = Annotated[Path | None, typer.Option(help="Where downloads are kept; default the Hub library's cache.")]
HtmlReport = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with charts, to be passed on.")
]
Partial = Annotated[bool, typer.Option("--partial", help="From the Hub, fetch the text tensors' bytes alone.")]
All = Annotated[bool, typer.Option("--all", help="Every checkpoint of the Hub repository, one folder each.")]
Pattern = Annotated[str, typer.Option(help="Which ones --all takes.")]
OutputOption = Annotated[
    Path | None,
    typer.Option(help="Folder to write, default converted/<stem>-<layout>; with --all the folder of all folders."),
]
CastTo = Annotated[Dtype | None, typer.Option(help="Cast floating tensors; default: as stored.")]
ContextOption = Annotated[int | None, typer.Option(help="Keep the first N rows of the text position table.")]
FailOnNonfinite = Annotated[
    bool, typer.Option("--fail-on-nonfinite", help="Refuse weights that hold infinities or not-a-numbers.")
]
AllowOverflow = Annotated[
    bool, typer.Option("--allow-overflow", help="Convert although --dtype makes values infinite.")
]
MaxShardSize = Annotated[str | None, typer.Option(help="Cut model.safetensors, for example 500MB.")]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="DIR_OR_REPO", help="CLIP's tokenizer, for the transformers layout; default from the Hub."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Plan, show, write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing converted folder.")]
VerifyOption = Annotated[
    bool | None,
    typer.Option("--verify/--no-verify", help="Prove the folder before it counts; default when pushing."),
]
ParityOption = Annotated[bool, typer.Option("--parity", help="Run parity on it, with a table in the model card.")]
PushToHub = Annotated[bool, typer.Option("--push-to-hub", help="Push what was converted and verified.")]
HubModelId = Annotated[str | None, typer.Option(help="Where to; default <your user name>/<stem>.")]
HubNamespace = Annotated[str | None, typer.Option(help="Of --all: where to; default your user name.")]
HubOverwrite = Annotated[
    bool, typer.Option("--hub-overwrite", help="Also replace another conversion, or an edited card, there.")
]
Private = Annotated[bool, typer.Option("--private", help="Make the new repository private.")]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Push as a pull request.")]
CommitMessage = Annotated[str | None, typer.Option(help="Of the commit that pushes.")]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="A source key or a target key.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A converted folder, also one of another tool.")]
VerifiedCheckpoint = Annotated[str, typer.Option(help="The checkpoint that it was converted from.")]
ParityCheckpoint = Annotated[str | None, typer.Option(help="The original; default s0, from the Hub.")]
Converted = Annotated[Path | None, typer.Option(metavar="DIR", help="Compare what is in this folder.")]
CandidateOption = Annotated[
    str | None,
    typer.Option(metavar="LAYOUT", help="Encoder to compare; default packed, or DIR's, or what --as-used calls."),
]
DebugIntermediates = Annotated[bool, typer.Option("--debug-intermediates", help="A row for every layer.")]
AttentionOption = Annotated[Attention, typer.Option(help="Of the candidate.")]
RunIn = Annotated[Dtype | None, typer.Option(help="Both sides; default float32, or what DIR was cast to.")]
Tolerance = Annotated[float | None, typer.Option(help="In place of the measured noise floors.")]
Seed = Annotated[int | None, typer.Option(help="Random ids instead of the dummy input.")]
Batch = Annotated[int, typer.Option(help="Rows of ids.")]
Length = Annotated[int | None, typer.Option(help="Sequence length; default the context.")]
Prompts = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt; repeatable (extra: prompts).")]
PromptsFile = Annotated[Path | None, typer.Option(metavar="FILE", help="One prompt a line.")]
SelfTest = Annotated[bool, typer.Option("--self-test", help="Make known faults, show that each is found.")]
SaveActivations = Annotated[Path | None, typer.Option(metavar="FILE", help="Keep both sides' activations.")]
Judge = Annotated[Path | None, typer.Option(metavar="FILE", help="The verdict again, from saved activations.")]
AsUsed = Annotated[
    bool,
    typer.Option(
        "--as-used",
        help="Also: does transformers, as it is called, do what the original does? Over built-in prompts, or yours.",
    ),
]
StrictBehaviour = Annotated[bool, typer.Option("--strict-behaviour", help="--as-used, and exit 1 where that differs.")]
OriginalRepo = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Your checkout of EfficientSAM3 as the reference; runs its code."),
]
DemoOutput = Annotated[Path | None, typer.Option(help="Keep the demo's files in this new folder.")]


def parse_size(text: str) -> int:
    """``500MB``, ``2GB``, ``1.5GiB`` or plain bytes, to bytes. Raises CannotRun for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMG]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise CannotRun(f"--max-shard-size {text!r}: write it like 500MB, 2GB or 1GiB", "bad_size")
    base = 1024 if match[3] else 1000
    size = int(float(match[1]) * base ** " kmg".index(match[2].lower() or " "))
    if size < 1:
        raise CannotRun(f"--max-shard-size {text!r}: less than a byte", "bad_size")
    return size
