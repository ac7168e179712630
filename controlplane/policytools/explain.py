"""A policy in sentences: what each detector looks for and how well, what each rule needs and does. Pure but for figures."""

from collections.abc import Callable, Iterator

from controlplane.detect import figures, trial
from controlplane.detect.figures import Figures
from controlplane.policy.models import (
    Autonomy,
    BernoulliCusum,
    Clamp,
    Cusum,
    Detector,
    Family,
    Policy,
    RobustZ,
    Rule,
    Shortfall,
    Slide,
    Stall,
    Streak,
    Threshold,
    Trend,
)
from controlplane.policy.signals import NO_KEY

QUICK = 20_000, 40
"""Readings and trials of a simulation made on the spot, for settings that were not measured before."""


def explain(policy: Policy, progress: Callable[[str], None] = lambda _: None) -> str:
    """The whole policy for a person. Detectors with settings of their own are simulated, which takes seconds each."""
    found = {
        name: None if _counted(config) else _figures(name, config, policy, progress)
        for name, config in policy.detectors.items()
    }
    lines = [*_frame(policy), "", "What it looks for"]
    for name, config in policy.detectors.items():
        lines += [f"  {name}: {looks_for(config, policy)}", f"      {_quality(config, found[name])}"]
    lines += ["", "What it does"]
    if not policy.rules:
        lines.append("  Nothing: there are no rules. Findings are written down and shown.")
    for rule in policy.rules:
        lines += _rule(rule, policy, found)
    if policy.clamps:
        lines += ["", "Limits"]
        lines += [f"  {_clamp(name, clamp)}" for name, clamp in policy.clamps.items()]
    return "\n".join(lines) + "\n"


def looks_for(config: Detector, policy: Policy) -> str:
    """What makes a detector alarm, in a sentence."""
    match config:
        case Cusum():
            usual = "what the forecast expects" if config.reference == "forecast" else "its recent level"
            where = "below" if config.side == "low" else "above"
            return (
                f"{config.signal} stays {where} {usual} (deviations past {config.k:g} spreads add up to {config.h:g})"
            )
        case RobustZ():
            return (
                f"{config.signal} is {config.above:g} spreads above its recent level, {_in_a_row(config.consecutive)}"
            )
        case Threshold():
            side = "above" if config.above is not None else "below"
            late = f", from step {config.from_step} on" if config.from_step else ""
            return f"{config.signal} is {side} {config.limit:g}, {_in_a_row(config.consecutive)}{late}"
        case BernoulliCusum():
            return f"{config.signal} has gone from {config.usual:g} to {config.bad:g}, batch by batch (evidence {config.h:g})"
        case Trend():
            side = "above" if config.above is not None else "below"
            return f"{config.signal} will be {side} {config.limit:g} within {config.within_steps} steps"
        case Slide():
            return f"{config.signal} falls {config.falls} times in a row or more and loses {config.share:.0%}"
        case Streak():
            return f"NaN or infinite values, {config.steps} steps in a row"
        case Stall():
            return f"no step for {config.times:g} usual step times, and at least {config.seconds:g} s"
        case Shortfall():
            target = policy.forecast.target or 0
            return (
                f"the forecast misses {target:g} with probability above {config.probability:g}, "
                f"{config.consecutive} forecasts in a row"
            )


def _figures(name: str, config: Detector, policy: Policy, progress: Callable[[str], None]) -> Figures | None:
    signal = getattr(config, "signal", None)
    spec = policy.signal(signal) if signal else None
    if (known := figures.known(config, spec)) is not None:
        return known
    if not isinstance(config, Streak | Stall | Shortfall):
        progress(f"simulates {name}, whose settings have not been measured before")
    return trial.measure(config, spec, *QUICK)


def _quality(config: Detector, found: Figures | None) -> str:
    if found is not None:
        return f"{found.sentence(_unit(config))} ({found.readings:,} simulated readings)"
    if _counted(config):
        return "no false alarms, for it is counted and not estimated"
    match config:
        case Streak():
            return f"no false alarms, for it counts; found in {config.steps} steps"
        case Stall():
            return "no false alarms while no step takes that long; found after that time"
    return "as often wrong as the forecast's own calibration says (docs/forecast.md)"


def _counted(config: Detector) -> bool:
    """Whether a level is judged of something without noise: ages, and the staleness of a batch."""
    return isinstance(config, Threshold) and config.signal in NO_KEY - {"utilization"}


def _unit(config: Detector) -> str:
    return "evaluations" if getattr(config, "signal", "") == "eval_pass_rate" else "steps"


