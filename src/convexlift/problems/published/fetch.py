"""Downloads of published data sets: over https, resumed, checked, and recorded with their SHA-256."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import numpy as np

from convexlift.problems.published import gas, hepmass, miniboone, power
from convexlift.problems.published.tables import TextTable

ARCHIVE = "https://archive.ics.uci.edu"
RECORDS = "SOURCE.json"
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without an answer

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Download:
    """A file of the archive: where it lies there, its name here, the table in it and its complete rows."""

    path: str
    name: str
    table: TextTable
    rows: int


DOWNLOADS = {
    "hepmass": tuple(
        Download(f"/ml/machine-learning-databases/00347/{table.name}.gz", f"{table.name}.gz", table, rows)
        for table, rows in ((hepmass.TRAIN, 7_000_000), (hepmass.TEST, 3_500_000))
    ),
    "miniboone": (
        Download(
            "/static/public/199/miniboone+particle+identification.zip",
            "MiniBooNE_PID.zip",
            miniboone.TABLE,
            130_064,
        ),
    ),
    "power": (
        Download(
            "/static/public/235/individual+household+electric+power+consumption.zip",
            "household_power_consumption.zip",
            power.TABLE,
            2_049_280,
        ),
    ),
    "gas": (
        Download(
            "/static/public/322/gas+sensor+array+under+dynamic+gas+mixtures.zip",
            "ethylene_CO.zip",
            gas.TABLE,
            4_208_261,
        ),
    ),
}


def _silent(doing: str, done: int, total: int | None) -> None:
    """No progress shown."""


def fetch(
    name: str, folder: str | Path, *, archive: str = ARCHIVE, progress: Progress = _silent
) -> dict[str, dict[str, Any]]:
    """Download the files of a data set into a folder, once; return what `SOURCE.json` there records of them.

    A file is downloaded to `FILE.part`, from where an earlier attempt broke off; its rows are checked; the
    record (url, bytes, sha256, rows, date) is written; then it gets its name. What fails the check is kept as
    `FILE.rejected`. A file that is there is only compared with its record.

    Args:
        name: "hepmass", "miniboone", "power" or "gas".
        folder: made if need be.
        archive: the address before the files' paths; https, or http on this machine.
        progress: called with what is done, and how many bytes or rows of how many (None: unknown).

    Raises:
        ValueError: an unknown name, an address that is not https, a file that differs from its record or is
            not the published table.
        ConnectionError: the archive cannot be reached or broke off.
        OSError: the folder cannot be written to, or has the file without a record.

    Example:
        >>> fetch("digits21", "data")
        Traceback (most recent call last):
        ...
        ValueError: there is nothing to download for 'digits21'; known: hepmass, miniboone, power, gas
    """
    if name not in DOWNLOADS:
        raise ValueError(f"there is nothing to download for '{name}'; known: {', '.join(DOWNLOADS)}")
    home = Path(folder)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder {home}: {error.strerror}") from error
    return {wanted.name: _fetch_one(wanted, home, archive, progress) for wanted in DOWNLOADS[name]}


def download(url: str, part: Path, progress: Progress = _silent) -> str:
    """Download `url` to `part`, or the rest of it where some is there; return the SHA-256 of the whole file.

    Raises a ValueError for an address or a redirect that is not https; a ConnectionError when the server
    cannot be reached, refuses, or breaks off (what came is kept); an OSError when `part` cannot be written.
    """
    start = part.stat().st_size if part.exists() else 0
    answer = _ask(url, start)
    if answer is None:  # all of it is there
        return sha256(part, progress)
    with closing(answer) as response:
        if response.status != 206:  # the server sends the whole file
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError(f"{url}: the server sent other bytes than asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        try:
            with open(part, "ab" if start else "wb") as file:
                digest, done = _digest(part, progress), start
                while chunk := _receive(response, url):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress(f"downloading {part.stem}", done, total)
                file.flush()
                os.fsync(file.fileno())
        except ConnectionError:
            raise
        except OSError as error:
            raise OSError(error.errno, f"cannot write {part}: {error.strerror}") from error
    if total is not None and done != total:
        raise ConnectionError(f"{url} broke off after {done:,} of {total:,} bytes; fetch again to go on")
    return digest.hexdigest()


def check_address(url: str, origin: str | None = None) -> None:
    """Refuse, with a ValueError, what is not https; http is let through to this machine, unless redirected
    from elsewhere.

    Example:
        >>> check_address("http://archive.ics.uci.edu/data.zip")
        Traceback (most recent call last):
        ...
        ValueError: refused to download http://archive.ics.uci.edu/data.zip: only https is allowed
    """
    local = _is_local(url) and (origin is None or _is_local(origin))
    if urlsplit(url).scheme != "https" and not local:
        raise ValueError(f"refused to download {url}: only https is allowed")


def check(file: Path, wanted: Download, progress: Progress = _silent) -> None:
    """Refuse, with a ValueError, a file without the published number of rows or with a constant column; its
    numbers are finite, or reading them raises."""
    rows, lowest, highest = 0, np.inf, -np.inf
    for block in wanted.table.blocks(file):
        rows += len(block)
        lowest, highest = np.minimum(lowest, block.min(0)), np.maximum(highest, block.max(0))
        progress(f"checking {wanted.name}", rows, wanted.rows)
    if rows != wanted.rows:
        raise ValueError(f"expected {wanted.rows:,} rows; got {rows:,}")
    constant = np.flatnonzero(lowest == highest)
    if len(constant):
        raise ValueError(f"column {wanted.table.columns[constant[0]] + 1} is constant")


def sha256(file: Path, progress: Progress = _silent) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits."""
    return _digest(file, progress).hexdigest()


