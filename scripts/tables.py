#!/usr/bin/env python3
"""Write the tables and verdicts in README.md and docs/ anew from the files in results/.

    python scripts/tables.py            rewrite
    python scripts/tables.py --check    exit 1 if anything would change

What is made stands between `<!-- KIND: NAME ... -->` and `<!-- end -->`. The kinds are the functions in
`KINDS` below, a name is a folder or file in results/.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from convexlift.study.ablation import effects_table
from convexlift.study.ranking import Result, difference, is_clear, ranking, tied_with_best
from convexlift.study.report.answers import verdicts
from convexlift.study.report.numbers import interval_text, score_text, short
from convexlift.study.report.page import read_result
from convexlift.study.statistics import paired_difference

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- (\w+): ([\w ./-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# The sides of benchmarks/tabular.py, in the order of the table.
TABULAR = {
    "maf": "MAF",
    "maf-chosen": "MAF, chosen",
    "nsf": "NSF",
    "nsf-chosen": "NSF, chosen",
    "flow-softplus": "flow, softplus",
    "flow": "flow",
    "flow-chosen": "flow, chosen",
}


def comparison(name: str) -> str:
    """The main table of one comparison."""
    result = read(name)
    rows = []
    for arm in complete(result):
        row = result["arms"][arm]
        found = difference(result, "lift", arm) if arm != "lift" else None
        rows.append(
            [
                arm,
                score_text(row["test"]),
                interval_text(found) if found else "",
                score_text(row["half_budget"]),
                score_text(row["equal_seconds"]),
                "–" if row["lr"] is None else f"{row['lr']:g}",
                short(row["ms_per_step"], 3),
                f"{row['parameters']:,}",
            ]
        )
    head = (
        *("trained by", "test loss", "lift minus it (95 % interval)", "at half the steps"),
        *("at equal time", "chosen rate", "ms a step", "parameters"),
    )
    return markdown(head, rows)


def common(name: str) -> str:
    """The table at the one rate 0.001."""
    section = read(name)["fixed_rate"]
    rows = [
        [arm, score_text(section["arms"][arm]["test"]), interval_text(found) if found else ""]
        for arm in complete(section)
        for found in [difference(section, "lift", arm) if arm != "lift" else None]
    ]
    return markdown(("trained by", "test loss at rate 0.001", "lift minus it (95 % interval)"), rows)


def overview(names: str) -> str:
    """One line for each comparison: every arm's loss, the tied best ones in bold."""
    return side_by_side({name: read(name) for name in names.split()})


def common_overview(names: str) -> str:
    """The same at the one rate 0.001."""
    return side_by_side({name: read(name)["fixed_rate"] for name in names.split()})


def verdict(name: str) -> str:
    """The answers of the report page."""
    return "\n".join(f"- *{question}* {answer}" for question, answer in verdicts(read(name))) + "\n"


def variation(names: str) -> str:
    """Total variation to the exact density, for each comparison and arm."""
    results = [read(name) for name in names.split()]
    arms = list(dict.fromkeys(arm for result in results for arm in result["arms"]))
    rows = [
        [
            result["problem"],
            *(score_text(result["arms"][arm]["metrics"].get("total_variation")) for arm in arms),
        ]
        for result in results
    ]
    return markdown(("target", *arms), rows)


def rates(name: str) -> str:
    """Every arm's mean validation loss at every rate."""
    result = read(name)
    tried = [f"{row['lr']:g}" for row in next(iter(result["arms"].values()))["rates"]]
    rows = [
        [
            arm,
            *(
                "diverged" if row["validation"] is None else short(row["validation"])
                for row in figures["rates"]
            ),
        ]
        for arm, figures in result["arms"].items()
    ]
    return markdown(("trained by", *(f"at {rate}" for rate in tried)), rows)


def flow_step(name: str) -> str:
    """The first shape of benchmarks/flow_step.py."""
    result = stored(name)["shapes"][0]
    rows = [[side, f"{ms:.1f}", f"{result['ratio'][side]:.2f}"] for side, ms in result["ms"].items()]
    return markdown(("one exact training step", "ms", "times ours"), rows)


