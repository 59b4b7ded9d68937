"""The official WebShop data files: finding them in a folder, reading them in bounded memory, and their checksums."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ITEMS, ATTRIBUTES, HUMAN, REVIEWS = "items_shuffle*.json", "items_ins_v2*.json", "items_human_ins.json", "reviews.json"
_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class OfficialFiles:
    """Paths of the data files; None for those that are not there.

    Args:
        items (`Path`): products.
        attributes (`Path`, *optional*): attributes of products, and synthetic instructions.
        human (`Path`, *optional*): instructions written by people.
        reviews (`Path`, *optional*): reviews and ratings (the official set-up does not download them either).
    """

    items: Path
    attributes: Path | None
    human: Path | None
    reviews: Path | None

    @property
    def present(self) -> list[Path]:
        return [path for path in (self.items, self.attributes, self.human, self.reviews) if path is not None]


def find_files(data_dir: str, items_file: str | None = None, attributes_file: str | None = None) -> OfficialFiles:
    """Finds the files in `data_dir`; the attributes are those with the ending (as `_1000`) of the products, if any.

    Raises:
        FileNotFoundError: no folder, no products, or a named file is missing; lists what was found.
        ValueError: several files fit and none is chosen.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir={data_dir!r} is not a folder; it must hold {ITEMS}")
    items = _choose(folder, ITEMS, "items_file", items_file)
    if items is None:
        raise FileNotFoundError(
            f"data_dir={data_dir!r} holds no {ITEMS} (the products); found are {_listing(folder)}. Expected names: "
            f"items_shuffle.json or items_shuffle_1000.json, and beside it {ATTRIBUTES} and {HUMAN}; another name of "
            "the products goes into items_file="
        )
    twin = folder / items.name.replace("items_shuffle", "items_ins_v2")
    if attributes_file is None and twin != items and twin.is_file():
        attributes_file = twin.name
    human, reviews = (path if path.is_file() else None for path in (folder / HUMAN, folder / REVIEWS))
    return OfficialFiles(items, _choose(folder, ATTRIBUTES, "attributes_file", attributes_file), human, reviews)


def read_array(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, one after the other: only about a chunk of the file is in memory at a time.

    Raises:
        ValueError: names the file, and the place where it is no array of objects.
    """
    decoder, text, place, number = json.JSONDecoder(), "", 0, 0
    with path.open(encoding="utf-8") as file:
        text = file.read(_CHUNK).lstrip()
        if not text.startswith("["):
            raise ValueError(f"{path} must hold a JSON array of products, it starts with {text[:20]!r}")
        place = 1
        while True:
            place = _skip(text, place)
            try:
                entry, end = decoder.raw_decode(text, place)
            except ValueError as error:
                if text.startswith("]", place):
                    return
                more = file.read(max(_CHUNK, len(text) - place))  # doubles for an entry longer than a chunk
                if not more:
                    raise ValueError(f"{path} is no complete JSON array, after entry {number}: {error}") from error
                text, place = text[place:] + more, 0
                continue
            if not isinstance(entry, dict):
                raise ValueError(f"{path}: entry {number} must be an object, got {entry!r:.40}")
            yield entry
            number, place = number + 1, end


def read_table(path: Path | None, kind: type = dict) -> Any:
    """A whole JSON file; an empty `kind` where there is none.

    Raises:
        ValueError: names the file.
    """
    if path is None:
        return kind()
    try:
        table = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; download it again") from error
    if not isinstance(table, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, got {type(table).__name__}")
    return table


def sha256(path: Path) -> str:
    """Checksum of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _skip(text: str, place: int) -> int:
    match = _BETWEEN.match(text, place)
    return match.end() if match else place


def _choose(folder: Path, pattern: str, argument: str, name: str | None) -> Path | None:
    """The named file, or the only one that fits the pattern; None if there is none."""
    if name is not None:
        if (folder / name).is_file():
            return folder / name
        raise FileNotFoundError(f"{argument}={name!r} is not in {str(folder)!r}; found are {_listing(folder)}")
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{str(folder)!r} holds several {pattern}: {names}; choose one with {argument}=")
    return found[0] if found else None


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return (", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")) or "no files"
