"""The report page, written from made-up comparisons: no figure here was measured."""

from __future__ import annotations

import copy
import html
import html.parser
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes

from convexlift.plots.drawing import axes_of, robust_range, tick, tick_text
from convexlift.plots.svg import as_svg, svg_file
from convexlift.study.arms import ARMS, MULTIPLIED, SCATTERED, WITHOUT
from convexlift.study.ranking import difference
from convexlift.study.report import chart_parts, figures, glossary, tables
from convexlift.study.report import page as report
from convexlift.study.report.advice import after_comparison
from convexlift.study.report.answers import verdicts
from convexlift.study.statistics import summary

MEANS = {"projected": 23.9, "softplus": 23.5, "softplus-fan-in": 23.48, "squared": 23.8, "lift": 23.3}


def made_up_result(
    problem: str = "made-up", means: dict[str, float] | None = None, *, noise: float = 0.02, seeds: int = 5
) -> dict[str, Any]:
    """A comparison in the form of result.json with invented figures."""
    draw = random.Random(problem)
    arms: dict[str, Any] = {}
    shared = [draw.gauss(0, 0.05) for _ in range(seeds)]
    rates = [0.001 * 2**k for k in range(8)]
    for name, mean in (means or MEANS).items():
        lift = name == "lift"
        per_seed = [mean + common + draw.gauss(0, noise) for common in shared]
        steps = list(range(0, 2001, 50))
        arms[name] = {
            "lr": 0.016,
            "test": _score(per_seed),
            "half_budget": _score([value + 0.15 for value in per_seed]),
            "equal_seconds": {
                **_score([value + (0.06 if lift else 0.01) for value in per_seed]),
                "seconds": 21.0,
            },
            "ms_per_step": 12.4 if lift else 10.9 if name != "projected" else 10.4,
            "parameters": 104_321 if lift else 81_234,
            "emission_noise": {"start": 0.031, "middle": 0.024, "end": 0.0} if lift else None,
            "step_amplification": {"start": 18.2, "end": 16.0} if lift else None,
            "shoulder": {"start": 0.02 if lift else 0.4, "end": 0.12 if lift else 0.55},
            "at_zero": {"start": 0.0, "end": 0.31 if name == "projected" else 0.0},
            "fan_in_weight": {"start": 1.0, "end": 0.83},
            "relative_speed": {"start": 0.97, "end": 0.9},
            "rates": [
                {
                    "lr": lr,
                    "validation": None if k > 6 else mean + 0.2 * (k - 4) ** 2 * (1 + draw.random() / 4),
                }
                for k, lr in enumerate(rates)
            ],
            "curves": {
                "steps": steps,
                "seconds": [step * (0.0124 if lift else 0.0109) for step in steps],
                "validation": [
                    [value + 6 * math.exp(-step / 180) + 0.4 * math.exp(-step / 700) for step in steps]
                    for value in per_seed
                ],
            },
            "failed": [],
        }
    return {
        "schema": 1,
        "problem": problem,
        "task": "flow",
        "metric": "negative log-likelihood (nats)",
        "description": "Invented figures, for looking at the page.",
        "facts": {"gaussian": 29.8},
        "protocol": {
            "budget": "standard",
            "steps": 2000,
            "batch_size": 512,
            "rates": rates,
            "selection_seeds": [100, 101],
            "evaluation_seeds": list(range(seeds)),
            "architecture": {"hidden": [64] * 5, "blocks": 1, "activation": "softplus"},
            "optimizer": "adam",
            "schedule": "cosine",
            "selection": "validation",
            "command": f"convexlift compare {problem} --budget standard --out results/{problem}",
        },
        "arms": arms,
        "pairs": {
            f"lift-{name}": _pair(arms["lift"]["test"]["per_seed"], arms[name]["test"]["per_seed"])
            for name in arms
            if "lift" in arms and name != "lift"
        },
        "fixed_rate": {
            "lr": 0.001,
            "arms": {
                name: {
                    key: copy.deepcopy(arms[base][key]) for key in ("test", "emission_noise", "parameters")
                }
                for name, base in (
                    ("softplus", "softplus"),
                    ("lift", "lift"),
                    ("lift-reference", "lift"),
                    ("softplus-scattered", "softplus"),
                    ("softplus-multiplied", "softplus"),
                )
                if base in arms
            },
            "pairs": {},
        },
        "environment": {"python": "3.11", "torch": "2.13.0", "cores": 2, "date": "2026-01-02", "seed": 0},
        "seconds": 521.0,
    }