def flow_steps(name: str) -> str:
    """Every shape of benchmarks/flow_step.py: our time, each baseline as a ratio, how far from the floor."""
    shapes = stored(name)["shapes"]
    others = [side for side in shapes[0]["ms"] if side != "closed form"]
    rows = [
        [
            f"{shape['depth']}, {shape['batch']}",
            f"{result['ms']['closed form']:.1f}",
            *(f"{result['ratio'][side]:.2f}" if side in result["ratio"] else "" for side in others),
            f"{result['floor_ms']:.1f} ({100 * result['share_of_floor']:.0f} %)",
            f"{100 * result['rate_in_products']:.0f} %",
            f"{result['peak_bytes_per_sample']['closed form'] / 1e3:.0f}",
        ]
        for result in shapes
        for shape in [result["shape"]]
    ]
    head = ("depth, batch", "closed form (ms)", *others, "floor, ms (share reached)")
    return markdown((*head, "rate of the products", "peak KB a sample"), rows)


def high_dimension(name: str) -> str:
    """A flow in 256 dimensions trained on estimates, by benchmarks/high_dimension.py."""
    result = stored(name)
    flow, gaussian, step = result["rows"]["flow"], result["rows"]["gaussian"], result["step_ms"]
    within = f"{100 * flow['within_two_standard_errors']:.0f} % within two standard errors"
    rows = [
        ["Gaussian, full covariance", f"{gaussian['nats']:.1f}", f"{gaussian['bits']:.3f}", ""],
        [
            "flow, estimated",
            f"{flow['nats']:.1f} ± {flow['error_of_mean_over_seeds']:.1f}",
            f"{flow['bits']:.3f}",
            f"{step['estimated']:.0f}",
        ],
        [
            f"the same flow, exact, {flow['exact_rows']} rows",
            f"{flow['exact_nats']:.1f}",
            "",
            f"{step['exact']:.0f}",
        ],
        [
            f"estimated on those rows ({within})",
            f"{flow['estimated_nats_same_rows']:.1f}",
            "",
            "",
        ],
    ]
    return markdown(("density", "test log-likelihood (nats)", "bits a dimension", "ms a training step"), rows)


def tabular(names: str) -> str:
    """Test losses of the tabular benchmark, a problem a line; the mixture of the seeds' models beneath."""
    rows = []
    for name in names.split():
        found = stored(name)
        gaussian, sides = found["gaussian"], found["sides"]
        lone = {"mean": gaussian["test"], "sem": gaussian["rows_sem"]}
        cells = [score_text(sides[side]["test"]) if side in sides else "" for side in TABULAR]
        rows.append([found["problem"], score_text(lone), *cells])
        mixed = [short(sides[s]["ensemble"]["test"], 5) if has_mixture(sides.get(s)) else "" for s in TABULAR]
        rows.append([f"mixture of {len(found['setting']['seeds'])}", "", *mixed])
    return markdown(("problem", "Gaussian", *TABULAR.values()), rows)


def tabular_pairs(names: str) -> str:
    """Differences of the tabular benchmark, single models and mixtures."""
    pairs = ("flow - nsf", "flow-chosen - nsf-chosen", "flow-chosen - flow")
    rows = []
    for name in names.split():
        found = stored(name)
        for pair in pairs:
            row = found["pairs"][pair]
            first, second = (TABULAR[side] for side in pair.split(" - "))
            by_rows = [f"{bound:.3f}".replace("-", "−") for bound in row["rows_ci95"] or ()]
            mixed = row["ensemble"]
            rows.append(
                [
                    found["problem"],
                    f"({first}) − ({second})",
                    interval_text(row) if row["mean"] is not None else "diverged",
                    " to ".join(by_rows),
                    interval_text({"mean": mixed["mean"], "ci95": mixed["rows_ci95"]}) if mixed else "",
                ]
            )
    heads = ("problem", "difference", "single models (95 %, seeds)", "(95 %, rows)", "mixtures (95 %, rows)")
    return markdown(heads, rows)


