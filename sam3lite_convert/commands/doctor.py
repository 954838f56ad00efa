"""Examines the surroundings that the tool runs in. What is broken becomes a line of the record, and ends nothing."""

from __future__ import annotations

import getpass
import importlib.util
import os
import platform
import re
import shutil
import subprocess  # nosec B404  imports packages in a process of its own, which they may end
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sam3lite_convert.errors import CannotRun, in_short
from sam3lite_convert.figures import human_bytes, plural
from sam3lite_convert.files import existing
from sam3lite_convert.hub.log import masked_url, without
from sam3lite_convert.opened import read_small_text
from sam3lite_convert.progress import bar
from sam3lite_convert.quoting import shell_line
from sam3lite_convert.records.doctor import Check, DoctorDocument, Status
from sam3lite_convert.unforeseen import expected

if TYPE_CHECKING:
    from sam3lite_convert.hub import reach

HUB_SECONDS = 5.0  # for all that the Hub is asked
_IMPORT_SECONDS = 120.0
_DISTRIBUTION = "sam3lite-convert"
_ANEW = "install this tool and what it needs anew, in an environment of its own"
_CHECKPOINT = 2_300_000_000  # bytes of a released checkpoint, and of its conversion
_FOR_A_FILE = " for a released checkpoint"
_NO_TOKEN = "none; it is needed for private and gated repositories, and to push: hf auth login"
_LOG_IN_AGAIN = "log in again with 'hf auth login', set HF_TOKEN to a valid token, or unset it"
_TEMPORARY = 100_000_000  # bytes
_MEMORY = 500_000_000  # bytes that a conversion takes, torch included
_ADDRESSES = 2_000_000_000  # bytes of address space that torch fits into

# Distribution -> the module that it is imported as, where the names differ.
_MODULES = {"pillow": "PIL"}
# What does not work without a package that pip installs with the tool; without the others nothing does.
_WITHOUT = {
    "torch": "inspect, convert and verify work without it, most other commands do not",
    "jinja2": "only --report needs it",
}
# The extras for users, and what needs them.
EXTRAS = {
    "transformers": "parity of the layout transformers, --as-used, loading a folder of it",
    "prompts": "--prompt and --prompts-file",
    "pictures": "--image with PNG and JPEG, pictures on the detector's page",
    "onnx": "export onnx, convert --onnx, --candidate onnx, verifying graphs",
    "openvino": "--candidate openvino",
    "tour": "the notebook docs/tour.ipynb",
}
_VISION = "torchvision"
_FOR_VISION = "the code with the processor of transformers in the card of the layout transformers"
_FIT_VISION = "install the torchvision that was released with this torch"
# Variables that change what the tool or its libraries do. Tokens are no part of it.
_VARIABLES = (
    "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HUB_ETAG_TIMEOUT",
    "HF_HUB_DOWNLOAD_TIMEOUT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "TMPDIR", "PYTHONPATH",
)  # fmt: skip
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")

Checks = Iterator[Check]
Group = Literal["tool", "packages", "extras", "imports", "disk", "memory", "hub"]


class _Requirement(NamedTuple):
    """A package that the tool or an extra needs here. ``claim``: as pip takes it: onnx>=1.17."""

    name: str
    claim: str
    allows: Callable[[str], bool]


def examine(
    repo_id: str, cache_dir: Path | None = None, offline: bool = False, imports: bool = False
) -> DoctorDocument:
    """Examine versions, extras, disk, memory and the Hub; raises nothing for what it finds.

    offline: do not ask the Hub. imports: also import each package, in a process of its own.
    """
    version, tables = _version(), _Tables()
    checks = [
        *_guarded("tool", "tool", lambda: _tool(version, tables)),
        *_guarded("packages", "packages", _packages),
        *_guarded("extras", "extras", _extras),
        *(_guarded("imports", "imports", _imports) if imports else ()),
        *_guarded("folders", "disk", lambda: _disk(cache_dir)),
        *_guarded("memory", "memory", _memory),
        *_guarded("Hub", "hub", lambda: _hub(repo_id, offline)),
    ]
    clean = _cleaner()
    checks = [replace(c, found=clean(c.found), advice=clean(c.advice) if c.advice else None) for c in checks]
    said = {c.status for c in checks}
    return DoctorDocument(
        version=version,
        tables_sha256=tables.sha256,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _installed(name) for name in _names()},
        verdict="problem" if "problem" in said else "warning" if "warning" in said else "ok",
        checks=tuple(checks),
    )


