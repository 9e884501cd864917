"""The templates of the page: what the server fills in at each GET, so that it works without JavaScript.

twisted.web.template escapes all texts and attributes. https://docs.twisted.org/en/stable/web/howto/twisted-templates.html
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.web.template import Element, Tag, XMLString, renderer, tags

from twisted_storaged.api.ops.page_view import COLUMNS, Cell, Row, View, moment, shown, size
from twisted_storaged.model import ObjectInfo

#: Rows that are rendered without a pause.
SLICE = 10

#: An object, or a common prefix.
Entry = ObjectInfo | str

_FOLDER = Path(__file__).parent


class Listing(Struct, frozen=True):
    """What the browser of keys shows.

    Attributes:
        buckets: the names of all buckets.
        bucket: the one that is listed; empty for all as one.
        prefix: what the keys begin with.
        entries: objects, and common prefixes, in one order.
        next_after: the last of them, if there are more.
        error: why there is no list.
    """

    buckets: Sequence[str]
    bucket: str = ""
    prefix: str = ""
    entries: Sequence[Entry] = ()
    next_after: str | None = None
    error: str = ""

    @property
    def folder(self) -> str:
        """The prefix up to its last slash."""
        return folder_of(self.prefix)


def name_of(entry: Entry) -> str:
    """The key of an object, or the common prefix."""
    return entry if isinstance(entry, str) else entry.key


def folder_of(key: str) -> str:
    """The part of a key up to its last slash."""
    return key[: key.rfind("/") + 1]


def object_url(key: str, bucket: str) -> str:
    """The URL of an object, for a browser; without a bucket, the policy finds it."""
    # A browser resolves the segments "." of a path, also where they are escaped.
    safe = "" if "." in key.split("/") else "/"
    return (f"/buckets/{quote(bucket, safe='')}/objects/" if bucket else "/objects/") + quote(key, safe=safe)


def page_url(path: str, anchor: str = "", **parameters: str) -> str:
    """A URL of the page; empty parameters are left out."""
    query = urlencode({name: value for name, value in parameters.items() if value}, quote_via=quote)
    return path + (f"?{query}" if query else "") + anchor


def list_url(bucket: str, prefix: str, after: str = "") -> str:
    """The URL of the list of a prefix."""
    return page_url("/", "#objects", bucket=bucket, prefix=prefix, after=after)


class PageElement(Element):
    """The page."""

    loader = XMLString((_FOLDER / "page.html").read_bytes())

    def __init__(self, view: View, listing: Listing, pause: Callable[[], Deferred[str]]) -> None:
        """`pause` returns an empty text when the reactor has done something else."""
        super().__init__()
        self._pause = pause
        self._view = view
        self._listing = listing

    @renderer
    def token(self, _: object, tag: Tag) -> Tag:
        """Set the content of the element with the token."""
        return tag(content=self._view.token)

    @renderer
    def cell(self, _: object, tag: Tag) -> Tag:
        """Fill the element with the text of its id."""
        return _filled(tag, self._view.cells[_id_of(tag)])

    @renderer
    def line(self, _: object, tag: Tag) -> Tag:
        """Set the path of its id."""
        return tag(d=self._view.lines[_id_of(tag)])

    @renderer
    def table(self, _: object, tag: Tag) -> Tag:
        """Add the head and the rows of the table of its id."""
        columns, rows = COLUMNS[_id_of(tag)], self._view.tables[_id_of(tag)]
        tag(tags.thead(tags.tr([tags.th(name, scope="col") for name in columns])))
        return tag(tags.tbody(self._in_slices(_row(row, columns) for row in rows)))

    @renderer
    def bucket_options(self, _: object, tag: Tag) -> Tag:
        """Add an option for each bucket."""
        for name in ("", *self._listing.buckets):
            chosen = {"selected": "selected"} if name == self._listing.bucket else {}
            tag(tags.option(name or "all, by the policies", value=name, **chosen))
        return tag

    @renderer
    def prefix(self, _: object, tag: Tag) -> Tag:
        """Set the prefix that is listed."""
        return tag(value=self._listing.prefix)

    @renderer
    def crumbs(self, _: object, tag: Tag) -> Tag:
        """Add a link for each folder above what is listed."""
        # The end of a folder is where a slash is.
        ends = [0, *(at + 1 for at, one in enumerate(self._listing.prefix) if one == "/")]
        return tag(self._in_slices(self._crumb(start, end) for start, end in pairwise([0, *ends])))

    def _crumb(self, start: int, end: int) -> Tag:
        listing = self._listing
        name = shown(listing.prefix[start : end - 1]) or "/" if end else "all keys"
        current = {"aria-current": "page"} if listing.prefix[:end] == listing.prefix else {}
        return tags.li(tags.a(name, href=list_url(listing.bucket, listing.prefix[:end]), **current))

    @renderer
    def entries(self, _: object, tag: Tag) -> Tag:
        """Add a row for each entry of the list."""
        listing = self._listing
        if not listing.entries:
            text = listing.error or "There is no such key."
            return tag(_row([Cell(text, "bad" if listing.error else "quiet", span=4)], ("",)))
        return tag(self._in_slices(self._entry(entry) for entry in listing.entries))

    def _entry(self, entry: Entry) -> Tag:
        bucket = self._listing.bucket
        if isinstance(entry, str):
            return tags.tr(tags.th(tags.a(self._short(entry), href=list_url(bucket, entry)), scope="row", colspan="4"))
        url = object_url(entry.key, bucket)
        name = shown(entry.key.rpartition("/")[2]) or "object"
        delete = page_url("/page/delete", bucket=bucket, key=entry.key)
        return tags.tr(
            tags.th(tags.a(self._short(entry.key), href=url, download=name), scope="row"),
            _cell(Cell(size(entry.size), hint=f"{entry.size} bytes"), "Size"),
            _cell(Cell(moment(entry.last_modified)), "Changed"),
            tags.td(tags.a("Delete", tags.span(" ", shown(entry.key), class_="unseen"), href=delete)),
        )

    def _in_slices(self, rows: Iterable[Tag]) -> Generator[Any, None, None]:
        """Yield the rows, and pauses between them: hundreds of rows would keep the reactor busy for too long."""
        for number, row in enumerate(rows):
            if number % SLICE == 0:
                yield self._pause()
            yield row

    def _short(self, key: str) -> str:
        return shown(key[len(self._listing.folder) :] or key)

    @renderer
    def next_page(self, _: object, tag: Tag) -> Tag | str:
        """Link to the rest of the list, if there is more."""
        if self._listing.next_after is None:
            return ""
        return tag(href=list_url(self._listing.bucket, self._listing.prefix, self._listing.next_after))

    @renderer
    def upload(self, _: object, tag: Tag) -> Tag:
        """Say where uploads go."""
        return tag(**{"data-bucket": self._listing.bucket})

    @renderer
    def folder(self, _: object, tag: Tag) -> Tag:
        """Set the folder that is listed."""
        return tag(value=self._listing.folder)


class ConfirmElement(Element):
    """The question whether an object is to be deleted."""

    loader = XMLString((_FOLDER / "confirm.html").read_bytes())

    def __init__(self, info: ObjectInfo, bucket: str, named: str, token: str) -> None:
        """Ask for an object in `bucket`; `named` is the bucket that was asked for, empty if the policy found it."""
        super().__init__()
        self._info = info
        self._bucket = bucket
        self._named = named
        self._token = token

    @renderer
    def facts(self, _: object, tag: Tag) -> Tag:
        """Fill the slots with what is known of the object."""
        return tag.fillSlots(
            key=shown(self._info.key),
            bucket=self._bucket,
            size=f"{size(self._info.size)} ({self._info.size} bytes)",
            changed=moment(self._info.last_modified),
        )

    @renderer
    def form(self, _: object, tag: Tag) -> Tag:
        """Add the fields of the form."""
        for name, value in (("token", self._token), ("bucket", self._named), ("key", self._info.key)):
            tag(tags.input(type="hidden", name=name, value=value))
        return tag

    @renderer
    def back(self, _: object, tag: Tag) -> Tag:
        """Link to the list that has the object."""
        return tag(href=list_url(self._named, folder_of(self._info.key)))


def _id_of(tag: Tag) -> str:
    return str(tag.attributes["id"])


def _filled(tag: Tag, cell: Cell) -> Tag:
    """Add a cell to its element, as `fill` in page.js does."""
    if cell.tone:
        tag(**{"data-tone": cell.tone})
    if cell.hint:
        tag(title=cell.hint)
    if cell.done is not None:
        tag(tags.progress(max="1", value=f"{cell.done:.4f}", **{"aria-hidden": "true"}))
    return tag(cell.text)


def _cell(cell: Cell, label: str, is_header: bool = False) -> Tag:
    tag = tags.th(scope="row") if is_header else tags.td(**{"data-label": label})
    if cell.span > 1:
        tag(colspan=str(cell.span))
    return _filled(tag, cell)


def _row(row: Row, columns: Sequence[str]) -> Tag:
    cells = enumerate(zip(row, columns, strict=False))
    return tags.tr([_cell(cell, label, not number and cell.span == 1) for number, (cell, label) in cells])
