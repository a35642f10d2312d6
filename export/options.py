"""The options of `dmfnet-export`, checked before any work is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmfnet_fast.engines import DEFAULT, shipped
from dmfnet_fast.engines.kinds import OPENVINO, TORCH
from dmfnet_fast.errors import OutputError
from dmfnet_fast.precision import Precision
from dmfnet_fast.wording import alternatives, with_article
from export.errors import RequestError
from export.request import Request, Served, Target, make_profile, shipped_graph
from export.sources import source_of
from export.targets import TARGETS
from export.tensorrt.builder import known_gpus

# The RTX 30, 40 and 50 series.
DEFAULT_GPUS = ("sm_86", "sm_89", "sm_120")
WITHOUT_BFLOAT16 = "sm_75"


@dataclass(frozen=True)
class Option:
    """An option that only some exports accept.

    Attributes:
        name: name in `Target.options` and among the parameters of `make_request`.
        flag: flag on the command line.
        reason: why the other exports do not accept it.
        precision: the only precision that accepts it; None if all do.
    """

    name: str
    flag: str
    reason: str
    precision: Precision | None = None


OPTIONS = (
    Option("calibrate", "--calibrate", "no other precision needs images", "int8"),
    Option("every_block", "--every-block", "in other precisions all blocks are alike", "int8"),
    Option("single_file", "--single-file", "nothing else has several files"),
    Option("batch", "--batch", "other files take any number of pairs"),
    Option("plugins", "--plugins", "nothing else runs them"),
    Option("pixels", "--pixels", "the server's model takes luminances"),
    Option("timing_cache", "--timing-cache", "nothing else takes timings"),
    Option("workspace", "--workspace", "nothing else chooses layers on the GPU"),
    Option("no_check", "--no-check", "other files are checked before they are made"),
    Option("server", "--triton-server", "the server runs nothing else"),
    Option("gpu", "--gpu", "nothing else is built for GPUs that are named"),
)


@dataclass(frozen=True)
class PrecisionFlag:
    """The command-line flag of a precision.

    Attributes:
        flag: flag on the command line.
        words: description in --help.
        reason: why some exports do not support it; "" if all do.
    """

    flag: str
    words: str
    reason: str = ""


PRECISION_FLAGS: dict[Precision, PrecisionFlag] = {
    "float16": PrecisionFlag("--fp16", "float16"),
    "bfloat16": PrecisionFlag("--bf16", "bfloat16"),
    "float32": PrecisionFlag("--fp32", "float32"),
    "int8": PrecisionFlag("--int8", "Convolutions in 8 bits", "OpenVINO alone runs such files"),
}


# The server's backends, by the value of --backend, with the target that each belongs to.
BACKENDS = {served.backend: target for target in TARGETS.values() for served in target.served}


def default_backends() -> str:
    """Lists the default backend of each target that has several, for --help."""
    several = [target for target in TARGETS.values() if len(target.served) > 1]
    return ", ".join(f"{target.served[0].backend} for {target.name}" for target in several)


def _takers(takes: Callable[[Target | Served], bool]) -> list[str]:
    """Names of the targets for which `takes` holds, marked if it holds only with or only without --triton-server."""
    takers = []
    for target in TARGETS.values():
        alone, served = takes(target), any(map(takes, target.served))
        if alone and (served or not target.served):
            takers.append(target.name)
        elif alone or served:
            takers.append(f"{target.name} {'without' if alone else 'with'} --triton-server")
    return takers


def takers_of(option: str) -> str:
    """Lists the targets that accept the `Option` with this name, for messages."""
    return alternatives(_takers(lambda row: option in row.options))


def precision_help(precision: Precision) -> str:
    """The help text of a precision's flag."""
    flag = PRECISION_FLAGS[precision]
    defaults = [target.name for target in TARGETS.values() if target.precisions[0] == precision]
    have = [target.name for target in TARGETS.values() if precision in target.precisions]
    default = f", the default for {alternatives(defaults, 'and')}" if defaults else ""
    only = "" if len(have) == len(TARGETS) else f"; for {alternatives(have, 'and')} alone"
    return f"{flag.words}{default}{only}."