PICTURES: dict[str, dict[str, Any]] = {
    "density": {"x": [-2.0, -1.0, 0.0, 1.0, 2.0], "y": [0.05, 0.24, 0.4, 0.24, 0.05]},
    "samples": {"points": [[-1.0, 0.5], [0.0, -0.5], [1.0, 0.25]]},
    "fit": {"y": [1.0, 2.0, 3.0]},
}


def with_models(kind: str = "samples", means: dict[str, float] | None = None) -> dict[str, Any]:
    """A made-up result as `compare` writes it now: with pictures, histograms, test loss by rate, middles."""
    result = made_up_result(means=means)
    for section in (result, result["fixed_rate"]):
        for arm in section["arms"].values():
            arm["picture"] = {"kind": kind, **copy.deepcopy(PICTURES[kind])}
            arm["weights"] = {
                "start": [0.0] * 20 + [0.25] * 4 + [0.0] * 8,
                "middle": [0.25] + [0.0] * 20 + [0.25] * 3 + [0.0] * 8,
                "end": [0.375] + [0.0] * 20 + [0.25, 0.25, 0.125] + [0.0] * 8,
            }
            for key in ("shoulder", "at_zero", "fan_in_weight", "relative_speed"):
                arm[key] = {"start": 0.1, "middle": 0.2, "end": 0.3}
    for arm in result["arms"].values():
        for rate in arm["rates"]:
            rate["test"] = rate["validation"] and rate["validation"] + 0.1
    result["picture"] = {"kind": kind, **copy.deepcopy(PICTURES[kind])}
    if kind == "samples":
        result["picture"]["columns"] = [4, 17]
    return result


def _score(per_seed: list[float]) -> dict[str, Any]:
    mean = sum(per_seed) / len(per_seed)
    if len(per_seed) < 2:
        return {"mean": mean, "sem": None, "per_seed": per_seed}
    variance = sum((value - mean) ** 2 for value in per_seed) / (len(per_seed) - 1)
    return {"mean": mean, "sem": math.sqrt(variance / len(per_seed)), "per_seed": per_seed}


def _pair(first: list[float], second: list[float]) -> dict[str, Any]:
    score = _score([a - b for a, b in zip(first, second, strict=True)])
    if score["sem"] is None:
        return {"mean": score["mean"], "ci95": None, "n": 1}
    reach, rows = 2.78 * score["sem"], 0.02
    return {
        "mean": score["mean"],
        "ci95": [score["mean"] - reach, score["mean"] + reach],
        "n": len(first),
        "rows_ci95": [score["mean"] - rows, score["mean"] + rows],
    }


# The sentences.


def answer(result: dict[str, Any], question: str) -> str:
    return next((told for asked, told in verdicts(result) if question in asked), "")


def arms(**per_seed: list[float | None]) -> dict[str, Any]:
    """The least that a result must hold."""
    return {
        "schema": 1,
        "problem": "least",
        "metric": "loss (nats)",
        "arms": {name.replace("_", "-"): {"test": summary(values)} for name, values in per_seed.items()},
    }


def test_a_clear_winner_is_called_one() -> None:
    told = answer(made_up_result(), "lowest loss")
    assert told.startswith("lift reached the lowest final loss: 23.")
    assert "the next, softplus" in told and "95 % interval" in told and "over 5 seeds" in told
    assert "over test rows" in told


def test_a_tie_is_called_a_tie() -> None:
    result = made_up_result(means={"softplus": 23.5, "lift": 23.5, "projected": 25.0}, noise=0.05)
    assert answer(result, "lowest loss").startswith("A tie between ")
    assert "clearly below projected" in answer(result, "lowest loss")
    assert "tied with softplus" in answer(result, "Did the lift help")


def test_three_equal_arms_are_a_tie() -> None:
    result = arms(lift=[1.0, 2.0, 3.0], softplus=[1.1, 1.9, 3.1], squared=[1.05, 2.1, 2.9])
    assert answer(result, "lowest loss").startswith("A tie: no way is clearly below the others.")
    assert answer(result, "Did the lift help") == "Not clearly: it is tied with squared and softplus."


def test_an_interval_over_test_rows_that_holds_zero_makes_a_tie() -> None:
    result = made_up_result(means={"softplus": 23.5, "lift": 23.3})
    assert answer(result, "lowest loss").startswith("lift reached")
    result["pairs"]["lift-softplus"]["rows_ci95"] = [-0.5, 0.1]
    assert answer(result, "lowest loss").startswith("A tie between lift and softplus.")


