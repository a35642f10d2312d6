"""The settings of a node: one TOML file, checked as a whole before anything starts."""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.engines import DEFAULT
from dmfnet_fast.errors import NodeError, require
from dmfnet_fast.fuser import Range
from dmfnet_fast.images.color import DEFAULT_RULES
from dmfnet_fast.node.rules import Match, Rule
from dmfnet_fast.precision import PRECISION_CHOICES, PrecisionChoice
from dmfnet_fast.volumes.display import COLORMAPS
from dmfnet_fast.volumes.showing import GRAY
from dmfnet_fast.wording import alternatives

# PS3.5, 6.2: ISO 646 without the backslash and control characters, not only spaces.
_AE_TITLE = re.compile(r"(?! +$)[ -\[\]-~]{1,16}")
_KINDS: dict[type, str] = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Tls:
    """Certificates in PEM. With `authorities`, peers must show a certificate that one of these has signed."""

    certificate: Path
    key: Path
    authorities: Path | None


@dataclass(frozen=True)
class Destination:
    """Where results are sent, and how often it is tried.

    Attributes:
        first_delay: seconds after the first failure; each further one doubles it, up to `largest_delay`.
        give_up: seconds after which a result stays unsent.
    """

    ae_title: str
    host: str
    port: int
    tls: bool
    first_delay: float
    largest_delay: float
    give_up: float


@dataclass(frozen=True)
class Fusing(EngineOptions):
    """How to fuse.

    Attributes:
        timeout: seconds that one fusion may take.
        start_timeout: seconds that the process which fuses may take to load its libraries and the engine.
    """

    timeout: float
    start_timeout: float


@dataclass(frozen=True)
class Settings:
    """All settings of a node.

    Attributes:
        callers: the AE titles that may call.
        quiet: seconds without a new image after which a study counts as complete, unless its sender is still connected.
        keep: seconds that a study stays after its last image or its result's delivery.
        reserve: bytes of the disk that must be free for a new study to be accepted.
        largest_image: bytes that an image may have, as it comes and uncompressed.
        metrics_port: of the page for Prometheus, on 127.0.0.1; None for no page.
    """

    ae_title: str
    host: str
    port: int
    folder: Path
    callers: tuple[str, ...]
    quiet: float
    keep: float
    reserve: int
    largest_image: int
    metrics_port: int | None
    tls: Tls | None
    destination: Destination
    fusing: Fusing
    rules: tuple[Rule, ...]


class _Table:
    """A table of the file, whose entries are taken out one by one; what is left over is an error."""

    def __init__(self, where: str, values: object) -> None:
        self._where = where
        if not isinstance(values, dict):
            raise NodeError(f"{where}: must be a table")
        self._values: Mapping[str, Any] = values
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def wrong(self, key: str, problem: str) -> NodeError:
        return NodeError(f"{self._where}: {key} {problem}")

    def take(
        self, key: str, kind: type[Kind], *, check: Callable[[Kind], bool] = lambda _: True, hint: str = ""
    ) -> Kind:
        """An entry that must be there."""
        self._known.append(key)
        if key not in self._values:
            raise self.wrong(key, "is missing")
        value = self._values[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or not check(value):
            raise self.wrong(key, f"must be {hint or _KINDS[kind]}, not {value!r}")
        return value

    def get(
        self,
        key: str,
        kind: type[Kind],
        default: Kind,
        *,
        check: Callable[[Kind], bool] = lambda _: True,
        hint: str = "",
    ) -> Kind:
        """An entry, or the default where it is missing."""
        self._known.append(key)
        return self.take(key, kind, check=check, hint=hint) if key in self._values else default

    def maybe(
        self, key: str, kind: type[Kind], *, check: Callable[[Kind], bool] = lambda _: True, hint: str = ""
    ) -> Kind | None:
        """An entry, or None where it is missing."""
        self._known.append(key)
        return self.take(key, kind, check=check, hint=hint) if key in self._values else None

    def table(self, key: str) -> _Table:
        """A table within; an empty one where it is missing."""
        self._known.append(key)
        return _Table(f"{self._where}: [{key}]", self._values.get(key, {}))

    def item(self, key: str, number: int, values: object) -> _Table:
        """One of a list of tables."""
        return _Table(f"{self._where}: [[{key}]] {number}", values)

    def texts(self, key: str) -> tuple[str, ...]:
        """A text or a list of texts; () where it is missing."""
        self._known.append(key)
        value = self._values.get(key, [])
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) and text for text in listed):
            raise self.wrong(key, f"must be text or a list of texts, not {value!r}")
        if key in self._values and not listed:
            raise self.wrong(key, "is an empty list; leave it out, or name something")
        return tuple(listed)

    def done(self) -> None:
        """Raise a NodeError if an entry was not taken."""
        for key in self._values:
            if key not in self._known:
                close = get_close_matches(key, self._known, 1)
                meant = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(set(self._known)))}"
                raise self.wrong(key, f"is not known{meant}")


