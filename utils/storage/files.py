"""Files that are either the old one or the new one, whole, at every instant."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import UserError

CsvRows = Sequence[Mapping[str, str]]


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write to; it takes `path`'s place once complete and on the disk."""
    path = Path(path)  # in whose folder the temporary file lies, so that os.replace is atomic
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save answers a failed write with an OSError, and that with a RuntimeError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write {path}: {cause.strerror or cause}; free some space or choose a folder"
            " that is writable"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def atomic_write(path: str | os.PathLike, text: str) -> None:
    """Write a whole file, or leave the old one. Names that are no UTF-8 stay as they are."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write indented JSON; NaN and infinity are refused since JSON has neither."""
    atomic_write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a comma-separated table with one header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    atomic_write(path, text.getvalue())


def write_lines(path: str | os.PathLike, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a table whose lines have the same columns, one line at least."""
    write_csv(path, list(lines[0]), [list(line.values()) for line in lines])


def csv_cell(value: Any) -> Any:
    """A value that spreadsheets take for text where it is one, and never for a formula."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def read_csv(path: Path, columns: Sequence[str], hint: str) -> list[dict[str, str]]:
    """The rows of a table that has these columns."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a table"
        raise UserError(f"cannot read {path}: {reason}; {hint}") from error
    if not rows:
        raise UserError(f"{path} has no rows yet; {hint}")
    absent = [name for name in columns if name not in rows[0]]
    if absent:
        raise UserError(f"{path} has no column {', '.join(absent)}; {hint}")
    return rows


def series(rows: CsvRows, column: str) -> list[float]:
    """A column as numbers; an empty field is nan."""
    try:
        return [float(row.get(column) or "nan") for row in rows]
    except ValueError as error:
        raise UserError(
            f"the column {column} holds something else than numbers: {error}"
        ) from error


def names_sha256(names: Iterable[str]) -> str:
    """Hexadecimal SHA-256 of a list of file names, by their bytes: the same in any locale."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; put it back") from error
    return digest.hexdigest()


def make_folder(path: str | os.PathLike, fix: str = "choose a folder that is writable") -> Path:
    """Create a folder and its parents; `fix` is for a user who cannot write there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        fix = "give a shorter name" if error.errno == errno.ENAMETOOLONG else fix
        raise UserError(f"cannot write to {path}: {error.strerror or error}; {fix}") from error
    return path
