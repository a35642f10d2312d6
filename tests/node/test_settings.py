"""The settings' file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra pacs")

from dmfnet_fast.commands.shared import FAILED
from dmfnet_fast.errors import NodeError
from dmfnet_fast.node.rules import Match, Rule, Series, decide
from dmfnet_fast.node.settings import Settings, read_settings

DOCUMENTED = Path(__file__).parents[2] / "docs" / "node" / "node.toml"
SMALL = """
[node]
ae_title = "FUSE"
folder = "spool"
callers = "PACS"
[destination]
ae_title = "PACS"
host = "pacs.example"
port = 104
[[rules]]
name = "PET"
mr = { modality = "MR" }
other = { modality = "PT" }
"""


def read(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "node.toml").write_text(text)
    return read_settings(tmp_path / "node.toml")


def test_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path, SMALL)
    assert (settings.host, settings.port) == ("127.0.0.1", 11112)
    assert settings.folder == tmp_path / "spool"
    assert settings.callers == ("PACS",)
    assert (settings.quiet, settings.keep, settings.reserve) == (60, 14 * 86400, 5 * 2**30)
    assert settings.metrics_port is None
    assert settings.tls is None
    assert settings.fusing.engine == "nano"
    assert settings.rules == (Rule("PET", Match(modality=("MR",)), Match(modality=("PT",))),)


def test_documented_file_has_the_defaults(tmp_path: Path) -> None:
    text = DOCUMENTED.read_text()
    documented = read_settings(DOCUMENTED)
    small = read(tmp_path, SMALL)
    assert [rule.name for rule in documented.rules] == ["T1 with PET", "T2 with CT"]
    assert documented.fusing == small.fusing
    for name in ("host", "port", "quiet", "keep", "reserve", "largest_image", "metrics_port", "tls"):
        assert getattr(documented, name) == getattr(small, name), name
    # All that is commented out is known, too, but for files of TLS that are not here.
    lines = [line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in text.splitlines()]
    lines = [line for line in lines if not line.startswith(("[tls]", "certificate", "key =", "authorities"))]
    everything = read(tmp_path, "\n".join(lines))
    assert everything.metrics_port == 9112
    assert everything.rules[0].label == "FUSED"
    assert everything.rules[0].range_mr == (0, 800)
    assert everything.fusing.device == "cuda"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[node]", "[node", "node.toml: is not TOML: "),
        ('ae_title = "FUSE"', "", "[node]: ae_title is missing"),
        ('ae_title = "FUSE"', 'ae_title = "LONGER THAN SIXTEEN"', "ae_title must be 1 to 16 characters of ASCII"),
        ('ae_title = "FUSE"', 'ae_title = "A\\\\B"', "ae_title must be 1 to 16 characters of ASCII"),
        ('callers = "PACS"', "", "callers is missing: list the AE titles that may call"),
        ('callers = "PACS"', "callers = []", "callers is an empty list"),
        ('callers = "PACS"', "callers = [1]", "callers must be text or a list of texts, not [1]"),
        ('callers = "PACS"', 'callers = "PACS"\nquiet_second = 3', "did you mean quiet_seconds?"),
        ('callers = "PACS"', 'callers = "PACS"\nquiet_seconds = 0', "quiet_seconds must be a number above 0, not 0.0"),
        ('callers = "PACS"', 'callers = "PACS"\nquiet_seconds = "1"', "must be a number above 0, not '1'"),
        ("port = 104", "port = 104.5", "[destination]: port must be a port, 1 to 65535, not 104.5"),
        ("port = 104", "port = true", "[destination]: port must be a port, 1 to 65535, not True"),
        ("port = 104", "port = 104\ntls = true", "[destination]: tls needs [tls] with authorities"),
        ("[destination]", '[tls]\ncertificate = "a.pem"\nkey = "a.key"\n[destination]', "cannot be used for TLS"),
        ('callers = "PACS"', 'callers = "PACS"\nkeep_free_gib = inf', "keep_free_gib must be at least 0 and finite"),
        ("[destination]", '[fusing]\nprecision = "double"\n[destination]', "[fusing]: precision must be auto, "),
        ("[destination]", "[other]\n[destination]", "other is not known"),
        ("[[rules]]", "[[rule]]", "rules are missing: add [[rules]]"),
        ('mr = { modality = "MR" }', "", "node.toml: [[rules]] 1: mr is missing"),
        ('mr = { modality = "MR" }', "mr = { }", "node.toml: [[rules]] 1: mr is empty"),
        ('mr = { modality = "MR" }', 'mr = { modalities = "MR" }', "modalities is not known; did you mean modality?"),
        ('mr = { modality = "MR" }', 'mr = "MR"', "[mr]: must be a table"),
        ('name = "PET"', 'name = "PET"\ncolormap = "rainbow"', "colormap must be hot-iron"),
        ('name = "PET"', 'name = "PET"\nrange_mr = [9, 0]', "range_mr must be two numbers, black and white"),
        ('name = "PET"', 'name = "PET"\ngrid = "pet"', 'grid must be "mr" or "other"'),
        ("[[rules]]", '[[rules]]\nname = "PET"\nmr = { uid = "1" }\nother = { uid = "2" }\n[[rules]]', "'PET' twice"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(NodeError) as error:
        read(tmp_path, SMALL.replace(old, new, 1))
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_marked_utf8_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, f"\ufeff{SMALL}").callers == ("PACS",)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"node\.toml: cannot be read: No such file"):
        read_settings(tmp_path / "node.toml")


def test_unit_does_not_restart_on_wrong_settings() -> None:
    lines = DOCUMENTED.with_name("dmfnet-node.service").read_text().splitlines()
    assert "Restart=always" in lines
    assert f"RestartPreventExitStatus={FAILED}" in lines


def test_unit_is_valid() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(DOCUMENTED.with_name("dmfnet-node.service"))], capture_output=True, text=True
    )
    # The program that it names is not installed here.
    problems = [line for line in checked.stderr.splitlines() if "is not executable" not in line]
    assert problems == []


# Rules


T1, T2 = Series("1.1", "MR", "Sag T1 MPRAGE"), Series("1.2", "MR", "Ax T2")
PET, PET_NAC = Series("1.3", "PT", "Brain AC "), Series("1.4", "PT", "Brain NAC")
ALL = [T1, T2, PET, PET_NAC]


@pytest.mark.parametrize(
    ("match", "found"),
    [
        (Match(modality=("MR",)), [T1, T2]),
        (Match(modality=("mr", "PT")), ALL),
        (Match(description=("*t1*",)), [T1]),
        (Match(modality=("MR",), description=("*t1*", "*t2*")), [T1, T2]),
        (Match(description=("* ac",)), [PET]),
        (Match(uid=("1.4",)), [PET_NAC]),
        (Match(uid=("1.*",), modality=("PT",)), [PET, PET_NAC]),
        (Match(description=("",)), []),
    ],
)
def test_match(match: Match, found: list[Series]) -> None:
    assert list(filter(match, ALL)) == found


def test_pairs() -> None:
    t1, t2 = Match(description=("*t1*",)), Match(description=("*t2*",))
    pet = Match(description=("* ac",))
    rules = [
        Rule("a", t1, pet),
        Rule("b", t2, pet),
        Rule("again", t1, pet),
        Rule("none", Match(uid=("9",)), Match(uid=("8",))),
    ]
    pairs, reasons = decide(rules, ALL)
    assert [(pair.rule.name, pair.mr, pair.other) for pair in pairs] == [("a", "1.1", "1.3"), ("b", "1.2", "1.3")]
    assert reasons == []


@pytest.mark.parametrize(
    ("mr", "other", "reason"),
    [
        (Match(uid=("9",)), Match(uid=("8",)), "rule 'r': no series fits"),
        (Match(uid=("1.1",)), Match(uid=("8",)), "rule 'r': no series fits other"),
        (Match(uid=("9",)), Match(uid=("1.1",)), "rule 'r': no series fits mr"),
        (Match(("MR",)), Match(("PT",), ("* ac",)), "rule 'r': mr fits 2 series (1.1, 1.2): make it narrower"),
        (Match(uid=("1.1",)), Match(("PT",)), "rule 'r': other fits 2 series (1.3, 1.4): make it narrower"),
        (
            Match(("MR",)), Match(uid=("8",)),
            "rule 'r': mr fits 2 series (1.1, 1.2): make it narrower; no series fits other",
        ),
        (Match(uid=("1.1",)), Match(uid=("1.1",)), "rule 'r': mr and other fit the same series (1.1)"),
    ],
)  # fmt: skip
def test_nothing_is_guessed(mr: Match, other: Match, reason: str) -> None:
    assert decide([Rule("r", mr, other)], ALL) == ([], [reason])