def _digest(file: Path, progress: Progress) -> Any:
    digest, done, total = hashlib.sha256(), 0, file.stat().st_size
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(f"verifying {file.name}", done, total)
    return digest


def _fetch_one(wanted: Download, home: Path, archive: str, progress: Progress) -> dict[str, Any]:
    file, part, url = home / wanted.name, home / f"{wanted.name}.part", archive + wanted.path
    records = _records(home)
    known = records.get(wanted.name)
    if file.exists():
        if known is None:
            raise FileExistsError(
                f"{file} is there, but {RECORDS} does not record it: move it away to fetch it"
            )
        if sha256(file, progress) != known["sha256"]:
            raise ValueError(f"{file} differs from its record in {RECORDS}: move it away to fetch it anew")
        return known
    digest = download(url, part, progress)
    try:
        check(part, wanted, progress)
        if known is not None and digest != known["sha256"]:
            raise ValueError(f"its SHA-256 is {digest}, not {known['sha256']} as in {RECORDS}")
    except ValueError as error:
        part.replace(file.with_name(f"{file.name}.rejected"))
        reason = str(error).replace(str(part), wanted.name)
        raise ValueError(f"{url} is not as expected: {reason} (kept as {file}.rejected)") from error
    record = {
        "url": url,
        "bytes": part.stat().st_size,
        "sha256": digest,
        "rows": wanted.rows,
        "date": datetime.now(UTC).date().isoformat(),
    }
    _record(home, {**records, wanted.name: record})
    part.replace(file)
    return record


def _records(home: Path) -> dict[str, dict[str, Any]]:
    file = home / RECORDS
    if not file.exists():
        return {}
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
        if all(isinstance(record["sha256"], str) for record in records.values()):
            return dict(records)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{file} is not a record of downloads: move it away")


def _record(home: Path, records: dict[str, dict[str, Any]]) -> None:
    temporary = home / f".{RECORDS}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        temporary.replace(home / RECORDS)
    finally:
        temporary.unlink(missing_ok=True)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to allowed addresses only."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        check_address(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _ask(url: str, start: int) -> Any:
    """The server's answer to a request for the bytes from `start` on; None where there are no more."""
    check_address(url)
    headers = {"User-Agent": "convexlift", **({"Range": f"bytes={start}-"} if start else {})}
    opener = build_opener(_Redirects, *([ProxyHandler({})] if _is_local(url) else []))
    try:
        return opener.open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if start and error.code == 416:
            return None if error.headers.get("Content-Range") == f"bytes */{start}" else _ask(url, 0)
        raise ConnectionError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(f"cannot reach {urlsplit(url).netloc}: {reason}") from error


def _receive(response: Any, url: str) -> bytes:
    try:
        return bytes(response.read(CHUNK))
    except (http.client.HTTPException, OSError) as error:
        raise ConnectionError(f"{url} broke off; fetch again to go on from there") from error


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