def tabular_recipes(names: str) -> str:
    """What each side of the tabular benchmark chose, and its cost."""
    rows = []
    for name in names.split():
        found = stored(name)
        for side, title in TABULAR.items():
            if side not in found["sides"]:
                continue
            row = found["sides"][side]
            recipe = row["recipe"]
            said = {
                "normal marginals": recipe["front"] == "marginals",
                f"noise {recipe['jitter']:g}": recipe["jitter"],
                f"decay {recipe['weight_decay']:g}": recipe["weight_decay"],
                f"sharpness {recipe['sharpness']}": recipe["sharpness"],
                "width 128": recipe["hidden"] == [128, 128],
            }
            rows.append(
                [
                    *(found["problem"], title, f"{recipe['lr']:g}"),
                    ", ".join(what for what, chosen in said.items() if chosen),
                    *(f"{row['parameters']:,}", short(row["cpu_seconds"])),
                    *(score_text(row["train"]), score_text(row["validation"]), score_text(row["test"])),
                ]
            )
    heads = (
        "problem",
        "side",
        "rate",
        "and",
        "parameters",
        "seconds a run",
        "training",
        "validation",
        "test",
    )
    return markdown(heads, rows)


def tabular_full(name: str) -> str:
    """What the full HEPMASS would take, by benchmarks/tabular_full.py."""
    result = stored(name)
    rows = [
        [
            str(row["batch_size"]),
            f"{row['ms_per_step']:.1f}",
            f"{row['rows_per_second']:,.0f}",
            f"{row['seconds_per_epoch']:.0f}",
            f"{row['hours_extrapolated']:.2f}",
            f"{row['peak_mib'] / 1024:.1f}",
        ]
        for row in result["batches"]
    ]
    hours = f"hours for {result['setting']['epochs']} epochs (extrapolated)"
    head = (
        "batch",
        "ms a step",
        "rows a second",
        "seconds an epoch",
        hours,
        "peak memory of the process, GiB",
    )
    return markdown(head, rows)


def plateaus(name: str) -> str:
    """Plateaus of the validation curves, by benchmarks/landscapes.py."""
    rows = [
        [
            *(row["problem"], row["start"], f"{row['lr']:g}", row["arm"]),
            f"{row['with_plateau']} of {row['runs']}",
            f"{100 * row['share']:.0f} %",
            short(row["depth"]) if row["depth"] else "",
            "diverged" if row["mean"] is None else f"{row['mean']:.4g} ± {row['error']:.1g}",
        ]
        for row in stored(name)["rows"]
    ]
    head = ("problem", "start", "rate", "trained by", "runs with a plateau", "share of the run on one")
    return markdown((*head, "deepest (nats)", "test loss"), rows)


def landscapes(name: str) -> str:
    """What the straight lines from start to end say, by benchmarks/landscapes.py."""
    rows = [
        [
            *(plane["problem"], plane["start"], plane["rate"], arm),
            *(f"{found[key]:.3f}" for key in ("start", "end")),
            short(found["barrier"]) if found["barrier"] > 0 else "none",
            "yes" if found["monotone"] else "no",
            f"{found['distance']:.1f}",
            f"{found['path_length'] / found['distance']:.1f}",
        ]
        for plane in stored(name)["landscapes"]
        for arm, found in plane["arms"].items()
    ]
    head = (
        "problem",
        "start",
        "rate",
        "trained by",
        "loss at the start",
        "at the end",
        "barrier on the line",
    )
    return markdown((*head, "falls all along it", "distance", "path / distance"), rows)


def lift_step(name: str) -> str:
    """The table of benchmarks/lift_step.py."""
    result = json.loads((ROOT / "results" / name).read_text())
    rows = [
        [side, f"{row['ms']:.2f}", f"{row['ratio_to_softplus']:.2f}", f"{row['parameters_over_network']:.2f}"]
        for side, row in result["rows"].items()
    ]
    return markdown(("network, trained by", "ms a step", "times softplus", "parameters / network"), rows)


def flow_inverse(name: str) -> str:
    """The table of benchmarks/flow_inverse.py."""
    result = stored(name)
    rows = [
        [
            *(str(dim), side, f"{row['ms']:.0f}", f"{row['ratio']:.1f}"),
            f"{row['converged']} of {result['shape']['rows']}",
        ]
        for dim, part in ((21, "rows"), (256, "rows_256"))
        for side, row in result[part].items()
    ]
    return markdown(("d", "inverse of a trained block", "ms", "times ours", "rows within 1e-8"), rows)


def ablation(name: str) -> str:
    """What each ingredient of the lift does, every arm at its own best rate."""
    return markdown(*effects_table(read(name)))