def test_a_loss_is_reported_as_plainly_as_a_win() -> None:
    result = made_up_result(means={"softplus": 23.3, "lift": 23.5})
    assert answer(result, "lowest loss").startswith("softplus reached the lowest final loss")
    assert answer(result, "Did the lift help").startswith("No: it is above softplus by 0.")


def test_a_ranking_that_turns_at_half_the_budget_is_no_final_win() -> None:
    result = made_up_result(means={"softplus": 23.5, "lift": 23.3})
    result["arms"]["lift"]["half_budget"] = summary([24.5] * 5)
    assert answer(result, "lowest loss").startswith("lift reached the lowest loss:")
    told = answer(result, "half the budget")
    assert "At half the steps softplus has the lowest mean (clearly)." in told
    assert "no way can be said to end lower" in told


def test_one_seed_allows_no_verdict() -> None:
    told = answer(arms(lift=[1.0], softplus=[2.0]), "lowest loss")
    assert (
        told == "lift has the lowest loss, 1.0000 nats, but one seed gives no interval: this is no verdict."
    )


def test_arms_that_failed_are_named() -> None:
    result = arms(lift=[1.0, 1.1, 1.0], softplus=[2.0, 2.1, 2.1], squared=[3.0, math.inf, 3.0])
    assert answer(result, "lowest loss").endswith("Not ranked, for seeds that diverged or failed: squared.")
    assert verdicts(arms(lift=[math.inf])) == [
        ("Which way of training reached the lowest loss?", "None: every run failed.")
    ]
    assert answer(arms(lift=[1.0, 1.1], softplus=[math.inf]), "lowest loss").startswith("Only lift finished")


def test_a_lift_without_noise_is_called_deterministic() -> None:
    result = made_up_result()
    assert answer(result, "random").startswith("lift: yes. Its weights vary from batch to batch by 3.1 %")
    result["arms"]["lift"]["emission_noise"] = {"start": 0.0003, "middle": 0.0002, "end": 0.0}
    told = answer(result, "random")
    assert "(0.030 % at the start and 0.020 % at the middle)" in told
    assert "lift: no." in told and "below 0.1 %: deterministic in effect" in told


def test_a_lift_that_falls_silent_is_random_only_at_first() -> None:
    result = made_up_result()
    result["arms"]["lift"]["emission_noise"] = {"start": 0.0085, "middle": 0.0004, "end": 0.0005}
    told = answer(result, "random")
    assert (
        told.startswith("lift: only at the start.")
        and "0.85 % at the start and 0.040 % at the middle" in told
    )


def test_the_cost_the_common_rate_the_edge_and_the_baselines() -> None:
    result = made_up_result()
    assert "lift takes 12.4 ms a step (1.14 times softplus) and trains 104,321" in answer(result, "cost")
    assert answer(result, "common rate").startswith("At 0.001 lift")
    assert "this is not the verdict" in answer(result, "common rate")
    assert answer(result, "baselines").startswith("Gaussian: 29.80 nats (lift is 6.")
    assert answer(result, "best rate?") == answer(result, "lowest loss")
    assert answer(result, "Did every way have its best rate") == ""
    result["protocol"]["on_edge"] = {"lift": "highest", "squared": "lowest"}
    assert answer(result, "Did every way have its best rate") == (
        "Not surely: squared did best at the lowest rate and lift did best at the highest rate tried, "
        "so another rate may do better."
    )


def test_a_recorded_difference_is_read_in_either_direction() -> None:
    result = made_up_result()
    result["pairs"] = {"lift-softplus": {"mean": -1.0, "ci95": [-2.0, -0.5], "rows_ci95": None, "n": 5}}
    assert difference(result, "lift", "softplus") == result["pairs"]["lift-softplus"]
    turned = difference(result, "softplus", "lift")
    assert turned is not None
    assert (turned["mean"], turned["ci95"], turned["rows_ci95"]) == (1.0, [0.5, 2.0], None)


# The page.


