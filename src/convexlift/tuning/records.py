"""The file of a search: every finished trial, so that an interrupted search goes on from there."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from convexlift.files import write_json
from convexlift.tuning.trial import Outcome, Trial

SEARCH = "search.json"


@final
class Records:
    """Outcomes by trial, in memory and, where there is a folder, in its `search.json`.

    Args:
        folder: where to keep them, or None.
        asked: what the search is, plain values: records of another one are refused.
        resume: go on with the records that are there.

    Raises:
        FileExistsError: there are records, and ``resume`` is False.
        ValueError: they are of another search, or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, asked: dict[str, Any], *, resume: bool) -> None:
        self.path = None if folder is None else Path(folder) / SEARCH
        self.asked = json.loads(json.dumps(asked))
        self.known: dict[str, Outcome] = {}
        self._entries: list[dict[str, Any]] = []
        if self.path is not None and self.path.exists():
            if not resume:
                raise FileExistsError(f"{self.path} is there already; pass resume=True or another folder")
            self._read(self.path)

    def get(self, trial: Trial) -> Outcome | None:
        return self.known.get(_key(trial.values()))

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Keep an outcome, in the file before the next one is waited for."""
        self._entries.append({"trial": trial.values(), "outcome": asdict(outcome)})
        self.known[_key(trial.values())] = outcome
        if self.path is not None:
            write_json(self.path, {"schema": 1, "search": self.asked, "trials": self._entries})

    def _read(self, path: Path) -> None:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            before, entries = dict(told["search"]), list(told["trials"])
            for entry in entries:
                found = {**entry["outcome"], "pieces": tuple(entry["outcome"]["pieces"])}
                self.known[_key(entry["trial"])] = Outcome(**found)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not readable as a search: {error}") from error
        for key in self.asked:
            if before.get(key) != self.asked[key]:
                raise ValueError(
                    f"{path} holds another search: its {key} is {before.get(key)!r}, here {self.asked[key]!r}"
                )
        self._entries = entries


def _key(trial: dict[str, Any]) -> str:
    return json.dumps(trial, sort_keys=True)