def ablation_common(name: str) -> str:
    """The same at the one rate 0.001."""
    return markdown(*effects_table(read(name), "fixed_rate"))


def prediction(name: str) -> str:
    """How far softplus at the predicted rate is from the lift, by benchmarks/summary_split.py."""
    rows = json.loads((ROOT / "results" / name).read_text())["prediction"]
    kinds = list(dict.fromkeys(row["lift"] for row in rows))
    table: dict[tuple[str, str, float], dict[str, str]] = {}
    for row in rows:
        gap = interval_text(over_seeds(row["relative_gap"])) if row["relative_gap"] else "diverged"
        factor = "" if row["factor"] is None else f"× {short(row['factor'], 2)}: "
        table.setdefault((row["problem"], row["optimizer"], row["lr"]), {})[row["lift"]] = factor + gap
    lines = [
        [problem, optimizer, f"{lr:g}", *(cells.get(kind, "") for kind in kinds)]
        for (problem, optimizer, lr), cells in table.items()
    ]
    return markdown(("problem", "optimiser", "rate", *kinds), lines)


def fluctuation(name: str) -> str:
    """The lift with its fluctuation only, coupled and independent, by benchmarks/summary_split.py."""
    rows = json.loads((ROOT / "results" / name).read_text())["fluctuation"]
    base = {(row["problem"], row["batch"]): row for row in rows if row["trained_by"] == "softplus"}
    pairs: dict[tuple[str, int, float], dict[str, Result]] = {}
    for row in rows:
        if row["trained_by"] != "softplus":
            pairs.setdefault((row["problem"], row["batch"], row["scale"]), {})[row["trained_by"]] = row
    lines = []
    for (problem, batch, scale), sides in pairs.items():
        coupled, independent = sides["batch"], sides["independent"]
        losses = [side["test"]["per_seed"] for side in (coupled, independent)]
        noise = [value for value in coupled["emission_noise"] if value is not None]
        tests = [sum(p is not None and p <= 0.05 for p in side["p_value"]) for side in (coupled, independent)]
        lines.append(
            [
                *(problem, str(batch), f"{scale:g}"),
                f"{short(100 * sum(noise) / len(noise))} %" if noise else "–",
                *(
                    f"{short(sum(t) / len(t))}" if (t := traces(side)) else "–"
                    for side in (coupled, independent)
                ),
                f"{tests[0]} and {tests[1]} of {len(losses[0])}",
                score_text(base[problem, batch]["test"]),
                *(interval_text(side["minus_softplus"]) for side in (coupled, independent)),
                interval_text(paired_difference(*losses)) if None not in sum(losses, []) else "–",
            ]
        )
    head = (
        *("problem", "batch", "scale", "noise", "tr Σ_batch, coupled", "independent", "tests p ≤ 0.05"),
        *("softplus", "coupled minus it", "independent minus it", "coupled minus independent"),
    )
    return markdown(head, lines)


def settings(name: str) -> str:
    """Standardisation, readout and its scale, by benchmarks/summary_split.py."""
    rows = json.loads((ROOT / "results" / name).read_text())["settings"]
    table: dict[tuple[str, str, float], dict[str, str]] = {}
    for row in rows:
        if row["trained_by"] == "lift":
            key = (str(row["standardise"]), row["readout"], row["scale"])
            table.setdefault(key, {})[row["problem"]] = interval_text(row["minus_softplus"])
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    lines = [
        [kind, readout, f"{scale:g}", *(cells.get(problem, "") for problem in problems)]
        for (kind, readout, scale), cells in table.items()
    ]
    return markdown(("summary", "readout", "scale", *problems), lines)


def lift_variants(name: str) -> str:
    """Changes of the centred lift against softplus and against their own independent batches."""
    rows = {(row["problem"], row["batch"], row["arm"]): row for row in stored(name)["rows"]}
    lines = []
    for (problem, batch, arm), row in rows.items():
        if arm.endswith(", independent"):
            continue
        twin = rows.get((problem, batch, f"{arm}, independent"))
        noise = [value for value in row["emission_noise"] if value is not None]
        tests = [p for p in row["p_value"] if p is not None]
        lines.append(
            [
                *(problem, str(batch), arm, f"{row['lr']:g}"),
                f"{short(100 * sum(noise) / len(noise))} %" if noise else "",
                short(sum(t) / len(t)) if (t := traces(row)) else "",
                f"{sum(p <= 0.05 for p in tests)} of {len(tests)}" if tests else "",
                score_text(row["test"]),
                starred(row["minus_softplus"]),
                starred(twin and twin["minus_softplus"]),
                starred(row["minus_independent"]),
            ]
        )
    head = (
        *("problem", "batch", "trained by", "rate", "noise", "tr Σ_batch", "tests p ≤ 0.05", "test loss"),
        *("minus softplus", "independent minus softplus", "coupled minus independent"),
    )
    return markdown(head, lines)