def _guarded(name: str, group: Group, checks: Callable[[], Checks]) -> Checks:
    """The checks, and a problem in place of those that an exception kept from being made."""
    try:
        yield from checks()
    except Exception as fault:
        error = expected(fault)
        message = in_short(fault) if error.code in ("internal", "broken_package") else error.message
        found = f"could not be examined: {message}"
        yield Check(name=name, group=group, status="problem", found=found, advice=_ANEW)


# ---- the tool and its packages ---------------------------------------------------------------------------


class _Tables:
    sha256: str | None = None


def _version() -> str:
    from sam3lite_convert import __version__

    return __version__


def _tool(version: str, tables: _Tables) -> Checks:
    def check(name: str, status: Status, found: str, advice: str | None = None) -> Check:
        return Check(name=name, group="tool", status=status, found=found, advice=advice)

    installed = _installed(_DISTRIBUTION)
    if installed is None:
        how = "pip install -e . in the checkout, so that versions can be compared with what it claims"
        yield check(_DISTRIBUTION, "warning", f"{version}, run without being installed", how)
    elif installed != version:
        found = (
            f"{version}, while {installed} is installed: another copy comes first on PYTHONPATH, or the checkout moved"
        )
        yield check(
            _DISTRIBUTION, "warning", found, f"pip install {_DISTRIBUTION}=={version}, or pip install -e . again"
        )
    else:
        yield check(_DISTRIBUTION, "ok", version)
    try:
        from sam3lite_convert.plan.tables import load_mappings

        tables.sha256 = load_mappings().sha256
        yield check("mapping tables", "ok", tables.sha256[:12])
    except Exception as fault:
        yield check("mapping tables", "problem", f"cannot be read: {in_short(fault)}", _ANEW)
    tested = _tested_pythons()
    found = f"{platform.python_version()} ({platform.python_implementation()})"
    if tested and ".".join(platform.python_version_tuple()[:2]) not in tested:
        yield check("python", "warning", f"{found}, which is not tested", f"tested are {', '.join(tested)}")
    else:
        yield check("python", "ok", found)
    if platform.system() == "Linux":
        yield check("platform", "ok", platform.platform())
    else:
        yield check("platform", "warning", f"{platform.platform()}; only Linux is tested")
    yield check("processor", "ok", _processor())
    for name in _VARIABLES:
        if value := os.environ.get(name):
            yield check(name, "note", masked_url(value) if "://" in value or "@" in value else value)


def _tested_pythons() -> list[str]:
    """The versions of Python that the package names."""
    with suppress(metadata.PackageNotFoundError):
        lines = metadata.metadata(_DISTRIBUTION).get_all("Classifier") or []
        return [m[1] for line in lines if (m := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))]
    return []


def _processor() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{platform.machine()}, {plural(usable, 'core')}"
    if (kernels := _kernels()) is not None:
        found += f", {kernels}"
    return found


def _kernels() -> str | None:
    """The instructions that torch chooses its kernels by; None where the system does not tell."""
    with suppress(CannotRun):
        match = re.search(r"^flags\s*:(.*)$", read_small_text(Path("/proc/cpuinfo"), 16 << 20), re.MULTILINE)
        flags = set(match[1].split()) if match else set()
        if flags >= {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}:
            return "AVX512"
        if flags:
            return "AVX2" if flags >= {"avx2", "fma"} else "no AVX2"
    return None


def _requirements(extra: str | None = None) -> list[_Requirement]:
    """What the installed package claims to need here, or what one of its extras adds. Raises ImportError."""
    from packaging.requirements import Requirement

    found = []
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires(_DISTRIBUTION) or []:
            r = Requirement(line)
            if r.name == _DISTRIBUTION:  # an extra that takes others of its own in
                continue
            always = r.marker is None or r.marker.evaluate({"extra": ""})
            if always if extra is None else not always and r.marker and r.marker.evaluate({"extra": extra}):
                allows = partial(r.specifier.contains, prereleases=True)
                found.append(_Requirement(r.name, f"{r.name}{r.specifier}", allows))
    return found


def _names() -> list[str]:
    """Every package that the tool or an extra for users needs here; none if that cannot be told."""
    with suppress(Exception):
        return [r.name for extra in (None, *EXTRAS) for r in _requirements(extra)]
    return []


def _installed(name: str) -> str | None:
    """The version of a package, without importing it; None if it is not installed."""
    try:
        # A damaged installation has metadata without a version.
        return str(metadata.version(name) or "") or None
    except Exception:
        return None


