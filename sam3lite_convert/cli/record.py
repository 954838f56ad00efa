"""``sam3lite record``."""

from __future__ import annotations

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.shared import (
    check_of_detector,
    locate,
    needed_checkpoint,
    one_checkpoint,
    text_source,
)
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION


def record(
    source: o.SourceArgument = None,
    checkpoint: o.CheckpointOption = None,
    output: o.RecordTo = None,
    compact: o.Compact = False,
    fingerprint: o.AsFingerprint = False,
    script: o.Script = None,
    component: o.PartOption = o.Compared.text,
    size: o.RecordSize = None,
    image: o.Image = None,
    box: o.Boxes = None,
    seed: o.Seed = None,
    batch: o.Batch = 1,
    length: o.Length = None,
    prompt: o.Prompts = None,
    prompts_file: o.PromptsFile = None,
    partial: o.Partial = False,
    context: o.ContextOption = None,
    causal: o.Causal = False,
    state_dict_key: o.StateDictKey = None,
    strip_prefix: o.StripPrefix = None,
    drop: o.Drop = None,
    reason: o.Reason = None,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    json: o.Json = False,
) -> None:
    """Write what the original computes at every tap, for the author of a port to compute too.

    The file holds the ids, and the activations of the original alone. With --script it is a Python file that records a
    model of yours.

    Examples:
    # The values that a port has to compute:
    sam3lite record s0 --output reference.npz
    # A Python file that records a model of yours:
    sam3lite record --script recorder.py
    """
    from sam3lite_convert.cli import detector as whole
    from sam3lite_convert.commands.parity import read_prompts
    from sam3lite_convert.commands.record import record_fingerprint, record_reference, record_script
    from sam3lite_convert.parity.reference_file import format_of
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.record import fingerprinted, recorded, scripted
    from sam3lite_convert.report.terminal import as_json

    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    name = one_checkpoint(source, checkpoint)
    if script is not None:
        others = [name, output, seed, length, context, mapping, prompts_file, *(prompt or [])]
        others += [size, image, *(box or [])]
        flags = [compact, fingerprint, partial, causal, batch != 1, bool(chosen.options)]
        flags += [component is not o.Compared.text]
        if any(value is not None for value in others) or any(flags):
            raise CannotRun("--script takes no checkpoint and no other option than --json", "usage")
        made = record_script(script)
        (as_json if json else scripted)(made)
        return
    if component is o.Compared.text:
        check_of_detector({"--size": size, "--image": image, "--box": box})
    name = needed_checkpoint(name, "record", "; or --script FILE.py")
    if component is o.Compared.detector:
        whole.refuse(
            {
                "--fingerprint": fingerprint, "--batch": batch if batch != 1 else None, "--length": length,
                "--prompts-file": prompts_file, "--partial": partial, "--causal": causal,
            },
            "{} is of the text encoder alone; leave it out with --component detector",
        )  # fmt: skip
        inputs = whole.detector_options(size, image, prompt, seed, box)
        location = locate(name, repo_id, revision, cache_dir, json, chosen)
        whole.record(location.whole(), load_mappings(mapping), inputs, output, compact, context, json)
        return
    if fingerprint and (compact or seed is not None or batch != 1 or length is not None or prompt or prompts_file):
        raise CannotRun(
            "--fingerprint has ids of its own: it cannot be combined with --compact or options for ids", "usage"
        )
    if output is not None and not fingerprint:
        format_of(output, compact)  # a name that cannot be written needs no download
    mappings = load_mappings(mapping)
    prompts = read_prompts(prompt or [], prompts_file)
    read = text_source(locate(name, repo_id, revision, cache_dir, json, chosen), partial, mappings, causal, json)
    if fingerprint:
        written = record_fingerprint(read, mappings, output, context, causal)
        (as_json if json else fingerprinted)(written)
        return
    document = record_reference(
        read,
        mappings,
        output,
        compact=compact,
        seed=seed,
        batch=batch,
        length=length,
        prompts=prompts,
        context=context,
        causal=causal,
    )
    (as_json if json else recorded)(document)