class Checker(html.parser.HTMLParser):
    """Collects text and tags; fails on a tag that is closed out of turn."""

    EMPTY = {"meta", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    for drawing in re.findall(r'<svg class="chart".*?\n</svg>', text, re.S):
        ElementTree.fromstring(drawing)
        assert "nan" not in re.sub(r"<title>.*?</title>|aria-label=\".*?\"", "", drawing)
    return checker


def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    file = report.write_report([made_up_result()], tmp_path / "new" / "report.html")
    text = file.read_text(encoding="utf-8")
    page = checked(text)
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|src=", text)
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert sum(tag == "figure" for tag, _ in page.tags) == 6
    words = " ".join(page.text)
    for needed in ("23.3", "minus lift", "0.016", "12.4", "104,321", "3.1 → 2.4 → 0 %", "2.0 → 12 %"):
        assert needed in words, needed
    assert "convexlift compare made-up --budget standard" in words
    assert "Every way at the one rate 0.001" in words
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]


def test_several_results_begin_with_an_overview() -> None:
    text = report.page([made_up_result("first"), made_up_result("second", {"softplus": 1.0, "lift": 1.5})])
    words = " ".join(checked(without_links(text)).text)
    assert "Over 2 problems" in words
    assert "lift is the lowest on 1; softplus is the lowest on 1" in words
    assert (
        text.index("Over 2 problems") < text.index('<section id="problem-1">') < text.index('id="problem-2"')
    )
    assert text.count('href="#problem-2"') == 2 and text.count('href="#overview"') == 2


def test_the_overview_tells_each_arm_s_distance_and_who_is_tied() -> None:
    results = [
        {**arms(lift=[1.0, 2.0, 3.0], softplus=[1.1, 1.9, 3.2], squared=[4.0, 5.0, 6.1]), "problem": "first"},
        {**arms(lift=[1.0, 2.0], projected=[math.inf, 1.0]), "problem": "second"},
    ]
    rows = cells(report.page(results))
    assert rows["first"][0] == "2.00 ± 0.58 lowest"
    assert rows["first"][1] == "2.07 ± 0.61 tied: +0.07 (−0.31 to 0.45)"
    assert rows["first"][2] == "5.03 ± 0.61 +3.03 (2.89 to 3.18)"
    assert rows["first"][3] == "–"
    assert rows["second"][3] == "1 of 2 seeds failed"


def test_text_from_results_is_escaped() -> None:
    evil = "<script>alert('x')</script>&"
    result = with_models(means={"lift": 1.0, evil: 2.0, "softplus": 3.0})
    result["arms"]["softplus"]["picture"] = {"kind": "failed", "message": evil}
    for key in ("problem", "metric", "description"):
        result[key] = evil
    result["protocol"][evil] = result["environment"][evil] = {evil: [evil]}
    result["protocol"]["command"] = result["facts"] = {evil: 1.0}
    result["arms"]["lift"]["failed"] = [evil]
    result["arms"]["lift"]["metrics"] = {evil: {"mean": 1.0, "sem": None}}
    for text in (report.page([result]), report.page([result, result])):
        assert "<script" not in text
        assert not any(tag == "script" for tag, _ in checked(text).tags)


@pytest.mark.parametrize(
    "result",
    [
        arms(lift=[1.0, 2.0], softplus=[1.5, 2.5]),
        arms(softplus=[1.0, 2.0], squared=[1.0, 2.0]),
        arms(lift=[1.0]),
        arms(lift=[math.inf], softplus=[None]),
        arms(lift=[1e-9, 2e-9], softplus=[1e9, 2e9]),
        {"problem": "bare", "arms": {"lift": {}}},
    ],
)
def test_sparse_results_make_a_page_too(result: dict[str, Any]) -> None:
    checked(report.page([result]))
    checked(report.page([result, made_up_result()]))


# The figures of models.


def figure(text: str, title: str) -> str:
    """The one figure of that title in the page's own figures; "" where there is none."""
    text = without_links(text).split("<h3>")[0].replace("&#39;", "'")
    found = re.findall(rf"<figure[^>]*><figcaption><b>{title}</b>.*?</figure>", text, re.S)
    assert len(found) <= 1
    return found[0] if found else ""


def without_links(text: str) -> str:
    """The text with its links to terms taken out."""
    return re.sub(r'<a class="term"[^>]*>(.*?)</a>', r"\1", text)


def cells(text: str) -> dict[str, list[str]]:
    """The cells of each row of the page's first table, as plain text, by the first word of its heading."""
    rows = re.findall(r"<tr>(.*?)</tr>", text.split("<tbody>")[1].split("</tbody>")[0], re.S)
    plain = [
        [
            " ".join(re.sub("<[^>]*>", " ", cell).split())
            for cell in re.findall("<t[hd].*?</t[hd]>", row, re.S)
        ]
        for row in rows
    ]
    return {heading.split()[0]: rest for heading, *rest in plain}


