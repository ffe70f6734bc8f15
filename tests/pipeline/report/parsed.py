"""A page as its elements and its text."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "path", "br"}


class Page(HTMLParser):
    """The elements of a page, each with its attributes; text by the nearest class or tag around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data.strip())

    def all(self, tag: str, css: str = "") -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and (not css or css in a.get("class", "").split())]

    @property
    def words(self) -> str:
        return "\n".join(filter(None, self.text))