def _frame(policy: Policy) -> Iterator[str]:
    levels = {level: [f.value for f in Family if policy.allows(frozenset({f})) is level] for level in Autonomy}
    words = {Autonomy.act: "may act on", Autonomy.advise: "advises on", Autonomy.observe: "only writes down"}
    said = [f"{words[level]} {', '.join(levels[level])}" for level in reversed(Autonomy) if levels[level]]
    yield f"Policy {policy.name}: {'; '.join(said)}."
    if policy.observe_until_step:
        yield f"Before step {policy.observe_until_step} people are told and the run is not touched."
    told = (
        "a person is told"
        if policy.freshness.on_stale == "hold_and_page"
        else "telling people is left to the alert rules"
    )
    yield f"Data older than {policy.freshness.max_age_seconds:g} s are not acted on; {told}."
    for name in (name for name, signal in policy.signals.items() if signal.must_have_data):
        yield f"Without a value of {name} for that long nothing is done either."
    if policy.approval.required_for:
        after = {"drop": "it is dropped", "page": "it is dropped and a person called", "act": "it is done"}
        families = ", ".join(family.value for family in policy.approval.required_for)
        wait, late = policy.approval.expires_steps, after[policy.approval.on_timeout]
        yield f"Approval is needed for {families}; without an answer in {wait} steps {late}."
    budget = policy.budget
    yield f"All rules together: at most {budget.max_actions} actions and {budget.max_rollbacks} rollbacks in a run."
    if policy.tuning is not None and policy.tuning.design != "off":
        tuning, asked = policy.tuning, policy.allows(frozenset({Family.probe})) is not Autonomy.act
        space = ", ".join(f"{name} (at most x {factor:g})" for name, factor in tuning.space.items())
        who = (
            "when a person asks" if asked else f"when the target is missed with probability {tuning.miss_probability:g}"
        )
        yield (
            f"Probes {space} {who}: {tuning.most_arms} arm{'s' if tuning.most_arms > 1 else ''} of {tuning.steps} steps, at most {tuning.max_probes} in a run. "
            f"{_WHERE[tuning.design]}"
        )
    revert = "taken back if it did not help" if policy.verdict.revert else "never taken back by itself"
    yield f"Every action is judged after {policy.verdict.after_steps} steps; a change is {revert}."


_WHERE = {
    "inline": "Meanwhile the run waits: an arm that is adopted becomes the run, otherwise its time is lost.",
    "spare": "A second process trains them while the run goes on; what is adopted is the value alone.",
    "switchback": "The run itself takes turns between the two values; nothing is thrown away, only large effects are found, and "
    "a bad value harms the run: keep the steps small, and have a rule that rolls back.",
}


def _rule(rule: Rule, policy: Policy, found: dict[str, Figures | None]) -> Iterator[str]:
    yield f"  {rule.name} ({rule.priority}): {_when(rule)}"
    yield f"      {_then(rule, policy)}"
    if rule.then.families:
        limits = rule.limits
        back = ""
        if rule.recover:
            back = f"; back by x {rule.recover.step:g} after every {rule.recover.after_quiet_steps} quiet steps"
        yield f"      at most {_times(limits.max_per_run)} in a run, {limits.cooldown_steps} steps apart{back}"
    rates = {name: f.worst_rate for name in rule.when.all if (f := found[name]) is not None}
    if rates and len(rates) == len(rule.when.all):
        name = min(rates, key=lambda key: rates[key])
        keys = " and needs a second key" if rule.when.any else ""
        unit = _unit(policy.detectors[name])
        yield f"      for nothing no oftener than {name}: {rates[name]:.2g} times in 1,000 {unit}{keys}"


def _when(rule: Rule) -> str:
    text = " and ".join(rule.when.all)
    if rule.when.any:
        text += f", and {'one of ' if len(rule.when.any) > 1 else ''}{', '.join(rule.when.any)}"
        text += f" in the last {rule.when.within_steps} steps (and not for longer than {rule.when.fresh_steps})"
    return f"when {text}"


def _then(rule: Rule, policy: Policy) -> str:
    then, parts = rule.then, []
    if then.rollback:
        before = then.rollback.before_onset_steps
        parts.append(f"roll back to the newest good checkpoint at least {before} steps before the onset")
    parts += [f"multiply {name} by {factor:g}" for name, factor in then.scale.items()]
    parts += [f"set {name} to {value:g}" for name, value in then.set.items()]
    if not parts:
        told = "call a person" if then.page else f'advise: "{then.advise}"'
        return f"would {told} (dry run)" if rule.dry_run else told
    text = " and ".join(parts)
    if then.for_steps:
        text += f", for {then.for_steps} steps"
    autonomy = Autonomy.observe if rule.dry_run else policy.allows(then.families)
    if autonomy is not Autonomy.act:
        how = "advises to" if autonomy is Autonomy.advise else "only writes down that it would"
        return f"{how} {text}" + (" (dry run)" if rule.dry_run else "")
    asks = then.families & set(policy.approval.required_for)
    return f"asks for approval, then: {text}" if asks else f"acts: {text}"


def _clamp(name: str, clamp: Clamp) -> str:
    text = f"{name} stays within {clamp.min:g} and {clamp.max:g}"
    for word, pace in (("down", clamp.decrease), ("up", clamp.increase)):
        if pace:
            gap = f", {pace.min_gap_steps} steps apart" if pace.min_gap_steps else ""
            text += f"; {word} by at most x {pace.max_step:g} at a time{gap}"
    return text


def _older(steps: int) -> str:
    return f"at least {steps} steps before the onset" if steps else "before the onset"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _in_a_row(count: int) -> str:
    return "one reading" if count == 1 else f"{count} readings in a row"