def read_settings(path: Path) -> Settings:
    """Read and check a node's settings.

    Paths in the file are relative to the file.

    Raises:
        NodeError: the file cannot be read, or something in it is wrong; the message names it.
        MissingExtraError: Python 3.10 without the extra `pacs`.
    """
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli", "pacs")
    try:
        values = toml.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise NodeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise NodeError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except toml.TOMLDecodeError as error:
        raise NodeError(f"{path}: is not TOML: {error}") from error
    file = _Table(str(path), values)
    node = file.table("node")
    tls = _tls(file, path.parent)
    settings = Settings(
        ae_title=node.take("ae_title", str, check=_is_ae_title, hint=_AE_HINT),
        host=node.get("host", str, "127.0.0.1", check=bool),
        port=node.get("port", int, 11112, check=_is_port, hint=_PORT_HINT),
        folder=path.parent / node.take("folder", str, check=bool),
        callers=_callers(node),
        quiet=node.get("quiet_seconds", float, 60.0, check=_is_positive, hint=_POSITIVE_HINT),
        keep=node.get("keep_days", float, 14.0, check=_is_positive, hint=_POSITIVE_HINT) * 86400,
        reserve=int(node.get("keep_free_gib", float, 5.0, check=_is_size, hint="at least 0 and finite") * 2**30),
        largest_image=int(
            node.get("largest_image_mib", float, 1024.0, check=_is_positive, hint=_POSITIVE_HINT) * 2**20
        ),
        metrics_port=node.maybe("metrics_port", int, check=_is_port, hint=_PORT_HINT),
        tls=tls,
        destination=_destination(file.table("destination"), tls),
        fusing=_fusing(file.table("fusing"), path.parent),
        rules=_rules(file),
    )
    node.done()
    file.done()
    return settings


_AE_HINT = "1 to 16 characters of ASCII without a backslash"
_PORT_HINT = "a port, 1 to 65535"
_POSITIVE_HINT = "a number above 0"


def _is_ae_title(text: str) -> bool:
    return _AE_TITLE.fullmatch(text) is not None


def _is_port(number: int) -> bool:
    return 0 < number < 2**16


def _is_positive(number: float) -> bool:
    return 0 < number < float("inf")


def _is_size(number: float) -> bool:
    return 0 <= number < float("inf")


def _callers(node: _Table) -> tuple[str, ...]:
    callers = node.texts("callers")
    if not callers:
        raise node.wrong("callers", "is missing: list the AE titles that may call")
    for title in callers:
        if not _is_ae_title(title):
            raise node.wrong("callers", f"must be AE titles of {_AE_HINT}, not {title!r}")
    return callers


def _tls(file: _Table, base: Path) -> Tls | None:
    table = file.table("tls")
    if "tls" not in file:
        return None
    authorities = table.maybe("authorities", str, check=bool)
    tls = Tls(
        certificate=base / table.take("certificate", str, check=bool),
        key=base / table.take("key", str, check=bool),
        authorities=None if authorities is None else base / authorities,
    )
    table.done()
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise NodeError(f"{tls.certificate}, {tls.key}: cannot be used for TLS: {error}") from error
    if tls.authorities is not None:
        try:
            context.load_verify_locations(tls.authorities)
        except OSError as error:
            raise NodeError(f"{tls.authorities}: cannot be used for TLS: {error}") from error
    return tls


def _no_password() -> str:
    raise ValueError("the key is encrypted; store it without a password, readable for the node alone")


