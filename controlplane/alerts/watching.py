"""Alerts on the watchers: can the metrics be trusted, is the controller there, does it need a person?"""

from controlplane.alerts.limits import Limits
from controlplane.alerts.model import FIRES, SILENT, Alert, Story, held

TRAINER = 'up{run="r1",job="scalerl-trainer",instance="t:1"}'
CONTROLLER = 'up{run="r1",job="scalerl-controller",instance="c:1"}'
EVALUATED = 'rl_controller_last_evaluation_timestamp_seconds{run="r1"}'
DECISIONS = "rl_controller_decisions_total"


def watching(limits: Limits) -> tuple[Alert, ...]:
    """Monitoring and controller."""
    return (
        _absent(),
        _controller_down(),
        _blind(limits),
        _rule_active(),
        _needs_person(),
        _advice(),
        _action_failed(),
        _watchdog(),
    )


def _absent() -> Alert:
    started = 'rl_trainer_start_timestamp_seconds{run="r1",instance="t:1",job="scalerl-trainer"}'
    target = {"instance": "t:1", "job": "scalerl-trainer"}
    return Alert(
        "RLMetricsAbsent",
        "warning",
        "monitoring",
        'up{job="scalerl-trainer"} == 1 unless on (run, instance) rl_trainer_start_timestamp_seconds',
        "The trainer answers, but not with our metrics",
        "Run {{ $labels.run }}: {{ $labels.instance }} serves a page without the metrics of the trainer.",
        "Something else took the port, a proxy answers in its place, or metric relabelling drops our names. Every alert on this "
        "run is blind while this one fires.",
        "It reads the page itself and holds as well.",
        ("Fetch the page by hand.", "Look at relabelling in prometheus.yml and for `rl_` among the dropped names."),
        wait="5m",
        stories=(
            Story(
                "up without our metrics fires, and with them it resolves",
                {TRAINER: held((1, 60)), started: held((1, 10), ("_", 25), (1, 25))},
                {9: SILENT, 17: SILENT, 30: (target,), 40: SILENT},
            ),
        ),
    )


def _controller_down() -> Alert:
    one = {"instance": "t:1", "job": "scalerl-trainer"}
    ours = {"instance": "c:1", "job": "scalerl-controller"}
    return Alert(
        "RLControllerDown",
        "critical",
        "controller",
        'up{job="scalerl-controller"} == 0\n'
        "or time() - rl_controller_last_evaluation_timestamp_seconds > 120\n"
        'or (up{job="scalerl-trainer"} == 1 unless on (run) up{job="scalerl-controller"})\n'
        '  and on (run) max by (run) (max_over_time(up{job="scalerl-controller"}[1h]))',
        "A run has lost its controller",
        "Run {{ $labels.run }} goes on without its controller.",
        "The controller does not answer, answers but has not looked at the run for two minutes, or was taken down within the "
        "last hour while the trainer goes on. A run that never had a controller does not fire.",
        "Nothing, by definition. The trainer goes on unchanged; leased changes revert by themselves.",
        (
            "Start it again with the same command: it carries on from its journal, and what it had decided is not done twice.",
            "Read controller.log in the run directory for why it ended.",
            "If you took it down on purpose, silence this alert for the run, or wait an hour.",
        ),
        wait="2m",
        stories=(
            Story(
                "a page that does not answer fires, an answer resolves",
                {TRAINER: held((1, 40)), CONTROLLER: held((1, 10), (0, 10), (1, 20))},
                {9: SILENT, 11: SILENT, 14: (ours,), 25: SILENT},
            ),
            Story(
                "a controller that hangs fires",
                {CONTROLLER: held((1, 40)), EVALUATED: "0+60x10 600x30"},
                {9: SILENT, 16: FIRES},
            ),
            Story(
                "taken down under a running trainer fires, and a run that never had one does not",
                {
                    TRAINER: held((1, 40)),
                    CONTROLLER: held((1, 10), ("_", 30)),
                    'up{run="alone",job="scalerl-trainer",instance="t:2"}': held((1, 40)),
                },
                {9: SILENT, 20: (one,)},
            ),
            Story(
                "a run that ended with its controller is silent",
                {TRAINER: held((1, 10), ("_", 30)), CONTROLLER: held((1, 10), ("_", 30))},
                {30: SILENT},
            ),
        ),
    )


def _blind(limits: Limits) -> Alert:
    blind, bound = 'rl_controller_blind_seconds{run="r1"}', limits.blind_seconds
    return Alert(
        "RLControllerBlind",
        "warning",
        "controller",
        f"rl_controller_blind_seconds > {bound:g}",
        "The controller gets no usable data",
        "Run {{ $labels.run }}: the controller has read nothing usable for {{ $value | humanizeDuration }}.",
        "It looks, but what it reads is missing or too old by its policy's `freshness`. A rule that would act must not, and does not.",
        "It holds, lets leases lapse, and pages once for the episode.",
        (
            "Is RLTrainerDown firing? Then start there.",
            "`rl_controller_source_errors_total` says which source fails: the metrics, or observed.json in the run directory.",
            "Reading through Prometheus: is that server alive, and is its scrape interval shorter than `freshness`?",
        ),
        wait="2m",
        stories=(
            Story(
                "longer than the policy allows fires, sight resolves",
                {blind: held((0, 10), (bound / 2, 10), (bound * 3, 10), (0, 10))},
                {9: SILENT, 15: SILENT, 21: SILENT, 25: FIRES, 35: SILENT},
            ),
        ),
    )