def chosen_precision(given: tuple[Precision, ...]) -> Precision | None:
    """The precision given on the command line, or None for the target's default.

    Raises:
        RequestError: several different precisions are given.
    """
    if len(set(given)) > 1:
        raise RequestError(f"{', '.join(flag.flag for flag in PRECISION_FLAGS.values())}: give one of them")
    return given[0] if given else None


def _backend(target: Target, server: Path | None, named: str | None) -> Served | None:
    """The backend of the server to export for; None without a server, or if the server does not run the target."""
    if named is not None and BACKENDS[named] is not target:
        raise RequestError(f"--backend {named}: is for --target {BACKENDS[named].name}")
    if named is not None and server is None:
        raise RequestError("--backend: is for --triton-server, which names the server's model repository")
    if server is None or not target.served:
        return None
    return next((row for row in target.served if row.backend == named), target.served[0])


def _check_taken(target: Target, served: Served | None, precision: Precision, given: Mapping[str, Any]) -> None:
    """Raise a RequestError for a precision or an option that the export does not accept.

    Args:
        target: target of the export.
        served: the backend of the server to export for, or None.
        precision: precision of the export.
        given: values of all `OPTIONS` by name; None or False if an option is not given.
    """
    row = served or target
    if precision not in row.precisions:
        flag = PRECISION_FLAGS[precision]
        reason = f": {flag.reason}" if flag.reason else ""
        if served is not None and precision in target.precisions:
            raise RequestError(f"{flag.flag} is not for --backend {served.backend}{reason}")
        takers = alternatives(_takers(lambda row: precision in row.precisions))
        raise RequestError(f"{flag.flag} is for --target {takers}{reason}")
    for option in OPTIONS:
        if given[option.name] is None or given[option.name] is False:
            continue
        if option.precision not in (None, precision):
            raise RequestError(f"{option.flag} is for {PRECISION_FLAGS[option.precision].flag}: {option.reason}")
        if option.name not in row.options:
            raise RequestError(f"{option.flag} is for --target {takers_of(option.name)}: {option.reason}")


def _gpus(named: str | None, precision: Precision) -> tuple[str, ...]:
    known = known_gpus()
    gpus = tuple(dict.fromkeys(name.strip() for name in named.split(","))) if named is not None else DEFAULT_GPUS
    for name in gpus:
        if name not in known:
            raise RequestError(
                f"--gpu {name or repr(name)}: TensorRT-RTX builds for {', '.join(known)}; "
                "for Jetson and datacenter GPUs use --target tensorrt"
            )
    if precision == "bfloat16" and WITHOUT_BFLOAT16 in gpus:
        raise RequestError(f"--gpu {WITHOUT_BFLOAT16}: has no bfloat16; use --fp16")
    return gpus


