"""`dmfnet-node`: a DICOM node that fuses what it receives."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import click

from dmfnet_fast.commands.shared import PATH, command
from dmfnet_fast.errors import NodeBusyError, NodeError
from dmfnet_fast.node.receiving import silence_libraries
from dmfnet_fast.node.service import Node
from dmfnet_fast.node.settings import Settings, read_settings
from dmfnet_fast.node.status import Metrics, lines, status

NOT_RUNNING = 1
# Of sysexits.h: trying again later may help.
TEMPORARY_FAILURE = 75
log = logging.getLogger("dmfnet_fast.node")


@command()
@click.argument("settings", type=PATH)
@click.option("--status", "show_status", is_flag=True, help="Say what the node does, instead of running it.")
@click.option("--json", "as_json", is_flag=True, help="With --status: machine-readable.")
@click.version_option(package_name="dmfnet-fast")
def main(settings: Path, show_status: bool, as_json: bool) -> None:
    """Receive DICOM studies, fuse what the rules in SETTINGS name, and send the results on.

    SETTINGS is a TOML file. The node runs until it gets SIGTERM or SIGINT; its log goes to standard error and names no
    patients. Everything that it has accepted is on the disk, so it may be ended in any way and goes on when it is
    started again.

    The exit code is 2 where the settings or the folder are wrong, and 75 where another process uses the port or the
    folder, or this machine does not have the address yet. --status exits with 1 if the node is not running.

    Not a medical device.
    """
    try:
        import fcntl  # noqa: F401
    except ModuleNotFoundError as error:
        raise NodeError("dmfnet-node: runs on Linux and macOS only, as it needs their locks and processes") from error
    read = read_settings(settings)
    if show_status:
        _say_status(read, as_json)
    else:
        if as_json:
            raise click.UsageError("--json is for --status")
        try:
            _run(read)
        except NodeBusyError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(TEMPORARY_FAILURE)


def _say_status(settings: Settings, as_json: bool) -> None:
    found = status(settings)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))
    if not found["running"]:
        sys.exit(NOT_RUNNING)


def _run(settings: Settings) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # Only the node's user may read what it keeps.
    os.umask(0o077)
    silence_libraries()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    node = Node(settings)
    metrics = None
    try:
        if settings.metrics_port is not None:
            metrics = Metrics(settings, node.spool, node.counters)
        log.info(
            "%s listens on %s:%d, TLS %s",
            settings.ae_title,
            settings.host,
            settings.port,
            "on" if settings.tls else "off",
        )
        stop.wait()
        log.info("stopping")
    finally:
        if metrics is not None:
            metrics.close()
        node.close()


if __name__ == "__main__":
    main()