def _rule_active() -> Alert:
    active = 'rl_controller_rule_active{run="r1",rule="collapse"}'
    return Alert(
        "RLControllerRuleActive",
        "warning",
        "controller",
        "max by (run, rule) (rl_controller_rule_active) == 1",
        "The trouble that a rule of the controller watches for lasts",
        "Run {{ $labels.run }}: rule {{ $labels.rule }} has been in alarm for a while.",
        "The controller's own judgement, made at every look and step by step, handed to people. It fires only when the trouble "
        "outlasts what the controller does about it.",
        "What the rule says, as far as autonomy and limits go: `scalerl watch RUN` and the Controller dashboard show the decision.",
        (
            "Read the last decision and its reason.",
            "`observe` or `advise`: it is your turn. `hold`: the reason names what is in the way (cooldown, limit, no good checkpoint).",
        ),
        wait="5m",
        stories=(
            Story(
                "a rule that holds for a minute is silent, one that lasts fires, its end resolves",
                {active: held((0, 5), (1, 1), (0, 9), (1, 15), (0, 10))},
                {6: SILENT, 14: SILENT, 22: ({"rule": "collapse"},), 35: SILENT},
            ),
        ),
    )


def _needs_person() -> Alert:
    pages = f'{DECISIONS}{{run="r1",rule="stalled",action="page",result="page"}}'
    return Alert(
        "RLControllerNeedsPerson",
        "critical",
        "controller",
        f'sum by (run, rule) (increase({DECISIONS}{{result="page"}}[10m])) > 0',
        "The controller asks for a person",
        "Run {{ $labels.run }}: the controller paged because of {{ $labels.rule }}.",
        "The controller came to the end of what it may do: a rule that pages, data that cannot be used (`stale`), an action that "
        "the trainer did not carry out (`refused`), or limits that are used up.",
        "It has told you, once for this episode, and goes on looking.",
        (
            "Read the reason in the decision log: it is one sentence.",
            "Then the page of the rule's own alert, if it has one.",
        ),
        keep="10m",
        stories=(
            Story(
                "a page fires at once and is forgotten",
                {pages: held((0, 10), (1, 50))},
                {9: SILENT, 11: ({"rule": "stalled"},), 45: SILENT},
            ),
        ),
    )


def _advice() -> Alert:
    advice = f'{DECISIONS}{{run="r1",rule="collapse",action="rollback",result="advise"}}'
    return Alert(
        "RLControllerAdvice",
        "info",
        "controller",
        f'sum by (run, rule, action) (increase({DECISIONS}{{result="advise"}}[15m])) > 0',
        "The controller has advice that waits for a person",
        "Run {{ $labels.run }}: rule {{ $labels.rule }} advises: {{ $labels.action }}.",
        "Autonomy for this family of actions is `advise`: the controller knows what it would do and may not.",
        "Nothing until a person agrees.",
        ("Read the advice and its evidence, then approve it, do something better, or let it be.",),
        keep="15m",
        stories=(
            Story(
                "advice fires at once and is forgotten",
                {advice: held((0, 10), (1, 60))},
                {9: SILENT, 11: ({"rule": "collapse", "action": "rollback"},), 60: SILENT},
            ),
        ),
    )


def _action_failed() -> Alert:
    refused = f'{DECISIONS}{{run="r1",rule="refused",action="page",result="page"}}'
    useless = 'rl_controller_verdicts_total{run="r1",helped="false"}'
    return Alert(
        "RLControllerActionFailed",
        "warning",
        "controller",
        f'sum by (run) (increase({DECISIONS}{{rule="refused"}}[15m])) > 0\n'
        'or sum by (run) (increase(rl_controller_verdicts_total{helped="false"}[15m])) > 0',
        "An action of the controller was refused, or did not help",
        "Run {{ $labels.run }}: an action was not carried out, or the pass rate did not come back after it.",
        "Every action is judged after some steps by whether the pass rate returned to what it was before the trouble. `refused` "
        "means that the trainer's own guard rails, or a failure, were in the way.",
        "It does not repeat itself: cooldown and limits of the rule hold, and then it pages.",
        (
            "Read the acknowledgement in control.jsonl: the trainer gives its reason.",
            "A rollback that did not help: the cause is still in force. Look at data and learning rate before the next one.",
        ),
        stories=(
            Story(
                "a refusal fires and is forgotten",
                {refused: held((0, 10), (1, 40))},
                {9: SILENT, 11: FIRES, 35: SILENT},
            ),
            Story("a verdict against the action fires", {useless: held((0, 10), (1, 10))}, {9: SILENT, 11: FIRES}),
        ),
    )


def _watchdog() -> Alert:
    return Alert(
        "RLWatchdog",
        "none",
        "monitoring",
        "vector(1)",
        "The alerting path works",
        "Fires all the time. Whoever receives it must raise an alarm when it stops coming.",
        "A dead Prometheus or Alertmanager is silent, and silence looks like health. This alert is the heartbeat: send it to a "
        "dead man's switch outside of this system.",
        "Nothing.",
        ("It stopped coming: start Prometheus or Alertmanager again; nothing else of this list can fire meanwhile.",),
        stories=(Story("always", {}, {0: ({"run": ""},), 10: ({"run": ""},)}),),
    )