SHADED, DASHED = "fill: var(--muted); fill-opacity: 0.2", "fill: none; stroke-dasharray: "

TITLES = {
    "density": "The models' densities and the data's",
    "samples": "The data, and what the models generate",
    "fit": "Fitted against true values",
}


@pytest.mark.parametrize("kind", ["density", "samples", "fit"])
def test_every_model_is_drawn_beside_the_data(kind: str) -> None:
    text = report.page([with_models(kind)])
    checked(text)
    drawn = figure(text, TITLES[kind])
    assert drawn.count("<svg") == len(MEANS) + (kind == "samples")
    for name in MEANS:
        assert f">{name}</text>" in drawn
    assert {
        "density": SHADED in drawn and "exact density" in drawn,
        "samples": "column 4 (across) and column 17 (up)" in drawn and "the data</text>" in drawn,
        "fit": DASHED in drawn and "400 test rows" not in drawn and "3 test rows" in drawn,
    }[kind]
    assert "outside</text>" not in drawn and "peak at" not in drawn
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|src=", text)


def test_what_lies_outside_a_panel_is_counted() -> None:
    result = with_models("samples")
    result["arms"]["lift"]["picture"]["points"] = [[0.0, 0.0], [99.0, 0.0], [0.0, -99.0], [None, 0.0]]
    assert "2 outside</text>" in figure(report.page([result]), TITLES["samples"])
    result = with_models("density")
    result["arms"]["lift"]["picture"]["y"][2] = 7.5
    assert "peak at 7.5</text>" in report.page([result])


def test_a_picture_that_failed_and_one_that_is_missing_are_told() -> None:
    result = with_models("samples")
    result["arms"]["lift"]["picture"] = {"kind": "failed", "message": "the inverse did not converge"}
    result["arms"]["squared"]["picture"] = None
    drawn = figure(report.page([result]), TITLES["samples"])
    assert "No picture: the inverse" in drawn and "Without a finished run of seed 0: squared." in drawn
    for arm in result["arms"].values():
        arm["picture"] = {"kind": "failed", "message": "the inverse did not converge"}
    assert "No picture" in figure(report.page([result]), TITLES["samples"])
    result["picture"] = None
    checked(text := report.page([result]))
    assert figure(text, TITLES["samples"]) == ""


def test_pictures_without_the_data_s_are_drawn_alone() -> None:
    for kind in ("density", "samples", "fit"):
        checked(report.page([{**with_models(kind), "picture": None}]))


def test_the_weights_are_drawn_with_the_first_bin_written_out() -> None:
    result = with_models()
    result["arms"]["squared"]["weights"] = {}
    drawn = figure(report.page([result]), "How large the constrained weights are")
    assert drawn.count("0 → 38 %</text>") == len(MEANS) - 1
    assert "0 or below 1e-6:</text>" in drawn and "log10(fan-in × W)</text>" in drawn
    assert ">squared</text>" not in drawn


def test_test_loss_against_rate_says_that_it_was_not_used() -> None:
    text = report.page([with_models()])
    assert "the rates were chosen on this" in figure(text, "Validation loss against learning rate")
    drawn = figure(text, "Test loss against learning rate")
    assert "the rates were not chosen on this" in drawn and "lift at 0.128: diverged" in drawn
    assert ">test loss (nats)</text>" in drawn


def test_validation_rows_are_not_labelled_with_the_metric_of_test_rows() -> None:
    text = report.page([{**with_models("fit"), "metric": "noiseless mean squared error"}])
    assert ">validation loss</text>" in text and "validation noiseless" not in text


def test_an_older_result_has_none_of_these_figures() -> None:
    text = report.page([made_up_result()])
    for title in (*TITLES.values(), "Test loss against learning rate", "How large the constrained weights"):
        assert title not in html.unescape(text)
    assert "start → end" in text and "The weights and models at this rate" in text


# The figures of traced runs.


