"""Downloads of published data sets: over https, checked, and recorded with their SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final
from urllib.parse import urljoin, urlsplit

from convexlift.files import cannot_write, make_folder, write_json
from convexlift.locks import owned
from convexlift.names import close_names
from convexlift.problems.published import gas, hepmass, miniboone, power
from convexlift.problems.published.tables import TextTable

ARCHIVE = "https://archive.ics.uci.edu"
RECORDS = "SOURCE.json"
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without an answer

Progress = Callable[[str, int, int | None], None]


@final
@dataclass(frozen=True)
class Download:
    """A file of the archive: where it lies there, the table in it and its complete rows."""

    path: str
    table: TextTable
    rows: int

    @property
    def name(self) -> str:
        """The file's name here, one under which the problem looks for it."""
        return self.table.names[2 if self.path.endswith(".zip") else 1]


_HEPMASS = "/ml/machine-learning-databases/00347"
_MINIBOONE = "/static/public/199/miniboone+particle+identification.zip"
_POWER = "/static/public/235/individual+household+electric+power+consumption.zip"
_GAS = "/static/public/322/gas+sensor+array+under+dynamic+gas+mixtures.zip"
DOWNLOADS = {
    "hepmass": (
        Download(f"{_HEPMASS}/1000_train.csv.gz", hepmass.TRAIN, 7_000_000),
        Download(f"{_HEPMASS}/1000_test.csv.gz", hepmass.TEST, 3_500_000),
    ),
    "miniboone": (Download(_MINIBOONE, miniboone.TABLE, 130_064),),
    "power": (Download(_POWER, power.TABLE, 2_049_280),),
    "gas": (Download(_GAS, gas.TABLE, 4_208_261),),
}


def fetch(
    name: str, folder: str | Path, *, archive: str = ARCHIVE, progress: Progress = lambda *_: None
) -> dict[str, dict[str, Any]]:
    """Download the files of a data set into a folder, once; return what `SOURCE.json` there records of them.

    A file is downloaded with pooch to `FILE.part`; its rows are checked, and its SHA-256 where a record of it
    is there; the record (url, bytes, sha256, rows, date) is written; then it gets its name. What fails the
    check is kept as `FILE.rejected`. A file that is there is only compared with its record. A download that
    broke off begins anew: pooch does not take up half a file.

    Args:
        name: "hepmass", "miniboone", "power" or "gas".
        folder: made if need be.
        archive: the address before the files' paths; https, or http on this machine.
        progress: called with what is done, and how many bytes or rows of how many (None: unknown).

    Raises:
        ValueError: an unknown name, an address that is not https, a file that differs from its record or is
            not the published table.
        BlockingIOError: another process downloads into the folder.
        ConnectionError: the archive cannot be reached or broke off.
        OSError: the folder cannot be written to, or has the file without a record.
        ImportError: pooch is missing.

    Example:
        >>> fetch("digits21", "data")
        Traceback (most recent call last):
        ...
        ValueError: there is nothing to download for 'digits21'; known: hepmass, miniboone, power, gas
    """
    if name not in DOWNLOADS:
        hint = "".join(f"; did you mean '{close}'?" for close in close_names(name, DOWNLOADS))
        raise ValueError(f"there is nothing to download for '{name}'; known: {', '.join(DOWNLOADS)}{hint}")
    home = make_folder(folder)
    missing = not all((home / wanted.name).exists() for wanted in DOWNLOADS[name])
    with owned(home) if missing else nullcontext():
        return {wanted.name: _fetch_one(wanted, home, archive, progress) for wanted in DOWNLOADS[name]}


def download(url: str, file: Path, progress: Progress = lambda *_: None) -> None:
    """Download `url` to `file` with pooch.

    Raises a ValueError for an address or a redirect that is not https; a ConnectionError when the server
    cannot be reached, refuses, or breaks off; an OSError when `file` cannot be written.
    """
    try:
        import pooch
        import requests
    except ImportError as error:
        raise ImportError("downloads need pooch: pip install 'convexlift[problems]'") from error
    check_address(url)
    bar = _Bar(progress, f"downloading {file.stem}")
    get = pooch.HTTPDownloader(
        progressbar=bar,
        chunk_size=CHUNK,
        timeout=TIMEOUT,
        headers={"User-Agent": "convexlift", "Accept-Encoding": "identity"},
        hooks={"response": _check_redirect},
        proxies={"http": ""},  # http is for this machine only
    )
    try:
        get(url, str(file), None)
    except requests.HTTPError as error:
        answer: Any = error.response
        raise ConnectionError(f"{url}: the server answered {answer.status_code} {answer.reason}") from error
    except requests.RequestException as error:
        if bar.total is None:
            reason = str(getattr(next(iter(error.args), None), "reason", error)).rpartition("] ")[2]
            raise ConnectionError(f"cannot reach {urlsplit(url).netloc}: {reason}") from error
        done = f"{file.stat().st_size:,}{f' of {bar.total:,}' if bar.total else ''}"
        raise ConnectionError(f"{url} broke off after {done} bytes; fetch again") from error
    except OSError as error:
        raise cannot_write(file, error) from error


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


def _fetch_one(wanted: Download, home: Path, archive: str, progress: Progress) -> dict[str, Any]:
    file, part, url = home / wanted.name, home / f"{wanted.name}.part", archive + wanted.path
    records = _records(home / RECORDS)
    known = records.get(wanted.name)
    if file.exists():
        if known is None:
            raise FileExistsError(
                f"{file} is there, but {RECORDS} does not record it: move it away to fetch it"
            )
        if _sha256(file) != known["sha256"]:
            raise ValueError(f"{file} differs from its record in {RECORDS}: move it away to fetch it anew")
        return known
    try:
        download(url, part, progress)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    digest = _sha256(part)
    try:
        wanted.table.check(
            part, wanted.rows, lambda done: progress(f"checking {wanted.name}", done, wanted.rows)
        )
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
    write_json(home / RECORDS, {**records, wanted.name: record})
    part.replace(file)
    return record


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _records(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
        return {name: {**record, "sha256": str(record["sha256"])} for name, record in records.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is not a record of downloads: move it away") from None


@final
@dataclass
class _Bar:
    """A progress bar as pooch wants it; `total` is None until the server has answered, 0 where unknown."""

    show: Progress
    doing: str
    total: int | None = None
    done: int = 0

    def update(self, n: int) -> None:
        self.done += n
        self.show(self.doing, min(self.done, self.total or self.done), self.total or None)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _check_redirect(response: Any, **_: object) -> None:
    if response.is_redirect:
        check_address(urljoin(response.url, response.headers["location"]), response.url)


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