def _module(name: str) -> str:
    return _MODULES.get(name.lower(), name.replace("-", "_"))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _state(r: _Requirement) -> tuple[str | None, str]:
    """The version of a package that is installed and as new as is claimed, or None; and what is to be said of it."""
    version = _installed(r.name)
    if version is None:
        return None, "missing"
    if not _is_there(_module(r.name)):
        return None, f"{version} is installed, but there is no module {_module(r.name)}"
    try:
        new_enough = r.allows(version)
    except ValueError:
        return None, f"its version cannot be read: {version[:50]}"
    return (version, version) if new_enough else (None, f"{version} does not fit {r.claim}, the lowest that is tested")


def _packages() -> Checks:
    for r in _requirements():
        version, found = _state(r)
        why = _WITHOUT.get(r.name.lower(), "nothing works without it")
        yield Check(
            name=r.name,
            group="packages",
            status="ok" if version else "problem",
            found=found if version else f"{found}; {why}",
            advice=None if version else shell_line(["pip", "install", r.claim]),
        )


def _extras() -> Checks:
    for extra, purpose in EXTRAS.items():
        needed = _requirements(extra)
        if not needed:
            continue
        states = {r.name: _state(r) for r in needed}
        wrong = [f"{name} {found}" for name, (version, found) in states.items() if version is None]
        absent = all(_installed(r.name) is None for r in needed)
        missing = all(found == "missing" for version, found in states.values() if version is None)
        have = ", ".join(f"{name} {found}" for name, (_, found) in states.items())
        yield Check(
            name=extra,
            group="extras",
            status="ok" if not wrong else "note" if missing else "warning",
            found=f"installed: {have}" if not wrong else f"{'missing' if absent else have}; for {purpose}",
            advice=shell_line(["pip", "install", f"{_DISTRIBUTION}[{extra}]"]) if wrong else None,
        )
    # No extra brings it: which release fits depends on the torch that is here.
    fitted = _installed(_VISION)
    yield Check(
        name=_VISION,
        group="extras",
        status="ok" if fitted else "note",
        found=f"installed: {fitted}" if fitted else f"missing; for {_FOR_VISION}",
        advice=None if fitted else _FIT_VISION,
    )


# ---- importing them --------------------------------------------------------------------------------------

# Runs in a process of its own, with the module paths of this one: a package in the current folder is not meant.
_IMPORTER = """
import sys
modules = sys.argv[2 + int(sys.argv[1]):]
sys.path[:] = sys.argv[2:2 + int(sys.argv[1])]
import importlib, json, time
out = sys.stdout
sys.stdout = sys.stderr
for module in modules:
    begun, fault, more = time.monotonic(), None, ""
    try:
        found = importlib.import_module(module)
        if module == "torch":
            more = "%s kernels, %d threads, %s" % (
                found.backends.cpu.get_cpu_capability(), found.get_num_threads(),
                "CUDA " + str(found.version.cuda) if found.cuda.is_available() else "no CUDA device")
    except BaseException as error:
        fault = "%s: %s" % (type(error).__name__, error)
    print(json.dumps([module, fault, more, time.monotonic() - begun]), file=out, flush=True)
"""


def _imports() -> Checks:
    names = {_module(name): name for name in dict.fromkeys([*_names(), _VISION]) if _installed(name)}
    left = list(names)
    while left:
        results, ended = _import(left)
        for module, fault, more, seconds in results:
            took = f"imported in {seconds:.1f} s"
            found = f"cannot be imported: {_short(fault)}" if fault else f"{took}; {more}" if more else took
            yield _imported(names[module], found, fault is not None)
        left = left[len(results) :]
        if left:  # it ended the process
            yield _imported(names[left[0]], f"cannot be imported: {ended}", True)
            left = left[1:]


def _imported(name: str, found: str, broken: bool) -> Check:
    if broken and name == _VISION:
        how = f"{_FIT_VISION}, or uninstall it: transformers imports it where it is installed"
        return Check(name=name, group="imports", status="warning", found=found, advice=how)
    how = shell_line(["pip", "install", "--force-reinstall", name])
    advice = f"{how}, or {_ANEW}" if broken else None
    return Check(name=name, group="imports", status="problem" if broken else "ok", found=found, advice=advice)