def traced() -> dict[str, Any]:
    """A made-up ablation: two arms that read a batch, one that does not; the last has no weight anywhere."""
    result = made_up_result(means={"lift": 1.0, "lift-independent": 1.1, "lift-constant": 1.2})

    def points(size: float, p_values: list[float]) -> list[dict[str, float]]:
        return [
            {
                "t": 0.3 * k,
                "trace": -size / 10**k,
                "trace_error": size / 10**k / 4,
                "norm": size,
                "p_value": p_value,
                "curvature": 0.0,
            }
            for k, p_value in enumerate(p_values)
        ]

    def effect(size: float, p_values: list[float], stay: float | None) -> dict[str, Any]:
        stays = summary([stay and stay + 0.01 * seed for seed in range(2)])
        return {
            "along": [points(size, p_values), points(size, p_values), None],
            "dwell": stays,
            "occupancy": stays,
        }

    effects = {
        "lift": effect(1e-3, [0.005, 0.05, 0.051], 0.5),
        "lift-independent": effect(1e-3, [0.3, 0.9, 0.2], 0.6),
        "lift-constant": effect(0.0, [1.0, 1.0, 1.0], None),
    }
    result["ablation"] = {"reference": "lift", "tuned": effects, "fixed_rate": copy.deepcopy(effects)}
    return result


COUPLED = "Do the weights fluctuate together with the gradient"


def test_the_coupling_is_drawn_along_training_filled_where_it_was_found() -> None:
    text = report.page([traced()])
    checked(text)
    drawn = figure(text, rf"{COUPLED}\?")
    panels = re.findall(r'<svg class="chart".*?\n</svg>', drawn, re.S)
    assert len(panels) == 2 and ">lift</text>" in panels[0] and ">lift-independent</text>" in panels[1]
    assert [len(marks(panel)) for panel in panels] == [6, 6]
    assert [sum("fill: var(--panel)" in mark for mark in marks(panel)) for panel in panels] == [2, 6]
    assert "Exactly zero for lift-constant: no batch is read." in drawn
    assert "seed 2 at 0.3: −0.00010 ± 2.5e−05, p = 0.05<" in panels[0]
    assert ">30 %</text>" in panels[0] and ">share of training</text>" in panels[0]


def marks(panel: str) -> list[str]:
    """The marks of the readings: round, in a series' colour, filled or hollow."""
    return re.findall(r'<use [^>]*style="fill: var[^>]*stroke: var\(--series[^>]*>', panel)


def test_whiskers_reach_two_standard_errors_either_way() -> None:
    point = {"t": 0.0, "trace": 1.0, "trace_error": 0.25, "p_value": 0.5}
    assert figures._whisker(point) == (0.5, 1.5)
    text = report.page([traced()])
    panel = re.findall(r'<svg class="chart".*?\n</svg>', figure(text, rf"{COUPLED}\?"), re.S)[0]
    whiskers = re.findall(r'd="M ([\d.]+) ([\d.]+)\nL \1 ([\d.]+)\n" clip', panel)
    assert len(whiskers) == 6 and all(float(low) > float(high) for _, low, high in whiskers)


def test_the_scale_is_linear_near_zero_and_has_the_sign_of_the_value() -> None:
    ax = signed(1.0)
    decades = 2e-4 * math.log(10)
    scaled = {v: ax.transScale.transform((0.0, v))[1] / decades for v in (0.0, -1e-3, 1e-3, 1e-6, 2e-6, 0.1)}
    assert scaled[0.0] == 0.0
    assert scaled[-1e-3] == -scaled[1e-3]
    assert scaled[2e-6] == pytest.approx(2 * scaled[1e-6], rel=1e-3)
    assert scaled[0.1] == pytest.approx(3.0, abs=1e-5)
    ticks = [signed(reach).yaxis.get_ticklabels() for reach in (1e-4 * 10**2.5, 1e-4 * 10**0.9)]
    assert [tick.get_text() for tick in ticks[0]] == ["−1e−2", "−1e−3", "0", "1e−3", "1e−2"]
    assert [tick.get_text() for tick in ticks[1]] == ["−1e−4", "0", "1e−4"]
    assert signed(1e-4 * 10**0.9).get_yticks()[2] == pytest.approx(1e-4)


def signed(reach: float) -> Axes:
    """Axes up to that far either way, on the scale of the coupling with its unit 1e-4."""
    ax = axes_of(None, 190, 200)
    ax.set_ylim(-reach, reach)
    figures._signed(ax, 1e-4)
    return ax


def test_stays_have_a_row_for_every_arm_that_had_any() -> None:
    text = report.page([traced()])
    for title in ("How long weights stay on the flat part", "How many weights are on the flat part"):
        drawn = figure(text, title)
        wide = re.findall(r'<svg class="chart".*?\n</svg>', drawn, re.S)[0]
        assert ">lift</text>" in wide and ">lift-independent</text>" in wide
        assert ">lift-constant</text>" not in wide
        assert "lift, seed 2: 0.51" in wide and ">0.5050 ± 0.0050</text>" in wide


