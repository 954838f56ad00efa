"""The options of every command: their types, their names on the command line and their help."""

from __future__ import annotations

import glob
import os
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sam3lite_convert.cli.help import GENERAL, HUB, INPUT, OUTPUT, PROOF, SOURCE
from sam3lite_convert.cli.mistakes import is_source
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import ALIASES
from sam3lite_convert.report import verbosity
from sam3lite_convert.report.verbosity import Verbosity

_MEGABYTE = 1_000_000
_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".index.json")


class Component(str, Enum):
    """The part of a checkpoint that is converted."""

    all = "all"
    text = "text"
    video = "video"


class Compared(str, Enum):
    """The part of a checkpoint that is compared."""

    text = "text"
    detector = "detector"


class Device(str, Enum):
    """Where both sides of a comparison run."""

    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(str, Enum):
    """Floating-point dtypes of an output or of a run."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Attention(str, Enum):
    """Attention implementations of the transformers library."""

    eager = "eager"
    sdpa = "sdpa"


class QuantizeMethod(str, Enum):
    """What of a graph becomes int8."""

    int8 = "int8"
    int8_all = "int8-all"


def _whole_number(text: str) -> int:
    """Parser of an option. Raises BadParameter if the text is not a whole number."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number.") from None


def _number(text: str) -> float:
    """Parser of an option. Raises BadParameter if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number.") from None


def _complete_checkpoint(incomplete: str) -> list[str]:
    """Aliases and files that begin so. Where no alias does, nothing: the shell then completes file names itself."""
    aliases = [alias for alias in ALIASES if alias.startswith(incomplete)]
    if not aliases:
        return []
    return aliases + weights_like(incomplete)


def weights_like(start: str) -> list[str]:
    """The files of weights whose paths begin so."""
    return sorted(name for name in glob.glob(glob.escape(start) + "*") if name.endswith(_WEIGHTS))


def _complete_explained(incomplete: str) -> list[str]:
    """As a checkpoint; and the codes of findings, all of which begin with V-."""
    if not incomplete.startswith("V"):
        return _complete_checkpoint(incomplete)
    from sam3lite_convert.verify.codes import CODES

    return [code for code in CODES if code.startswith(incomplete)]


def _complete_candidate(incomplete: str) -> list[str]:
    """The layouts that are shipped, and what runs graphs."""
    return [name for name in (*_complete_layout(""), "onnx", "openvino") if name.startswith(incomplete)]


def _complete_layout(incomplete: str) -> list[str]:
    """The layouts that are shipped."""
    from sam3lite_convert.plan.tables import load_mappings

    return [name for name in load_mappings().names if name.startswith(incomplete)]


def _complete_family(incomplete: str) -> list[str]:
    """The families of checkpoints."""
    from sam3lite_convert.plan.families import FAMILIES

    return [name for name in FAMILIES if name.lower().startswith(incomplete.lower())]


_CHECKPOINT = (
    "Local .pt or .safetensors file, index of shards (*.index.json), or folder that holds one of these; alias (s0, s1, "
    "l; s0-32, s1-32, l-32 for context 32; s0-3.1, s1-3.1, l-3.1, s0-3.1-32, s1-3.1-32, l-3.1-32 for SAM3.1); path in "
    "--repo-id; or address on the Hub: a page, OWNER/NAME[@REVISION], or hf://OWNER/NAME[@REVISION]/PATH."
)


def _choose(context: typer.Context, option: typer.CallbackParam, given: bool) -> bool:
    """Callback of --quiet and --verbose: they hold for whatever a command prints. Raises UsageError if both are set."""
    if given and not context.resilient_parsing:
        asked = Verbosity(option.name)
        if verbosity.chosen() not in (Verbosity.normal, asked):
            context.fail("--quiet cannot be combined with --verbose")
        verbosity.choose(asked)
    return given


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Print only the verdict, and errors; the exit code tells the rest.",
        callback=_choose,
        rich_help_panel=GENERAL,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Also print long tables and lists, which are shortened otherwise.",
        callback=_choose,
        rich_help_panel=GENERAL,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as one JSON document and nothing else.",
        rich_help_panel=GENERAL,
    ),
]
Mapping = Annotated[
    Path | None,
    typer.Option(
        "--mapping",
        metavar="DIR",
        help="Folder with mapping tables (*.ini). A file there replaces the built-in table of the same name; a new "
        "layout-NAME.ini adds a layout. Default: the built-in tables.",
        rich_help_panel=SOURCE,
    ),
]
Causal = Annotated[
    bool,
    typer.Option(
        "--causal",
        help="State that the text encoder uses a causal attention mask, as MobileCLIP-B does. The weights do not show "
        "it. Default: no causal mask.",
        rich_help_panel=SOURCE,
    ),
]
StateDictKey = Annotated[
    str | None,
    typer.Option(
        "--state-dict-key",
        metavar="PATH",
        help="Entry of the file that holds the weights, such as model_ema; the parts of a nested one are joined with "
        "dots. Default: the only one there is.",
        rich_help_panel=SOURCE,
    ),
]
StripPrefix = Annotated[
    list[str] | None,
    typer.Option(
        "--strip-prefix",
        metavar="PREFIX",
        help="Text to take off the front of keys, with its dot: net_g. (repeatable). Keys without it that hold another "
        "copy of the model are left out. Default: prefixes that the mapping tables know.",
        rich_help_panel=SOURCE,
    ),
]
StateDictKeyA = Annotated[
    str | None,
    typer.Option(
        "--state-dict-key-a",
        metavar="PATH",
        help="Entry of A alone that holds the weights. Default: --state-dict-key.",
        rich_help_panel=SOURCE,
    ),
]
StateDictKeyB = Annotated[
    str | None,
    typer.Option(
        "--state-dict-key-b",
        metavar="PATH",
        help="Entry of B alone that holds the weights. Default: --state-dict-key.",
        rich_help_panel=SOURCE,
    ),
]
StripPrefixA = Annotated[
    list[str] | None,
    typer.Option(
        "--strip-prefix-a",
        metavar="PREFIX",
        help="Text to take off the front of keys of A alone (repeatable). Default: --strip-prefix.",
        rich_help_panel=SOURCE,
    ),
]
StripPrefixB = Annotated[
    list[str] | None,
    typer.Option(
        "--strip-prefix-b",
        metavar="PREFIX",
        help="Text to take off the front of keys of B alone (repeatable). Default: --strip-prefix.",
        rich_help_panel=SOURCE,
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        "--drop",
        metavar="PATTERN",
        help="Leave out the keys that this regular expression matches as a whole (repeatable); needs --reason. "
        "Default: what the mapping tables drop.",
        rich_help_panel=SOURCE,
    ),
]
Reason = Annotated[
    list[str] | None,
    typer.Option(
        "--reason",
        metavar="TEXT",
        help="Why the keys of --drop may go; kept in the receipt. Default: nothing is dropped.",
        rich_help_panel=SOURCE,
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Tensor names and shapes of the output: packed, transformers, original, or a layout added with --mapping. "
        "Default: packed; transformers with --component video.",
        autocompletion=_complete_layout,
        rich_help_panel=OUTPUT,
    ),
]
ComponentOption = Annotated[
    Component,
    typer.Option(
        help="What to convert: the detector with its text encoder (all), the text encoder with its projection (text), "
        "or the detector with the video tracker (video, for transformers' Sam3VideoModel).",
        rich_help_panel=SOURCE,
    ),
]
FirstArgument = Annotated[
    str,
    typer.Argument(
        metavar="A",
        help=f"The one that B is held against. {_CHECKPOINT}",
        autocompletion=_complete_checkpoint,
        rich_help_panel=SOURCE,
    ),
]
SecondArgument = Annotated[
    str,
    typer.Argument(
        metavar="B",
        help="A checkpoint as A is; the same file with another --state-dict-key-b, too.",
        autocompletion=_complete_checkpoint,
        rich_help_panel=SOURCE,
    ),
]
_EVERY = "List every tensor."
EveryTensor = Annotated[
    bool,
    typer.Option("--all", help=_EVERY, show_default="the one with the largest relative L2", rich_help_panel=OUTPUT),
]
EveryMatch = Annotated[
    bool, typer.Option("--all", help=_EVERY, show_default="the first 40 that match GLOB", rich_help_panel=OUTPUT)
]
ExitCode = Annotated[
    bool,
    typer.Option(
        "--exit-code",
        help="Exit with code 1 unless both hold the same tensors, equal to the bit.",
        rich_help_panel=PROOF,
    ),
]
SourceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help=_CHECKPOINT,
        autocompletion=_complete_checkpoint,
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]


def _only_checkpoints(context: typer.Context, parameter: Any, values: list[str] | None) -> list[str]:
    """What is no checkpoint among several was meant as the value of an option: an error like any word too many."""
    for value in (values or ())[1:]:
        mixed = os.path.isdir(value) and not all(map(os.path.isdir, values or ()))
        if not context.resilient_parsing and (mixed or not is_source(value)):
            context.fail(f"Got unexpected extra argument ({value})")
    return values or []  # older versions of typer look at the length of what this returns


SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CHECKPOINT...",
        help=_CHECKPOINT,
        autocompletion=_complete_checkpoint,
        callback=_only_checkpoints,
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]
ExportSource = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="What DIR was converted from, to verify it first. Default: go by its conversion.json.",
        autocompletion=_complete_checkpoint,
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]
CheckpointOption = Annotated[
    str | None,
    # Named, since typer 0.27 takes a metavar that is the name in capitals for the name.
    typer.Option(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="The checkpoint, in place of the argument.",
        autocompletion=_complete_checkpoint,
        rich_help_panel=SOURCE,
    ),
]
ParityArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help=f"{_CHECKPOINT} Default: s0.",
        autocompletion=_complete_checkpoint,
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]
RepoId = Annotated[
    str,
    typer.Option(
        "--repo-id",
        metavar="OWNER/NAME",
        help="Hub repository in which aliases and paths are looked up.",
        rich_help_panel=HUB,
    ),
]
Revision = Annotated[
    str,
    typer.Option(
        "--revision",
        metavar="REVISION",
        help="Branch, tag or commit of --repo-id.",
        rich_help_panel=HUB,
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for downloads. Default: the cache of huggingface_hub.",
        rich_help_panel=HUB,
    ),
]
HtmlReport = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Also write the result to this file, as one HTML page with charts.",
        rich_help_panel=OUTPUT,
    ),
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="From the Hub, download only the bytes of the text tensors. Default: all that is needed.",
        rich_help_panel=HUB,
    ),
]
All = Annotated[
    bool,
    typer.Option(
        "--all",
        help="Convert every checkpoint of --repo-id that matches --pattern, each to its own folder.",
        rich_help_panel=SOURCE,
    ),
]
Pattern = Annotated[
    str,
    typer.Option(
        metavar="GLOB",
        help="With --all: paths of the checkpoints; * does not match across folders, and files that "
        "are not checkpoints are left out.",
        rich_help_panel=SOURCE,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder to write. Default: converted/<name of the checkpoint>-<layout>, with -<component> and -<dtype> "
        "behind it where they are not the default. With --all or several checkpoints: parent of the folders that are "
        "written. Default: converted.",
        rich_help_panel=OUTPUT,
    ),
]
CastTo = Annotated[
    Dtype | None,
    typer.Option(
        help="Cast floating-point tensors to this dtype. Default: the dtype of each tensor.",
        rich_help_panel=OUTPUT,
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=_whole_number,
        help="Context in tokens that the model is called with; a longer position table is cut to its first N rows. "
        "Default: what the file's meta or name (ctx16) states, else all rows.",
        rich_help_panel=SOURCE,
    ),
]
FailOnNonfinite = Annotated[
    bool,
    typer.Option(
        "--fail-on-nonfinite",
        help="Exit with code 1 and write nothing if weights hold NaN or infinity. Default: convert and report them.",
        rich_help_panel=OUTPUT,
    ),
]
AllowOverflow = Annotated[
    bool,
    typer.Option(
        "--allow-overflow",
        help="Convert even if --dtype turns finite values into infinity. Default: exit with code 1 and write nothing.",
        rich_help_panel=OUTPUT,
    ),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Split model.safetensors into files of at most this size, for example 500MB or 2GB. Default: one file.",
        rich_help_panel=OUTPUT,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="DIR_OR_REPO",
        help="CLIP tokenizer for the folder: a folder or a Hub repository. Default: openai/clip-vit-base-patch32 for "
        "the layout transformers and with --onnx; otherwise none.",
        rich_help_panel=OUTPUT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the plan and write nothing.",
        rich_help_panel=OUTPUT,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what stands at --output: a file, or a folder that is an earlier conversion.",
        rich_help_panel=OUTPUT,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Take an earlier conversion in the output folder as complete without reading its tensors, also if its "
        "files changed or were copied since. Default: compare them with the checkpoint then.",
        rich_help_panel=OUTPUT,
    ),
]
VerifyOption = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Verify the folder before it is moved into place. Default: verify only with --push-to-hub.",
        rich_help_panel=PROOF,
    ),
]
OnnxOption = Annotated[
    bool,
    typer.Option(
        "--onnx",
        help="Write model.onnx too: the graph of the text encoder over the folder's own tensors. Implies --verify. "
        "Needs the extra onnx.",
        rich_help_panel=OUTPUT,
    ),
]
ParityOption = Annotated[
    bool,
    typer.Option(
        "--parity",
        help="Run parity on the folder and add the result to its model card.",
        rich_help_panel=PROOF,
    ),
]
AllowNotRead = Annotated[
    bool,
    typer.Option(
        "--allow-not-read",
        help="Exit with 0 although the file holds text tensors that no module of the reference reads.",
        rich_help_panel=PROOF,
    ),
]
PushToHub = Annotated[
    bool,
    typer.Option(
        "--push-to-hub",
        help="Verify the folder and push it to the Hub.",
        rich_help_panel=HUB,
    ),
]
HubModelId = Annotated[
    str | None,
    typer.Option(
        metavar="[OWNER/]NAME",
        help="Repository to push to. Default: the name of the checkpoint, under --hub-namespace.",
        rich_help_panel=HUB,
    ),
]
HubNamespace = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER",
        help="With --all: user or organisation to push to. Default: your user name.",
        rich_help_panel=HUB,
    ),
]
HubOverwrite = Annotated[
    bool,
    typer.Option(
        "--hub-overwrite",
        help="Replace another conversion, or a model card or licence file that was edited there, in the repository. "
        "Default: refuse, or keep the file.",
        rich_help_panel=HUB,
    ),
]
Private = Annotated[
    bool,
    typer.Option(
        "--private",
        help="Create the repository as a private one. Default: public.",
        rich_help_panel=HUB,
    ),
]
CreatePr = Annotated[
    bool,
    typer.Option(
        "--create-pr",
        help="Push as a pull request. Default: a commit on the main branch.",
        rich_help_panel=HUB,
    ),
]
CommitMessage = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Commit message of the push. Default: names the checkpoint and the layout.",
        rich_help_panel=HUB,
    ),
]
ExplainedArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|CODE",
        help=f"{_CHECKPOINT} Without KEY: the code of a finding of verify, such as V-TRANSPOSED.",
        autocompletion=_complete_explained,
        rich_help_panel=SOURCE,
    ),
]
KeyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="KEY|GLOB",
        help="Name of a tensor, in the checkpoint or in any layout; or a pattern with *, ? or [...] for several.",
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]
TablesArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help=f"{_CHECKPOINT} Default: show the tables alone.",
        autocompletion=_complete_checkpoint,
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]
GlobArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="GLOB",
        help="List the tensors with a name like this, in the checkpoint or in the layout: '*.layers.3.*qkv*'.",
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]
KeysGlob = Annotated[
    str | None,
    typer.Option("--keys", metavar="GLOB", help="GLOB, as an option. Default: show the rules.", rich_help_panel=OUTPUT),
]
FamilyOption = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar="NAME",
        help="Family of checkpoints whose tables are shown: SAM3-LiteText or SAM3. Default: that of CHECKPOINT, or "
        "SAM3-LiteText.",
        autocompletion=_complete_family,
        rich_help_panel=SOURCE,
    ),
]
FolderArgument = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="Converted folder, by this tool or another one: a local one, or OWNER/NAME[@REVISION] on the Hub.",
        rich_help_panel=SOURCE,
    ),
]
WholeFolder = Annotated[
    bool,
    typer.Option(
        "--whole",
        help="Download a DIR on the Hub to the cache, and compare every value as of a local one. Default: no values.",
        rich_help_panel=HUB,
    ),
]
Converted = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Converted folder to compare with the original: a local one, or OWNER/NAME[@REVISION] on the Hub, which "
        "is downloaded. Default: a conversion made in memory.",
        rich_help_panel=SOURCE,
    ),
]
CandidateOption = Annotated[
    str | None,
    typer.Option(
        metavar="LAYOUT|onnx|openvino",
        help="Layout whose encoder is compared with the original, or what runs the graph in --converted (without it, "
        "the one that would be written): onnx, that is onnxruntime, or openvino. Default: the layout of --converted; "
        "without it packed, or transformers with --as-used and for SAM3 itself, of which there is no packed layout.",
        autocompletion=_complete_candidate,
        rich_help_panel=PROOF,
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What computes the graph of --candidate onnx or openvino, by the runtime's own name: an execution "
        "provider of onnxruntime, a device of OpenVINO. Default: CPUExecutionProvider; CPU.",
        rich_help_panel=PROOF,
    ),
]
GraphOptimisation = Annotated[
    bool | None,
    typer.Option(
        "--graph-optimisation/--no-graph-optimisation",
        help="Whether onnxruntime may rewrite the graph of --candidate onnx. Default: it may.",
        rich_help_panel=PROOF,
    ),
]
DebugIntermediates = Annotated[
    bool,
    typer.Option(
        "--debug-intermediates",
        help="Print one row for each layer. Default: the outputs only.",
        rich_help_panel=OUTPUT,
    ),
]
AttentionOption = Annotated[
    Attention,
    typer.Option(
        help="Attention implementation of the converted encoder.",
        rich_help_panel=PROOF,
    ),
]
RunIn = Annotated[
    Dtype | None,
    typer.Option(
        help="Dtype in which both encoders run. Default: float32, or the dtype of --converted.",
        rich_help_panel=PROOF,
    ),
]
_PART = "Part of the model: its text encoder (text), or the whole detector (detector)."
PartOption = Annotated[Compared, typer.Option("--component", help=_PART, rich_help_panel=SOURCE)]
JudgedPart = Annotated[
    Compared | None,
    typer.Option("--component", help=_PART, show_default="told by the names in FILE", rich_help_panel=SOURCE),
]
_SIZE = "With --component detector: side of the square that the detector sees, in pixels, a multiple of its patches."
Size = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=_whole_number,
        help=_SIZE,
        show_default="336, for speed, or the size of the graphs in --converted",
        rich_help_panel=INPUT,
    ),
]
RecordSize = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="N",
        parser=_whole_number,
        help=_SIZE,
        show_default="336, for speed",
        rich_help_panel=INPUT,
    ),
]
GraphSize = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="N",
        parser=_whole_number,
        help=_SIZE,
        show_default="the detector's own, 1008 of a released one",
        rich_help_panel=INPUT,
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With --component detector: the picture. PNG, JPEG and others need the extra 'pictures'; .npy and .ppm "
        "do not. Default: a built-in one.",
        rich_help_panel=INPUT,
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="X,Y,W,H",
        help="With --component detector: a box around what is wanted, in pixels of the picture; x and y are its top "
        "left corner. May be given several times. Default: no box.",
        rich_help_panel=INPUT,
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option(
        "--device",
        help="With --component detector: where both sides run. TF32 is off.",
        rich_help_panel=PROOF,
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        parser=_number,
        help="Largest max abs diff that passes. Default: 4 times the noise floor measured at each tap.",
        rich_help_panel=PROOF,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=_whole_number,
        help="Seed of random token ids. Default: a fixed short prompt, as ids.",
        rich_help_panel=INPUT,
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        metavar="N",
        parser=_whole_number,
        help="Number of rows of token ids.",
        rich_help_panel=INPUT,
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=_whole_number,
        help="Sequence length in tokens. Default: the context length.",
        rich_help_panel=INPUT,
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Prompt to run in place of token ids; may be given several times. Needs the extra 'prompts'.",
        rich_help_panel=INPUT,
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Text file with one prompt on each line. Needs the extra 'prompts'.",
        rich_help_panel=INPUT,
    ),
]
SelfTest = Annotated[
    bool,
    typer.Option(
        "--self-test",
        help="Put known conversion errors into the candidate and check that each is found.",
        rich_help_panel=PROOF,
    ),
]
SaveActivations = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Save the activations of both encoders to this safetensors file.",
        rich_help_panel=OUTPUT,
    ),
]
Judge = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Compute the verdict from a file of --save-activations, and run no encoder; with --checkpoint, from what "
        "a port computed, as sam3lite judge does.",
        rich_help_panel=SOURCE,
    ),
]
ActivationsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Activations of a port by tap: .safetensors, .npz, a folder of .npy files, or a dump of transformers' "
        "model debugger. sam3lite record lists the taps.",
        rich_help_panel=SOURCE,
    ),
]
PortName = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="TEXT",
        help="What the port is called in the result. Default: the name of its file.",
        rich_help_panel=PROOF,
    ),
]
IdsFile = Annotated[
    Path | None,
    typer.Option(
        "--ids",
        metavar="FILE",
        help="Token ids that the port ran on, (batch, sequence): .npy, .json, or a file with input_ids. Default: those "
        "of its file, or else the default input of parity, which is said.",
        rich_help_panel=INPUT,
    ),
]
RecordTo = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="File to write: .safetensors or .npz, or .json with --compact; of a detector .safetensors. Default: "
        "<name of the checkpoint>-reference.safetensors, -reference.json with --compact, -fingerprint.json with "
        "--fingerprint, -detector.safetensors with --component detector.",
        rich_help_panel=OUTPUT,
    ),
]
Compact = Annotated[
    bool,
    typer.Option(
        "--compact",
        help="Write norm, largest value and 64 values at stated positions of each tap as JSON, not whole activations. "
        "Of a detector: figures and 4,096 values of each tap, as .safetensors.",
        rich_help_panel=OUTPUT,
    ),
]
Script = Annotated[
    Path | None,
    typer.Option(
        "--script",
        metavar="FILE.py",
        help="Write a Python file that records what a model computes, in any environment with torch and safetensors. "
        "Takes no checkpoint and no other option than --json.",
        rich_help_panel=OUTPUT,
    ),
]
FingerprintFile = Annotated[
    Path | None,
    typer.Option(
        "--fingerprint",
        metavar="JSON",
        help="A fingerprint.json, or a converted folder that holds one, to judge by. Default: judge by the checkpoint.",
        rich_help_panel=SOURCE,
    ),
]
AsFingerprint = Annotated[
    bool,
    typer.Option(
        "--fingerprint",
        help="Write a fingerprint: three prompts, and norm, largest value and 64 values of each tap. With it sam3lite "
        "judge --fingerprint judges a port without the checkpoint.",
        rich_help_panel=OUTPUT,
    ),
]
AsUsed = Annotated[
    bool,
    typer.Option(
        "--as-used",
        help="Also compare how the model behaves when called through transformers, with its tokenizer and padding, on "
        "built-in prompts or yours.",
        rich_help_panel=PROOF,
    ),
]
StrictBehaviour = Annotated[
    bool,
    typer.Option(
        "--strict-behaviour",
        help="As --as-used, and exit with code 1 if the behaviour differs.",
        rich_help_panel=PROOF,
    ),
]
OriginalRepo = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Your clone of EfficientSAM3, to be run as the reference. Executes the modules of its text encoder, which "
        "are listed first, and no other file. Default: the implementation shipped with this tool.",
        rich_help_panel=SOURCE,
    ),
]
RestoredFolder = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="Converted folder, as it was or trained further: a local one, or OWNER/NAME[@REVISION] on the Hub, which "
        "is downloaded.",
        rich_help_panel=SOURCE,
    ),
]
RestoredSource = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="The checkpoint that DIR was converted from: what DIR does not hold, or holds rounded and unchanged, is "
        "taken from there. Default: what only the checkpoint holds is left out.",
        autocompletion=_complete_checkpoint,
        show_default=False,
        rich_help_panel=SOURCE,
    ),
]
RestoreTo = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="File to write: .pt, .pth, .bin or .ckpt as torch.save writes them, or .safetensors. Default: none; it "
        "has to be given.",
        rich_help_panel=OUTPUT,
    ),
]
DemoOutput = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="New folder to keep the files of the demo in. Default: they are deleted.",
        rich_help_panel=OUTPUT,
    ),
]


def parse_size(text: str) -> int:
    """``500MB``, ``2GB``, ``1.5GiB`` or plain bytes, to bytes.

    Raises CannotRun for anything else, and for less than 1 MB without a unit: ``500`` is a mistake for ``500MB``.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMG]?)(i?)(B?)\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0 or (match[3] and not match[2]):
        raise CannotRun(f"--max-shard-size {text!r} is not a size; write it like 500MB, 2GB or 1GiB", "bad_size")
    base = 1024 if match[3] else 1000
    size = int(min(float(match[1]), 1e18) * base ** " kmg".index(match[2].lower() or " "))
    if size < _MEGABYTE and not match[2] and not match[4]:
        raise CannotRun(
            f"--max-shard-size {match[1]} has no unit; write {match[1]}MB, or {match[1]}B for bytes", "bad_size"
        )
    if size < 1:
        raise CannotRun(f"--max-shard-size {text!r} is less than one byte", "bad_size")
    return size


def layout_of(layout: str | None, component: Component) -> str:
    """The layout that is asked for, or the default of the component."""
    return layout or ("transformers" if component == Component.video else "packed")


Markdown = Annotated[
    bool,
    typer.Option(
        "--markdown",
        help="Print the result in short, as Markdown: for the summary of a CI job, or an issue.",
        rich_help_panel=OUTPUT,
    ),
]
Quantize = Annotated[
    QuantizeMethod | None,
    typer.Option(
        "--quantize",
        help="Also write a graph with int8 weights of its own, of the matrices (int8) or the token table too "
        "(int8-all), and measure what it loses, on --prompts-file or 1,000 built-in noun phrases. Default: none.",
        rich_help_panel=OUTPUT,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        parser=_number,
        help="With --quantize: greatest relative L2 that a tap of the quantised graph may have; over it, the exit code "
        "is 1. Default: 0.01, which is only reported.",
        rich_help_panel=OUTPUT,
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Do not ask the Hub. Default: ask it, for at most 5 s.", rich_help_panel=HUB),
]
Imports = Annotated[
    bool,
    typer.Option(
        "--imports",
        help="Also import every package, in a process of its own; takes some seconds. Default: look at versions only.",
        rich_help_panel=PROOF,
    ),
]