def _import(modules: list[str]) -> tuple[list[tuple[str, str | None, str, float]], str]:
    """Import modules one after another in a new process: what came of each, and how the process ended."""
    from sam3lite_convert.json_text import parse_json

    arguments = [sys.executable, "-c", _IMPORTER, str(len(sys.path)), *sys.path, *modules]
    try:
        with bar(f"importing {len(modules)} packages" if len(modules) > 1 else f"importing {modules[0]}", None):
            done = subprocess.run(  # nosec B603  of this Python, with names of modules from pyproject's extras
                arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=_IMPORT_SECONDS, check=False
            )
        output, ended = done.stdout, f"the process ended with the code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, ended = late.stdout or b"", f"it took more than {_IMPORT_SECONDS:.0f} seconds"
    results = []
    for line in output.decode("utf-8", "replace").splitlines():
        with suppress(Exception):
            module, fault, more, seconds = parse_json(line)
            results.append((module, fault, more, seconds))
    return results, ended


def _short(text: object) -> str:
    return in_short(Exception(str(text)))


# ---- disk and memory -------------------------------------------------------------------------------------


def _disk(cache_dir: Path | None) -> Checks:
    yield from _guarded("current folder", "disk", lambda: _place("current folder", Path.cwd(), _CHECKPOINT))
    yield from _guarded("temporary folder", "disk", _temporary)
    yield from _guarded("Hub cache", "disk", lambda: _place("Hub cache", cache_dir or _hub_cache(), _CHECKPOINT))


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _temporary() -> Checks:
    try:
        place = tempfile.gettempdir()  # tries to write there
    except FileNotFoundError:
        found, advice = "there is none that can be written to", "set TMPDIR to a folder that can be written to"
        yield Check(name="temporary folder", group="disk", status="problem", found=found, advice=advice)
        return
    yield from _place("temporary folder", Path(place), _TEMPORARY)


def _place(name: str, place: Path, needed: int) -> Checks:
    """A folder, which need not exist: its file system, whether it can be written to, and whether ``needed`` bytes
    fit."""

    def check(status: Status, found: str, advice: str | None = None) -> Check:
        return Check(name=name, group="disk", status=status, found=found, advice=advice)

    there = existing(place)
    usage = shutil.disk_usage(there)
    kind = _file_system(there)
    found = f"{place}: {human_bytes(usage.free)} free of {human_bytes(usage.total)}{f', {kind}' if kind else ''}"
    if not there.is_dir():
        yield check("problem", f"{found}; {there} is not a folder", "give another place for it")
    elif not os.access(there, os.W_OK | os.X_OK):
        how = "--output DIR" if name == "current folder" else "--cache-dir DIR, or HF_HUB_CACHE,"
        yield check("problem", f"{found}; it cannot be written to", f"use another folder: {how} names one")
    elif usage.free < needed:
        what = f"{human_bytes(needed)} are needed"
        yield check("warning", f"{found}; {what}{_FOR_A_FILE if needed == _CHECKPOINT else ''}", "free some space")
    else:
        yield check("ok", found)


def _file_system(place: Path) -> str | None:
    """The kind of file system that holds a folder; None where the system does not tell."""
    with suppress(CannotRun, OSError):
        real, best, kind = os.path.realpath(place), "", None
        for line in read_small_text(Path("/proc/self/mounts"), 4 << 20).splitlines():
            _, mount, name, *_ = line.split(" ")
            mount = mount.encode().decode("unicode_escape") if "\\" in mount else mount
            if len(mount) >= len(best) and (real == mount or real.startswith(mount.rstrip("/") + "/")):
                best, kind = mount, name
        return kind
    return None


def _memory() -> Checks:
    total, free = _memory_of_machine()
    limit = _memory_of_container()
    if total is not None:
        found = f"{human_bytes(total)}, of which {human_bytes(free)} are available"
        if limit is not None and limit < total:
            found += f"; a limit of {human_bytes(limit)} for this container"
        low = min(free, limit if limit is not None else free) < _MEMORY
        yield Check(
            name="memory",
            group="memory",
            status="warning" if low else "ok",
            found=found,
            advice=f"end other programs: a conversion takes up to {human_bytes(_MEMORY)}, parity more" if low else None,
        )
    with suppress(ImportError):  # Windows
        import resource

        addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
        unlimited = addresses == resource.RLIM_INFINITY
        low = not unlimited and addresses < _ADDRESSES
        yield Check(
            name="ulimit -v",
            group="memory",
            status="warning" if low else "ok",
            found="no limit" if unlimited else human_bytes(addresses),
            advice="raise it, or remove it (ulimit -v unlimited): libraries end the process that they get no memory in"
            if low
            else None,
        )


