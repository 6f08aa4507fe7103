"""Tables of what ``convexlift compare`` and ``convexlift ablate`` left in results/."""

from __future__ import annotations

from common import interval_text, score_text, score_texts, scores, short, side_by_side, signed
from timing import Result, markdown

from convexlift.study.ablation import effects_table
from convexlift.study.ranking import complete, difference
from convexlift.study.report.answers import verdicts


def table_comparison(result: Result) -> str:
    """The main table of one comparison."""
    tests = score_texts({arm: row["test"] for arm, row in result["arms"].items()})
    rows = []
    for arm in complete(result):
        row = result["arms"][arm]
        cells = [arm, tests[arm], minus(result, "lift", arm)]
        cells += [score_text(row["half_budget"]), score_text(row["equal_seconds"])]
        cells += ["–" if row["lr"] is None else f"{row['lr']:g}", short(row["ms_per_step"], 3)]
        rows.append([*cells, f"{row['parameters']:,}"])
    head = (
        *("trained by", "test loss", "lift minus it (95 % interval)", "at half the steps"),
        *("at equal time", "chosen rate", "ms a step", "parameters"),
    )
    return markdown(head, rows)


def minus(section: Result, first: str, second: str) -> str:
    """The difference of two arms with its interval; nothing for an arm and itself, or where there is none."""
    found = difference(section, first, second) if first != second else None
    return interval_text(found) if found else ""


def table_overview(*results: Result) -> str:
    """One line for each comparison: every arm's loss, the tied best ones in bold."""
    return side_by_side({result["problem"]: result for result in results})


def table_common_overview(*results: Result) -> str:
    """The same at the one rate 0.001."""
    return side_by_side({result["problem"]: result["fixed_rate"] for result in results})


def table_verdict(result: Result) -> str:
    """The answers of the report page."""
    return "\n".join(f"- *{question}* {answer}" for question, answer in verdicts(result)) + "\n"


def table_variation(*results: Result) -> str:
    """Total variation to the exact density, for each comparison and arm."""
    arms = list(dict.fromkeys(arm for result in results for arm in result["arms"]))
    rows = []
    for result in results:
        metrics = [result["arms"][arm]["metrics"] for arm in arms]
        rows.append([result["problem"], *(score_text(each.get("total_variation")) for each in metrics)])
    return markdown(("target", *arms), rows)


def table_rates(result: Result) -> str:
    """Every arm's mean validation loss at every rate."""
    tried = [f"{row['lr']:g}" for row in next(iter(result["arms"].values()))["rates"]]
    losses = {arm: [row["validation"] for row in figures["rates"]] for arm, figures in result["arms"].items()}
    rows = [
        [arm, *("diverged" if loss is None else short(loss) for loss in by_rate)]
        for arm, by_rate in losses.items()
    ]
    return markdown(("trained by", *(f"at {rate}" for rate in tried)), rows)


def table_densities(*results: Result) -> str:
    """Comparisons of multivariate densities: each arm's loss beside those of two baselines."""
    arms = list(dict.fromkeys(arm for result in results for arm in result["arms"]))
    rows = []
    for result in results:
        metrics = [figures["metrics"] for figures in result["arms"].values()]
        error = max(each["log_z_error"]["mean"] for each in metrics if "log_z_error" in each)
        baselines = [f"{result['facts'][key]:.2f}" for key in ("gaussian", "kernel_density_estimate")]
        rows.append([result["problem"], *baselines, *scores(result, arms), f"{error:.3f}"])
    return markdown(("problem", "Gaussian", "kernel estimate", *arms, "error of log Z, at most"), rows)


def table_ablation(result: Result) -> str:
    """What each ingredient of the lift does, every arm at its own best rate."""
    return markdown(*effects_table(result))


def table_ablation_common(result: Result) -> str:
    """The same at the one rate 0.001."""
    return markdown(*effects_table(result, "fixed_rate"))


REMOVED = {
    "the coupling": "lift-independent",
    "all randomness": "lift-fixed-batch",
    "the body's learning": "lift-constant",
    "the same, with noise": "lift-noise",
    "the slack": "lift-no-slack",
}


def table_lead_lost(*results: Result) -> str:
    """What removing an ingredient takes of the lift's lead over softplus at the one rate 0.001."""
    sections = [result["fixed_rate"] for result in results]
    leads = [(difference(section, "softplus", "lift") or {}).get("mean") for section in sections]
    rows = []
    for ingredient, arm in REMOVED.items():
        cells = []
        for section, lead in zip(sections, leads, strict=True):
            lost = difference(section, arm, "lift")
            share = signed(round(100 * lost["mean"] / lead), "") if lost else ""
            cells.append(f"{interval_text(lost)}, {share} %" if lost else "–")
        rows.append([f"{ingredient} ({arm})", *cells])
    names = [f"ablate-{result['problem']}-{result['protocol']['optimizer']}" for result in results]
    head = [f"{name}: {short(lead, 3)} ahead of softplus" for name, lead in zip(names, leads, strict=True)]
    return markdown(("removed", *head), rows)
