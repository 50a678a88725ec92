"""Markup as a tree. Whatever a record says is text in it, and only the serializer writes ``<`` and ``&``."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

from bdjax.files.printable import printable

Content: TypeAlias = "Element | str | int | Iterable[Content] | None"
Attribute: TypeAlias = "str | int | float | bool | None"


def tag(name: str, /, *content: Content, **attributes: Attribute) -> Element:
    """Return an element; texts become text, never markup, and None nothing.

    A name such as ``class_`` or ``aria_sort`` stands for ``class`` and ``aria-sort``. An attribute that is True is
    there, one that is False or None is not.

    >>> from bdjax.report.page.markup import tag, to_html
    >>> to_html(tag("p", "1 < 2, ", tag("b", "ρ=2"), class_="a b", hidden=True, id=None))
    '<p class="a b" hidden="">1 &lt; 2, <b>ρ=2</b></p>'
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None and value is not False:
            element.set(
                key.rstrip("_").replace("_", "-"), "" if value is True else _visible(str(value))
            )
    return add(element, *content)


def add(element: Element, *content: Content) -> Element:
    """Append content to an element, and return it."""
    for one in content:
        if isinstance(one, Element):
            element.append(one)
        elif isinstance(one, str | int):
            _write(element, str(one))
        elif one is not None:
            add(element, *one)
    return element


def _visible(text: str) -> str:
    r"""Return text without control characters but for line ends and tabs, as in styles, and the page's "98.1\xa0%"."""
    return re.sub(r"[^\n\t\xa0]+", lambda stretch: printable(stretch[0]), text)


def _write(element: Element, text: str) -> None:
    text = _visible(text)
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


def to_html(element: Element) -> str:
    """Return an element as HTML. Text of ``script`` and ``style`` stands as it is: it must be the page's own."""
    text = tostring(element, encoding="unicode", method="html")
    # Half a surrogate pair, which JSON can hold, is a ?
    return text.encode("utf-8", "replace").decode("utf-8")


def data_uri(content: bytes, kind: str) -> str:
    """Return content as an address that holds it; ``kind`` is its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