def densities(names: str) -> str:
    """Comparisons of multivariate densities: each arm's loss beside those of two baselines."""
    sections = {name: read(name) for name in names.split()}
    arms = list(dict.fromkeys(arm for section in sections.values() for arm in section["arms"]))
    rows = []
    for section in sections.values():
        best = tied_with_best(section)
        cells = [score_text(section["arms"][arm]["test"]) if arm in section["arms"] else "" for arm in arms]
        marked = [f"**{cell}**" if arm in best else cell for arm, cell in zip(arms, cells, strict=True)]
        error = max(
            figures["metrics"]["log_z_error"]["mean"]
            for figures in section["arms"].values()
            if "log_z_error" in figures["metrics"]
        )
        facts = section["facts"]
        rows.append(
            [
                section["problem"],
                f"{facts['gaussian']:.2f}",
                f"{facts['kernel_density_estimate']:.2f}",
                *marked,
                f"{error:.3f}",
            ]
        )
    return markdown(("problem", "Gaussian", "kernel estimate", *arms, "error of log Z, at most"), rows)


def log_z(name: str) -> str:
    """The table of benchmarks/log_z.py."""
    rows = [
        [
            f"{case.split()[0]} law, {case.split()[1]} dimensions",
            f"{row['mean']:+.4f}".replace("-", "−"),
            f"{row['rms']:.4f}",
            f"{row['standard_error']:.4f}",
            f"{row['within_0.02']} of {row['repeats']}",
            f"{row['covered']} of {row['repeats']}",
            str(len(row["refused"])),
            f"{row['seconds']:.1f}",
        ]
        for case, row in stored(name)["rows"].items()
    ]
    head = (
        *("rotated product of", "mean error (nats)", "root mean square", "standard error given"),
        *("within 0.02", "within two standard errors", "refused", "seconds"),
    )
    return markdown(head, rows)


def density_sample(name: str) -> str:
    """The table of benchmarks/density_sample.py."""
    found = stored(name)
    rows = [
        ["seconds", f"{found['seconds']:.1f}"],
        ["largest R-hat", f"{found['r_hat']:.4f}"],
        ["smallest effective sample size", f"{found['smallest_ess']:,.0f}"],
        ["largest distance of a mean from the longer run's", f"{found['largest_distance_of_means']:.2f}"],
        ["of a variance", f"{found['largest_distance_of_variances']:.2f}"],
        ["both in Monte Carlo errors; 99 % of such largest ones are below", f"{found['limit']:.2f}"],
        ["log Z", f"{found['log_z']:.3f} ± {found['log_z_error']:.3f}"],
        ["seconds for log Z", f"{found['log_z_seconds']:.1f}"],
    ]
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    return markdown((f"{found['draws']:,} draws, d = {found['dim']}, {threads}", ""), rows)


def exact(name: str) -> str:
    """The first table of benchmarks/exact_density.py: total variation, and its ratio to exact."""
    found = [row for row in stored(name)["rows"] if not row["arm"].startswith("alpha")]
    arms = list(dict.fromkeys(row["arm"] for row in found))
    rows = []
    for target, size in dict.fromkeys((row["target"], row["rows"]) for row in found):
        by_arm = {row["arm"]: row for row in found if (row["target"], row["rows"]) == (target, size)}
        ours = by_arm["squared"]
        low, high = ours["total_variation_ratio"]["ci95"]
        rows.append(
            [
                target,
                f"{size:,}",
                *(f"{by_arm[a]['total_variation']['mean']:.4f}" for a in arms),
                f"{ours['total_variation_ratio']['ratio']:.2f} ({low:.2f} to {high:.2f})",
                f"{ours['hellinger_ratio']['ratio']:.2f}",
                f"{1e3 * ours['inside_gain_over_exact']['mean']:+.2f}".replace("-", "−"),
                f"{100 * ours['outside_share']:.2f} %",
            ]
        )
    called = {"squared": "network", "kde": "kernel estimate", "gaussian": "Gaussian", "exact": "exact"}
    head = (
        *("target", "rows", *(f"total variation, {called[a]}" for a in arms)),
        *("network / exact (95 %)", "Hellinger, ratio", "likelihood gain inside, millinats", "outside"),
    )
    return markdown(head, rows)