def test_damaged_and_missing_traces_make_a_page_too() -> None:
    result = traced()
    effects = result["ablation"]["tuned"]
    effects["lift"]["along"][0][1]["trace"] = None
    effects["lift"]["along"][1] = []
    effects["lift-independent"] = {"along": [], "dwell": None}
    drawn = figure(report.page([result]), rf"{COUPLED}\?")
    assert len(marks(drawn)) == 2
    checked(report.page([result]))
    effects["lift"]["along"] = [[{"t": 0.0, "trace": 0.0, "trace_error": 0.0, "norm": 1.0, "p_value": 1.0}]]
    checked(report.page([result]))
    for without in (None, {}, {"tuned": {}}):
        assert COUPLED not in report.page([{**result, "ablation": without}])
        assert "on the flat part</b>" not in report.page([{**result, "ablation": without}])


# The tables and terms.


def test_the_weights_table_has_every_phase() -> None:
    words = " ".join(checked(report.page([with_models()])).text)
    assert words.count("start → middle → end") >= 5
    assert "10 → 20 → 30 %" in words and "0.10 → 0.20 → 0.30" in words


def test_the_common_rate_s_table_explains_its_controls() -> None:
    result = with_models()
    result["fixed_rate"]["arms"]["softplus-multiplied"]["source_factor"] = 9.74
    text = report.page([result])
    after = html.unescape(without_links(text)).split("Every way at the one rate 0.001")[1]
    for name in ("lift-reference", "softplus-scattered", "softplus-multiplied"):
        assert f"<li><b>{name}</b>: {glossary.ARMS[name]}.</li>" in after
    assert "× 9.74" in after
    for title in (TITLES["samples"], "How large the constrained weights are"):
        assert title in after
    assert "at the one rate" not in report.page([{**result, "fixed_rate": None}])


def test_every_arm_and_puzzling_term_is_explained() -> None:
    assert set(glossary.ARMS) == {*ARMS, SCATTERED, MULTIPLIED}
    assert set(glossary.ABLATIONS) == set(WITHOUT)
    text = report.page([made_up_result()])
    terms = text.split('<section id="terms">')[1].lower()
    assert all(f'<dt id="term-{name}">{name}</dt>' in terms for name in (*glossary.ARMS, *glossary.ABLATIONS))
    for term in ("on the flat part", "batch noise", "step amplification", "half budget", "equal seconds"):
        assert term in terms
    assert 'href="#terms"' in text


def test_what_is_missing_or_diverged_is_shown_as_such() -> None:
    result = made_up_result()
    lift = result["arms"]["lift"]
    lift["test"] = {"mean": None, "sem": None, "per_seed": [23.0, None, 23.1, 23.2, 23.1]}
    lift["failed"] = ["lift, rate 0.016, seed 1: training diverged after 3 steps"]
    lift["curves"]["validation"][0][3] = None
    words = " ".join(checked(report.page([result])).text)
    assert "1 of 5 seeds failed" in words
    assert "What failed" in words and "training diverged after 3 steps" in words
    assert "lift at 0.128: diverged" in words


def test_the_best_on_validation_has_its_step() -> None:
    result = made_up_result()
    curves = [[25.0, 23.0, 24.0], [26.0, None, 25.0], [24.0, 22.0, 23.0]]
    result["arms"]["lift"]["curves"] = {"steps": [0, 1000, 2000], "seconds": [0, 1, 2], "validation": curves}
    table = tables.arms_table(result, "losses")
    assert table is not None
    rows = {row[0]: row for row in table.rows}
    assert "23.33 at 1,000" in rows["lift"]  # the mean of 23, 25 and 22
    assert tables._best_so_far({}) == "–"


# Reading.