def make_request(
    source: Path | None,
    target: str,
    precision: Precision | None,
    size: str | None,
    least: str | None,
    best: str | None,
    most: str | None,
    batch: int | None,
    gpu: str | None,
    plugins: bool,
    pixels: bool,
    timing_cache: Path | None,
    workspace: int | None,
    no_check: bool,
    calibrate: Path | None,
    every_block: bool,
    single_file: bool,
    server: Path | None,
    backend: str | None,
    output: Path | None,
) -> Request:
    """Check the options of the command and turn them into a request.

    Raises:
        RequestError, EngineError, OutputError: an option is invalid.
        MissingExtraError: TensorRT-RTX, which provides the list of GPUs that it builds for, is not installed.
    """
    row = TARGETS[target]
    served = _backend(row, server, backend)
    chosen = precision or row.precisions[0]
    given = {
        "calibrate": calibrate,
        "every_block": every_block,
        "single_file": single_file,
        "batch": batch,
        "plugins": plugins,
        "pixels": pixels,
        "timing_cache": timing_cache,
        "workspace": workspace,
        "no_check": no_check,
        "server": server,
        "gpu": gpu,
    }
    _check_taken(row, served, chosen, given)
    if calibrate is not None and not calibrate.is_dir():
        raise RequestError(f"--calibrate {calibrate}: is no folder; give one that holds train/CT-MRI/MRI and so on")
    asked = make_profile(size, least, best, most, batch or 1)
    profile = asked if "batch" in (served or row).options or any((size, least, most)) else None
    if row.kind is None and any((size, least, most)):
        raise RequestError(f"--target {row.name}: takes images of any size; leave out --size, --min, --opt and --max")
    if served is not None and served.one_size and asked.min[1:] != asked.max[1:]:
        raise RequestError("--triton-server: a served model takes one size, so give one --size")
    if served is not None and not served.one_size and any((size, least, most)):
        raise RequestError(f"--backend {served.backend}: the model takes images of any size; leave out --size")
    gpus = _gpus(gpu, chosen) if "gpu" in (served or row).options else ()
    if timing_cache is not None and (timing_cache.is_dir() or not timing_cache.absolute().parent.is_dir()):
        raise RequestError(f"--timing-cache {timing_cache}: name a file in a folder that exists")
    source, stem = _source(source, row, chosen, plugins)
    source_kind = source_of(source).kind
    if plugins and source_kind is not TORCH:
        raise RequestError(
            f"{source}: --plugins takes weights, as the operations that they replace are in no graph any more"
        )
    if server is not None:
        output = _model_folder(server, stem if output is None else str(output))
    elif row.kind is None:
        output = output or Path(f"{stem}-page{'.html' if single_file else ''}")
        _check_page(output, single_file)
    else:
        if source_kind is row.kind:
            raise RequestError(f"{source}: is {with_article(row.kind.suffix)} file already; give weights")
        output = output or Path(f"{stem}{row.kind.suffix}")
        row.kind.check_output(output)
        _check_output(output, source)
    return Request(
        source=source,
        target=row,
        precision=chosen,
        profile=profile,
        gpus=gpus,
        plugins=plugins,
        pixels=pixels,
        timing_cache=timing_cache,
        workspace=workspace,
        no_check=no_check,
        calibrate=calibrate,
        every_block=every_block,
        single_file=single_file,
        served=served,
        output=output,
    )


def _source(named: Path | None, target: Target, precision: Precision, plugins: bool) -> tuple[Path, str]:
    """The file to export, and the default name of the result without its suffix."""
    if named is not None and str(named) not in shipped():
        return named, named.stem
    weights = shipped()[str(named or DEFAULT)]
    if target.kind is None:
        return weights.with_suffix(OPENVINO.suffix), weights.stem  # the graph that ships is what the page runs
    # Using the shipped graph requires no torch and saves the half minute that exporting it takes.
    graph = shipped_graph(weights)
    takes_graph = precision == "float16" and not plugins and graph.exists() and graph.suffix != target.kind.suffix
    return graph if takes_graph else weights, weights.stem


def _model_folder(server: Path, name: str) -> Path:
    """The folder of a model in the repository of a server.

    Raises:
        RequestError: `name` is no valid model name.
        OutputError: the folder exists, or the repository cannot be created.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise RequestError(
            f"{name!r}: is no name for a model on a server: with --triton-server, -o NAME gives one of letters, "
            "digits, '.', '_' and '-'"
        )
    if not server.is_dir() and (server.exists() or not server.absolute().parent.is_dir()):
        raise OutputError(f"{server}: is no folder, and cannot be made one")
    output = server / name
    if output.exists():
        raise OutputError(f"{output}: is there already; remove it, or name the new one with -o NAME")
    return output


def _check_page(output: Path, single_file: bool) -> None:
    if single_file and output.suffix.lower() != ".html":
        raise OutputError(f"{output}: name an .html file")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: cannot be written: the folder {output.parent} does not exist")
    if output.is_dir() if single_file else output.exists():
        raise OutputError(f"{output}: is there already; remove it, or name another with -o")


def _check_output(output: Path, source: Path) -> None:
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file to write")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: cannot be written: the folder {output.parent} does not exist")
    if output.exists() and source.exists() and output.samefile(source):
        raise OutputError(f"{output}: is what is exported; name another file to write")