def alpha(name: str) -> str:
    """Its second table: what the strong convexity costs."""
    rows = [
        [
            "0.02, learned (the recipe)" if row["arm"] == "squared" else row["arm"].removeprefix("alpha "),
            score_text({"mean": row["total_variation"]["mean"], "sem": row["total_variation"]["sem"]}),
            f"{row['total_variation_ratio']['ratio']:.2f}",
        ]
        for row in stored(name)["rows"]
        if row["arm"].startswith("alpha") or (row["arm"] == "squared" and is_alpha_setting(row))
    ]
    return markdown(("alpha", "total variation", "to the exact estimator's"), rows)


def is_alpha_setting(row: Result) -> bool:
    """Whether a row is of the sample that the strong convexity was varied on."""
    return (row["target"], row["rows"]) == ("laplace", 1000)


def image_latents(name: str) -> str:
    """The table of benchmarks/image_latents.py."""
    found = stored(name)
    arms = list(found["classes"]["all"]["arms"])
    rows = [
        [
            label,
            f"{row['training_rows']:,}",
            f"{row['gaussian']:.2f}",
            *(
                f"{row['arms'][arm]['test']:.2f} ± {row['arms'][arm]['standard_error_of_rows']:.2f}"
                for arm in arms
            ),
            f"{max(row['arms'][arm]['log_z_error'] for arm in arms):.3f}",
        ]
        for label, row in found["classes"].items()
    ]
    head = ("class", "training rows", "Gaussian", *arms, "error of log Z, at most")
    return markdown(head, rows)


def lead_lost(names: str) -> str:
    """What removing an ingredient takes of the lift's lead over softplus at the one rate 0.001."""
    sections = {name: read(name)["fixed_rate"] for name in names.split()}
    leads = {
        name: (difference(section, "softplus", "lift") or {}).get("mean")
        for name, section in sections.items()
    }
    removed = {
        "the coupling": "lift-independent",
        "all randomness": "lift-fixed-batch",
        "the body's learning": "lift-constant",
        "the same, with noise": "lift-noise",
        "the slack": "lift-no-slack",
    }
    rows = []
    for ingredient, arm in removed.items():
        cells = []
        for name, section in sections.items():
            lost = difference(section, arm, "lift")
            share = f"{round(100 * lost['mean'] / leads[name])} %".replace("-", "−") if lost else ""
            cells.append(f"{interval_text(lost)}, {share}" if lost else "–")
        rows.append([f"{ingredient} ({arm})", *cells])
    head = [f"{name}: {short(lead, 3)} ahead of softplus" for name, lead in leads.items()]
    return markdown(("removed", *head), rows)


def rate_bands(name: str) -> str:
    """Lowest mean and band of rates of every arm and start, by benchmarks/rates.py."""
    problems = stored(name)["problems"]
    rows = []
    for key in next(iter(problems.values())):
        arm, start = key.split(", ")
        cells = []
        for arms in problems.values():
            row = arms[key]
            lowest = min(loss for loss in row["test"].values() if loss is not None)
            cells += [f"{lowest:.4f}", *(band_text(row, which) for which in ("own", "overall"))]
        rows.append([start, arm, *cells])
    head = [text for name in problems for text in (f"{name}: lowest mean", "own band", "overall")]
    return markdown(("start", "arm", *head), rows)


def band_text(row: Result, which: str) -> str:
    """The width of a band as a factor; at least that where it ends at an end of the grid."""
    band = row[f"band_{which}"]
    if band is None:
        return "none"
    tried = sorted(map(float, row["test"]))
    cut = band[0] <= tried[0] or band[1] >= tried[-1]
    factor = row[f"factor_{which}"]
    return f"{'≥ ' if cut else ''}{factor:,.0f}" if factor >= 100 else f"{'≥ ' if cut else ''}{factor:.3g}"