def _destination(table: _Table, tls: Tls | None) -> Destination:
    destination = Destination(
        ae_title=table.take("ae_title", str, check=_is_ae_title, hint=_AE_HINT),
        host=table.take("host", str, check=bool),
        port=table.take("port", int, check=_is_port, hint=_PORT_HINT),
        tls=table.get("tls", bool, False),
        first_delay=table.get("first_delay_seconds", float, 10.0, check=_is_positive, hint=_POSITIVE_HINT),
        largest_delay=table.get("largest_delay_seconds", float, 3600.0, check=_is_positive, hint=_POSITIVE_HINT),
        give_up=table.get("give_up_days", float, 7.0, check=_is_positive, hint=_POSITIVE_HINT) * 86400,
    )
    if destination.tls and (tls is None or tls.authorities is None):
        raise table.wrong("tls", "needs [tls] with authorities, by which the destination's certificate is checked")
    table.done()
    return destination


def _fusing(table: _Table, base: Path) -> Fusing:
    engine = table.get("engine", str, DEFAULT, check=bool)
    fusing = Fusing(
        engine=str(base / engine) if "." in engine or "/" in engine else engine,
        device=table.maybe("device", str, check=bool),
        precision=cast(
            PrecisionChoice,
            table.get(
                "precision", str, "auto", check=PRECISION_CHOICES.__contains__, hint=alternatives(PRECISION_CHOICES)
            ),
        ),
        threads=table.maybe("threads", int, check=_is_positive, hint="at least 1"),
        seed=table.get("seed", int, 0, check=lambda seed: 0 <= seed < 2**64, hint="0 to 2^64 - 1"),
        keep_chroma=table.get(
            "keep_chroma", float, DEFAULT_RULES.kept_chroma, check=lambda part: 0 <= part <= 1, hint="0 to 1"
        ),
        allow_invention=table.get("allow_invention", bool, False),
        timeout=table.get("timeout_minutes", float, 60.0, check=_is_positive, hint=_POSITIVE_HINT) * 60,
        start_timeout=table.get("start_timeout_minutes", float, 10.0, check=_is_positive, hint=_POSITIVE_HINT) * 60,
    )
    table.done()
    return fusing


def _rules(file: _Table) -> tuple[Rule, ...]:
    listed = file.get("rules", list, [])
    if not listed:
        raise file.wrong("rules", "are missing: add [[rules]] that say which series to fuse")
    rules = tuple(_rule(file.item("rules", number, values)) for number, values in enumerate(listed, 1))
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise file.wrong("rules", f"has the name {name!r} twice")
    return rules


def _rule(table: _Table) -> Rule:
    rule = Rule(
        name=table.take("name", str, check=lambda name: bool(name) and name.isprintable(), hint="text of one line"),
        mr=_match(table, "mr"),
        other=_match(table, "other"),
        grid=cast(
            Literal["mr", "other"],
            table.get("grid", str, "mr", check=lambda grid: grid in ("mr", "other"), hint='"mr" or "other"'),
        ),
        register=table.get("register", bool, False),
        range_mr=_range(table, "range_mr"),
        range_other=_range(table, "range_other"),
        colormap=table.maybe(
            "colormap", str, check=[*COLORMAPS, GRAY].__contains__, hint=alternatives([*COLORMAPS, GRAY])
        ),
        label=table.maybe("label", str, check=bool),
    )
    table.done()
    return rule


def _match(table: _Table, key: str) -> Match:
    if key not in table:
        raise table.wrong(key, "is missing: say which series it is by modality, description or uid")
    inner = table.table(key)
    match = Match(inner.texts("modality"), inner.texts("description"), inner.texts("uid"))
    inner.done()
    if match == Match():
        raise table.wrong(key, "is empty: say which series it is by modality, description or uid")
    return match


def _range(table: _Table, key: str) -> Range | None:
    hint = "two numbers, black and white, the first smaller"
    values = table.maybe(key, list, check=_is_range, hint=hint)
    return None if values is None else (float(values[0]), float(values[1]))


def _is_range(values: list[Any]) -> bool:
    return len(values) == 2 and all(type(value) in (int, float) for value in values) and values[0] < values[1]