def test_a_result_is_read_from_its_folder_or_file(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(made_up_result()), encoding="utf-8")
    assert report.read_result(tmp_path) == report.read_result(tmp_path / "result.json") == made_up_result()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b"[]", "is not the result of a comparison"),
        (b'{"schema": 1, "kind": "train flow"}', "is not the result of a comparison"),
        (
            b'{"schema": 2, "problem": "x", "arms": {}}',
            "has schema 2; this version of convexlift reads schema 1",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        report.read_result(tmp_path)


def test_nothing_to_read_or_to_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no comparison at .*: .*result.json does not exist"):
        report.read_result(tmp_path)
    with pytest.raises(ValueError, match="there is no comparison to report"):
        report.write_report([], tmp_path / "report.html")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    message = r"^a report needs jinja2 and matplotlib: pip install 'convexlift\[report\]'$"
    with pytest.raises(ImportError, match=message):
        report.page([made_up_result()])


# Charts.


def test_an_arm_looks_the_same_on_every_page() -> None:
    alone, among = chart_parts.styles(["lift"]), chart_parts.styles(["mine", "squared", "lift", "softplus"])
    assert alone["lift"] == among["lift"]
    assert len(set(among.values())) == 4


def ticks(low: float, high: float) -> list[float]:
    ax = axes_of(None, 400, 300)
    ax.set(xlim=(low, high))
    tick(ax, 5)
    return [float(place) for place in ax.get_xticks() if low - 1e-9 <= place <= high + 1e-9]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(23.13, 23.91) == pytest.approx([23.2, 23.4, 23.6, 23.8])
    assert [tick_text(value) for value in (-0.5, 2000.0, 1e-5)] == ["−0.5", "2,000", "1e−05"]


def test_an_outlier_does_not_squash_the_chart_and_is_not_dropped() -> None:
    values = [1.0, 1.1, 1.2, 1.3, 500.0]
    assert robust_range(values)[1] < 2
    assert robust_range([5.0]) == pytest.approx((4.95, 5.05))
    row = chart_parts.Row("lift", chart_parts.styles(["lift"])["lift"], 1.1, dots=values)
    ax = chart_parts.row_chart([row], "loss", robust_range(values))
    beyond = [line for line in ax.lines if line.get_marker() == ">"]
    assert [line.get_xdata()[0] for line in beyond] == [robust_range(values)[1]]
    drawing = as_svg(lambda: chart_parts.row_chart([row], "loss", robust_range(values)), "losses")
    assert "lift: 500" in drawing


def test_losses_beyond_a_chart_of_rates_are_arrow_heads_on_its_edge_and_crosses_above() -> None:
    line = chart_parts.Line("lift", chart_parts.styles(["lift"])["lift"], [0.1, 0.2, 0.4], [1.0, 9.0, None])
    ax = chart_parts.line_chart([line], "learning rate", "loss", (0, 2), [0.1, 0.2, 0.4])
    edge = {drawn.get_marker(): (list(drawn.get_xdata()), list(drawn.get_ydata())) for drawn in ax.lines[1:]}
    assert edge == {"^": ([0.2], [1.0]), "x": ([0.4], [1.04])}
    drawing = as_svg(lambda: ax, "losses")
    assert "lift at 0.2: 9 (above the frame)<" in drawing and "lift at 0.4: diverged<" in drawing
    assert "× diverged</text>" in drawing


def test_a_chart_of_its_own_carries_its_colours() -> None:
    line = chart_parts.Line("loss", chart_parts.styles(["loss"])["loss"], [1.0, 2.0], [3.0, 1.0])
    chart = svg_file(lambda: chart_parts.line_chart([line], "step", "loss", (0, 4)), "loss by step")
    root = ElementTree.fromstring(chart)
    assert root.attrib["viewBox"] == "-12 -12 524 354"
    assert "--series-0" in chart


def test_the_page_ends_in_what_to_do_now() -> None:
    text = html.unescape(report.page([made_up_result()]))
    advice = text[text.index("What to do now") :]
    assert "convexlift train flow --data your.csv --source lift --lr 0.016 --out runs/mine" in advice
    assert "convexlift sample runs/mine -n 1000 --out new.csv" in advice
    assert "convexlift compare --own MODULE:FUNCTION" in advice and "--budget standard" not in advice


@pytest.mark.parametrize(
    ("change", "there", "missing"),
    [
        ({"protocol": {"budget": "quick"}}, "convexlift compare made-up --budget standard", "nothing"),
        ({"task": "regression"}, "convexlift compare --own", "convexlift train"),
        ({"task": "density"}, "convexlift train density --data your.csv --source lift", "train flow"),
        ({"arms": {}}, "convexlift train flow --data your.csv --out runs/mine", "--source"),
    ],
)
def test_advice_fits_the_comparison(change: dict[str, Any], there: str, missing: str) -> None:
    told = "\n".join(after_comparison([{**made_up_result(), **change}]).values())
    assert there in told and missing not in told


def test_advice_after_several_comparisons_names_no_winner() -> None:
    told = "\n".join(after_comparison([made_up_result(), made_up_result("other")]).values())
    assert "convexlift train flow --data your.csv --out runs/mine" in told and "--budget" not in told
