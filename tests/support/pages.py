"""Reading a page of HTML the way a browser divides it: elements, their text, and the rows of its tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Reading(HTMLParser):
    """Every element with the text inside it, in order."""

    elements: list[Element] = field(default_factory=list)
    _open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in {"meta", "link", "input", "br", "img"}:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().tag != tag:
            pass

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def by_id(self, name: str) -> Element:
        return next(element for element in self.elements if element.attributes.get("id") == name)


def read(text: str) -> Reading:
    """Parse HTML."""
    reading = Reading()
    reading.feed(text)
    reading.close()
    return reading


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a piece of HTML, cell by cell, with plain spaces."""
    found: list[list[str]] = []
    for element in read(text).elements:
        if element.tag == "tr":
            found.append([])
        elif element.tag in {"td", "th"}:
            found[-1].append(element.text.replace("\u00a0", " "))
    return found