def flow_bands(name: str) -> str:
    """The widths of the bands of the flows, read from their comparisons by benchmarks/rates.py."""
    found = stored(name)["compared"]
    arms = list(dict.fromkeys(arm for row in found.values() for arm in row))
    rows = [[problem, *(f"{row[arm]['factor_own']:.1f}" for arm in arms)] for problem, row in found.items()]
    return markdown(("flow", *arms), rows)


EITHER = ("smooth", "kinked, averaged")


def by_shape(problem: str, by: str, skips: bool, name: str) -> str:
    """What benchmarks/depth.py ran of one problem, a row for every arm and recipe.

    A column for every depth at width 64 or, by "width", for every width at depth 4; of networks with skips
    or, without, of those whose first layer alone reads x.
    """
    found, held = stored(name), {"depth": (1, 64), "width": (0, 4)}[by]
    sizes, recipes = found["sizes"].get(problem, {}), found["recipes"].get(problem, {})
    known = {shape: read_shape(shape) for rows in (sizes, *recipes.values()) for shape in rows}
    shown = (shape for shape in known if known[shape][held[0]] == held[1] and known[shape][2] == skips)
    shapes = sorted(shown, key=lambda shape: known[shape])

    def text(figures: Result | None, note: str = "") -> str:
        if figures is None or figures["test"] is None:
            return "" if figures is None else "diverged"
        return f"{figures['test']:.2f} ± {figures['standard_error']:.2f}{note}"

    def note(figures: Result | None, key: str) -> str:
        if figures is None or key == "published":
            return ""
        return f" ({figures['lr']:g}{', decay' if figures.get('weight_decay') else ''})"

    arms = list(dict.fromkeys(arm for rows in sizes.values() for arm in rows))
    rows = []
    for key, said in (("published", "rate 0.01"), ("tuned", "best rate"), ("decayed", "best rate and decay")):
        for arm in arms:
            cells = [sizes.get(shape, {}).get(arm, {}).get(key) for shape in shapes]
            rows.append([f"{arm}, {said}", *(text(cell, note(cell, key)) for cell in cells)])
    for title, figures in recipes.items():
        rows.append([title, *(text(figures.get(shape)) for shape in shapes)])
    pairs = [[recipes.get(title, {}).get(shape) for title in EITHER] for shape in shapes]
    rows.append(["the better of these two on validation", *(text(lower(*pair)) for pair in pairs)])
    heads = [f"{by} {known[shape][by == 'width']}" for shape in shapes]
    return markdown(("trained by", *heads), [row for row in rows if any(row[1:])])


def lower(one: Result | None, other: Result | None) -> Result | None:
    """Of two recipes the one with the lower validation loss, seed by seed."""
    if one is None or other is None:
        return None
    sides = [list(zip(side["validation"], side["seeds"], strict=True)) for side in (one, other)]
    tests = [min(pair)[1] for pair in zip(*sides, strict=False)]
    error = statistics.stdev(tests) / math.sqrt(len(tests))
    return {"test": statistics.fmean(tests), "standard_error": error}


def read_shape(shape: str) -> tuple[int, int, bool]:
    """Depth, width and whether there are skips, of "4 x 64" or "4 x 64, no skips"."""
    widths, _, rest = shape.partition(", ")
    layers, units = widths.split(" x ")
    return int(layers), int(units), not rest


def regression_defaults(name: str) -> str:
    """Ways to train a convex regression, over the 16 problems of benchmarks/regression_defaults.py."""
    rows = [
        [
            title,
            f"{row['geometric_mean']:.2f}",
            f"{row['worst']:,.1f} ({row['worst_problem'].replace(' 1 columns', ' 1 column')})",
            str(row["best_on"]),
        ]
        for title, row in stored(name)["ratios"].items()
    ]
    return markdown(("trained by", "error / least error", "at worst", "least on"), rows)


