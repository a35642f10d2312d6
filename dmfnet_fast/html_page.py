"""Self-contained HTML pages: their style, and images within them."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { border-bottom: 1px solid #8886; padding: .25rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
td small { color: #888; white-space: nowrap; }
td.best { font-weight: 650; }
.wide { overflow-x: auto; }
.images td, .images th { border: 0; padding: .2rem; text-align: center; font-weight: 500; }
img { display: block; image-rendering: pixelated; }
.smooth img { image-rendering: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; }
figure { margin: 0; width: 12rem; }
figure img { width: 12rem; height: auto; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
figcaption small { color: #888; }
svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
"""


def generator(command: str) -> str:
    """The mark in the head of a page by which the page that a command made is recognized."""
    return f'<meta name="generator" content="{escape(command)}">'


def web_page(title: str, body: str, command: str) -> str:
    """A whole page.

    Args:
        title: of the window, plain text.
        body: HTML.
        command: the command that makes the page.
    """
    head = f'<meta charset="utf-8">{generator(command)}<title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def image_tag(image: Image.Image, alternative: str, size: tuple[float, float], **options: Any) -> str:
    """An image as part of a page, encoded as WebP.

    Args:
        image: of any mode that WebP holds.
        alternative: its alternative text.
        size: width and height in CSS pixels.
        options: of Pillow's WebP writer, such as quality, lossless, or a method faster than 6.
    """
    file = io.BytesIO()
    image.save(file, "WEBP", **{"method": 6, **options})
    return encoded_tag(file.getvalue(), "webp", alternative, size)


def encoded_tag(content: bytes, kind: str, alternative: str, size: tuple[float, float]) -> str:
    """An image that is encoded already, as part of a page.

    Args:
        content: the file.
        kind: its format, such as "png".
        alternative: its alternative text.
        size: width and height in CSS pixels.
    """
    data = base64.b64encode(content).decode()
    return (
        f'<img src="data:image/{kind};base64,{data}" alt="{escape(alternative)}" '
        f'width="{round(size[0])}" height="{round(size[1])}">'
    )