def _memory_of_machine() -> tuple[int | None, int]:
    """Bytes in all, and bytes that a program could get; None where the system does not tell."""
    with suppress(CannotRun):
        rows: dict[str, str] = dict(
            re.findall(r"^(\w+):\s+(\d+) kB$", read_small_text(Path("/proc/meminfo"), 1 << 20), re.MULTILINE)
        )
        if "MemTotal" in rows:
            return 1024 * int(rows["MemTotal"]), 1024 * int(rows.get("MemAvailable", "0"))
    return None, 0


def _memory_of_container() -> int | None:
    """The limit of this control group in bytes; None if there is none."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(CannotRun):
            text = read_small_text(Path(name), 1000).strip()
            return int(text) if text.isdigit() else None
    return None


# ---- the Hub ---------------------------------------------------------------------------------------------


def _hub(repo_id: str, offline: bool) -> Checks:
    def check(name: str, status: Status, found: str, advice: str | None = None) -> Check:
        return Check(name=name, group="hub", status=status, found=found, advice=advice)

    for name in (v for proxy in _PROXIES for v in (proxy, proxy.lower())):
        if value := os.environ.get(name):
            yield check(name, "note", ",".join(map(masked_url, value.split(","))))
    from sam3lite_convert.hub import reach

    try:
        where = reach.endpoint()
    except CannotRun as fault:
        yield check("Hub", "problem", fault.message, "set HF_ENDPOINT to https://HOST, or unset it")
        return
    try:
        origin = reach.token_origin()
    except CannotRun as fault:
        yield check("token", "problem", f"the file of the token cannot be read: {fault.message}", _LOG_IN_AGAIN)
        return
    if origin is None:
        yield check("token", "note", _NO_TOKEN)
    if offline or reach.is_offline():
        why = "--offline" if offline else "HF_HUB_OFFLINE is set"
        if origin is not None:
            yield check("token", "note", f"from {origin}; it was not tried")
        yield check("Hub", "note", f"{where} was not asked: {why}")
        return
    with bar(f"asking the Hub, for {HUB_SECONDS:g} seconds at most", None):
        info, user = reach.ask(repo_id, origin is not None, HUB_SECONDS)
    answered = [a for a in (info, user) if a and a.answered]
    if user is not None:
        if user.value is not None:
            yield check("token", "ok", f"from {origin}: of the user {user.value}")
        elif user.fault is not None and user.fault.code == "no_access":
            yield check("token", "problem", f"from {origin}: {user.fault.message}", _LOG_IN_AGAIN)
        else:
            yield check("token", "note", f"from {origin}; whose it is could not be asked")
    if not answered:
        why = _why(info)
        advice = "check the network, HF_ENDPOINT and your proxy; --offline leaves the Hub out"
        yield check("Hub", "problem", why if where in why else f"{where}: {why}", advice)
        return
    yield check("Hub", "ok", f"{where} answers in {1000 * min(a.seconds for a in answered):.0f} ms")
    if info.value is not None:
        yield check("repository", "ok", info.value)
    else:
        yield check("repository", "problem", f"{repo_id}: {_why(info)}")


def _why(answer: reach.Answer) -> str:
    return answer.fault.message if answer.fault else "no answer"


# ---- nothing that is private -----------------------------------------------------------------------------


def _cleaner() -> Callable[[str], str]:
    """What takes tokens, passwords, the home folder and the user's name off a text."""
    secrets: set[str] = set()
    with suppress(Exception):  # whatever keeps the client from being imported
        from sam3lite_convert.hub import reach

        secrets = reach.secrets()
    urls = {os.environ.get(name, "") for v in ("HF_ENDPOINT", *_PROXIES) for name in (v, v.lower())}
    urls |= {url.rstrip("/") for url in urls}
    home = os.path.expanduser("~")
    homes = {p for p in (home, os.path.realpath(home)) if len(p) > 1}
    user = ""
    with suppress(Exception):  # no such user
        user = getpass.getuser()

    def clean(text: str) -> str:
        for url in sorted(filter(None, urls), key=len, reverse=True):
            text = text.replace(url, masked_url(url))
        text = without(text, secrets)
        for place in homes:
            text = re.sub(rf"(?<![\w.-]){re.escape(place)}(?![\w.-])", "~", text)
        if user and user != "root":
            text = re.sub(rf"(?<=/){re.escape(user)}(?![\w.-])", "USER", text)
        return text

    return clean