def recipe(name: str) -> str:
    """Every untuned recipe against the best tuned arm, by benchmarks/recipe.py.

    A recipe that was not run for a kind of task is squared weights there.
    """
    figures = stored(name)["figures"]
    plain = "squared throughout"
    titles = [plain, *(title for title in figures if title != plain)]
    rows, near = [], dict.fromkeys(titles, 0)
    for part, problems in figures[plain].items():
        for problem, first in problems.items():
            rival, rate, loss = first["best_tuned"]
            decimals = 4 if loss < 1 else 3
            cells = []
            for title in titles:
                row = figures[title].get(part, {}).get(problem)
                near[title] += (row or first)["near"]
                if row is None:
                    cells.append("as squared")
                    continue
                gap = f"{row['difference']['mean']:+.{decimals}f}".replace("-", "−")
                arm, lr, decay = row["choice"]
                step = f"{lr:g}{f', decay {decay:g}' if decay else ''}"
                cells.append(f"{arm} {step}: {gap}{' ✓' if row['near'] else ''}")
            said = problem if part == "searched" else f"{problem} (not searched)"
            rows.append([said, f"{rival} {rate:g}: {loss:.{decimals}f}", *cells])
    counted = len(rows)
    rows.append(["near", "", *(f"{count} of {counted}" for count in near.values())])
    names = [title.removesuffix(" throughout") for title in titles]
    return markdown(("problem", "best tuned arm", *names), rows)


def beyond_icnn(name: str) -> str:
    """Every arm's loss on the two modules of benchmarks/beyond_icnn.py."""
    return side_by_side(stored(name)["subjects"])


KINDS: dict[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (
        *(comparison, common, overview, common_overview, verdict, variation, rates),
        *(flow_step, flow_steps, flow_inverse, lift_step, high_dimension),
        *(tabular, tabular_pairs, tabular_recipes, tabular_full, plateaus, landscapes),
        *(ablation, ablation_common, prediction, fluctuation, settings, lift_variants, lead_lost),
        *(rate_bands, flow_bands, recipe, regression_defaults, beyond_icnn),
        *(densities, log_z, density_sample, exact, alpha, image_latents),
    )
}
# Six views of the study of sizes: depth, width, without_skips, and each with _logsumexp.
KINDS |= {
    f"{view}{suffix}": partial(by_shape, problem, by, skips)
    for suffix, problem in (("", "regression-square"), ("_logsumexp", "regression-logsumexp"))
    for view, by, skips in (
        ("depth", "depth", True),
        ("width", "width", True),
        ("without_skips", "depth", False),
    )
}


def has_mixture(side: Result | None) -> bool:
    """Whether every seed of a side ended with a model."""
    return side is not None and side["ensemble"] is not None


def over_seeds(values: Sequence[float]) -> Result:
    """The mean of some figures with its 95 % t-interval."""
    return paired_difference(values, [0.0] * len(values))


def starred(found: Result | None) -> str:
    """A difference with its interval, with a star where that leaves out zero; nothing where there is none."""
    if found is None:
        return ""
    if found["mean"] is None:
        return "diverged"
    return interval_text(found) + ("*" if is_clear(found) else "")


def traces(row: Result) -> list[float]:
    """The coupling of each seed that has one."""
    return [value for value in row["trace"] if value is not None]


def stored(name: str) -> Result:
    """The file of that name in results/."""
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def read(name: str) -> Result:
    """The result in that folder of results/."""
    return read_result(ROOT / "results" / name)


def side_by_side(sections: Mapping[str, Result]) -> str:
    """Every arm's loss in each section, the lowest mean and the arms tied with it in bold."""
    arms = list(dict.fromkeys(arm for section in sections.values() for arm in section["arms"]))
    rows = []
    for name, section in sections.items():
        best = tied_with_best(section)
        cells = [score_text(section["arms"][arm]["test"]) if arm in section["arms"] else "" for arm in arms]
        marked = [f"**{cell}**" if arm in best else cell for arm, cell in zip(arms, cells, strict=True)]
        rows.append([name, *marked])
    return markdown(("problem", *arms), rows)


def complete(section: Result) -> list[str]:
    """Every arm, lowest loss first, those without a loss last."""
    order = ranking(section)
    return order + [arm for arm in section["arms"] if arm not in order]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rewritten(text: str) -> str:
    """The text with everything between its marks made anew."""
    return MARKED.sub(lambda match: match[1] + KINDS[match[2]](match[3]) + match[4], text)


def main() -> int:
    stale = False
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            stale = True
            if "--check" not in sys.argv[1:]:
                page.write_text(after, encoding="utf-8")
    return int(stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
