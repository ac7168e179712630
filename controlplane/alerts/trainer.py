"""Alerts on the trainer as a program: does it step, does it use its devices, can it be resumed?"""

from controlplane.alerts.limits import Limits
from controlplane.alerts.model import FIRES, SILENT, Alert, Story, grown, held

UP = 'up{run="r1",job="scalerl-trainer",instance="t:1"}'


def trainer(limits: Limits) -> tuple[Alert, ...]:
    """Steps, devices, checkpoints."""
    return (_stalled(limits), _devices(limits), _starved(), _checkpoint_stale(limits), _checkpoint_failed(), _down())


def _stalled(limits: Limits) -> Alert:
    last, steps = 'rl_trainer_last_step_timestamp_seconds{run="r1"}', 'rl_trainer_steps_total{run="r1"}'
    moving, stuck = "0+60x60", "3600x120"
    late = int(limits.stall_seconds / 60) + 62
    usual = "run:rl_trainer_step_seconds:mean30m offset 10m"
    return Alert(
        "RLTrainerStalled",
        "critical",
        "trainer",
        "(time() - rl_trainer_last_step_timestamp_seconds) > on (run) group_left () (\n"
        f"  clamp_min({limits.stall_times:g} * ({usual}), {limits.stall_seconds:g})\n"
        f"  or on (run) 0 * max by (run) (rl_trainer_last_step_timestamp_seconds) + {limits.stall_seconds:g}\n"
        ")",
        "No optimiser step for far longer than usual",
        "Run {{ $labels.run }}: the last step ended {{ $value | humanizeDuration }} ago.",
        f"No step for {limits.stall_times:g} usual steps, and at least {limits.stall_seconds:g} seconds. After half an hour without "
        "a step there is no usual step time left to compare with; the rule then falls back to the seconds, so that it does not "
        "resolve itself while the run still stands.",
        "A rule on a stall pages, it does not restart: what hangs is often a node or a disk, and a restart loses the evidence.",
        (
            "What does it say it is doing? `rl_trainer_state` on the System dashboard, and the trainer's log.",
            "`generating`: a dead or full sampler. `training`: a hanging collective, look for a rank that is gone. "
            "`checkpointing`: the disk. `evaluating`: a long evaluation is fine.",
            "Take stacks (py-spy dump) before killing anything, then restart: the trainer resumes from its last checkpoint.",
        ),
        wait="1m",
        signal="stall",
        stories=(
            Story(
                "a stall fires, goes on firing after the usual step time is forgotten, and a step resolves it",
                {last: f"{moving} {stuck} 10860+60x20", steps: "0+1x60 60x120 61+1x20"},
                {50: SILENT, late - 4: SILENT, late + 3: FIRES, 115: FIRES, 175: FIRES, 190: SILENT},
            ),
        ),
    )


def _devices(limits: Limits) -> Alert:
    def gpu(number: int) -> str:
        return f'rl_gpu_utilization_ratio{{run="r1",node="n",gpu="{number}",role="process",job="scalerl-trainer"}}'

    busy, idle = limits.utilization + 0.2, limits.utilization - 0.3
    cpu = 'rl_trainer_utilization_ratio{run="r1",role="process"}'
    return Alert(
        "RLGPUUtilizationLow",
        "warning",
        "hardware",
        f"run:rl_device_utilization_ratio:avg5m < {limits.utilization:g}",
        "Devices of the run are idle much of the time",
        "Run {{ $labels.run }} uses its devices {{ $value | humanizePercentage }} of the time; "
        f"the limit is {limits.utilization:.0%}.",
        "Mean over the GPUs of the run; CPU time where it has none. NVML's number says that some kernel ran, waiting in a "
        "collective included, so a low value is bad and a high one proves little: look at tensor activity or tokens per second beside it.",
        "A policy may answer with more prompts per step, which fills the samplers.",
        (
            "Which role? The System dashboard shows generator and learner apart; RLTrainerStarved says that the learner waits.",
            "Generator low: more completions in flight. Learner low: it waits for rollouts, or its batches are small.",
        ),
        wait="10m",
        keep="5m",
        signal="utilization",
        stories=(
            Story(
                "the mean over GPUs counts, not one idle GPU",
                {gpu(0): held((busy, 90)), gpu(1): held((busy, 20), (idle - 0.2, 30), (busy, 40))},
                {19: SILENT, 25: SILENT, 40: FIRES, 75: SILENT},
            ),
            Story("without a GPU the CPU counts", {cpu: held((busy, 10), (idle, 30))}, {9: SILENT, 30: FIRES}),
            Story(
                "with a GPU the CPU does not count",
                {cpu: held((0.01, 40)), gpu(0): held((busy, 40))},
                {30: SILENT},
            ),
            Story(
                "a GPU that agent and DCGM both read counts once",
                {gpu(0): held((busy, 40)), 'DCGM_FI_DEV_GPU_UTIL{run="r1",Hostname="n",gpu="0"}': held((0, 40))},
                {30: SILENT},
            ),
            Story(
                "GPUs that only DCGM reads count too",
                {'DCGM_FI_DEV_GPU_UTIL{run="r1",Hostname="n",gpu="0",role="learner"}': held((100 * idle, 30))},
                {5: SILENT, 20: FIRES},
            ),
        ),
    )


def _starved() -> Alert:
    idle, training = (f'rl_trainer_phase_seconds_total{{run="r1",phase="{phase}"}}' for phase in ("idle", "training"))
    return Alert(
        "RLTrainerStarved",
        "warning",
        "trainer",
        'run_phase:rl_trainer_phase_seconds:rate5m{phase="idle"} > 0.30',
        "The trainer waits much of the time",
        "Run {{ $labels.run }} spends {{ $value | humanizePercentage }} of its time idle.",
        "The trainer's own clock: exactly one phase runs at a time, and idle means that none of them had anything to do.",
        "Nothing by itself; RLGPUUtilizationLow is what a policy acts on.",
        (
            "Look at the buffer on the Rollouts dashboard: empty means the sampler is too slow, held means staleness is too strict.",
        ),
        wait="15m",
        stories=(
            Story(
                "half of the time idle for a quarter of an hour fires, work resolves",
                {idle: grown((3, 20), (30, 40), (3, 40)), training: grown((57, 20), (30, 40), (57, 40))},
                {19: SILENT, 30: SILENT, 50: ({"phase": "idle"},), 80: SILENT},
            ),
        ),
    )


def _checkpoint_stale(limits: Limits) -> Alert:
    minutes = int(limits.checkpoint_age / 60)
    saved = 'rl_checkpoint_last_success_timestamp_seconds{run="r1"}'
    return Alert(
        "RLCheckpointStale",
        "warning",
        "trainer",
        f"time() - rl_checkpoint_last_success_timestamp_seconds > {limits.checkpoint_age:g}",
        "No checkpoint for a long time",
        "Run {{ $labels.run }}: the last good checkpoint is {{ $value | humanizeDuration }} old.",
        "What happens now would cost all the work since that checkpoint, and there is nothing newer to roll back to.",
        "It may ask the trainer for a checkpoint, if the policy has such a rule; it never deletes one.",
        (
            "Is RLCheckpointFailed firing? Then start there.",
            "Are steps so long that two saves take longer than this? Then save by time, or raise the limit for this run.",
            "Ask for one: `scalerl` has an order to save, the trainer takes it at the next step boundary.",
        ),
        wait="5m",
        signal="checkpoint_age",
        stories=(
            Story(
                "too long without a checkpoint fires and a new one resolves",
                {saved: held((0, minutes + 20), (60 * (minutes + 20), 30))},
                {minutes - 10: SILENT, minutes + 2: SILENT, minutes + 10: FIRES, minutes + 30: SILENT},
            ),
        ),
    )


def _checkpoint_failed() -> Alert:
    failed = 'rl_checkpoint_failures_total{run="r1",stage="write"}'
    return Alert(
        "RLCheckpointFailed",
        "warning",
        "trainer",
        "increase(rl_checkpoint_failures_total[15m]) > 0",
        "A checkpoint could not be written",
        "Run {{ $labels.run }}: a checkpoint failed at stage {{ $labels.stage }}.",
        "The trainer writes under a temporary name, reads back and compares, and only then counts a checkpoint. `write`: the disk "
        "is full, slow or away. `verify`: what was read back is not what was written, which is worse.",
        "A rollback still goes only to a checkpoint that was verified; there may be none that is recent.",
        (
            "`write`: free space, check the mount.",
            "`verify`: move the run to another disk; trust nothing written since.",
        ),
        keep="5m",
        stories=(
            Story(
                "one failure fires and is forgotten after a quarter of an hour",
                {failed: held((0, 10), (1, 50))},
                {9: SILENT, 11: ({"stage": "write"},), 40: SILENT},
            ),
        ),
    )


def _down() -> Alert:
    return Alert(
        "RLTrainerDown",
        "critical",
        "monitoring",
        'up{job="scalerl-trainer"} == 0',
        "The trainer's metrics page does not answer",
        "Run {{ $labels.run }}: {{ $labels.instance }} has not answered for two minutes.",
        "The trainer died without taking leave, its machine is away, or the page hangs. A trainer that ends in order removes its "
        "target, so a finished run does not fire.",
        "It holds: without data it takes no action, and leases of what it changed lapse by themselves.",
        (
            "Is the process alive? If not, read the last lines of its log and start it again: it resumes from its last checkpoint.",
            "If it lives, fetch the page by hand on that machine; the file target.json in the run directory names the address.",
            "A run that was given up: delete its target.json.",
        ),
        wait="2m",
        stories=(
            Story(
                "down for two minutes fires, a target that was removed resolves",
                {UP: held((1, 10), (0, 10), ("_", 20))},
                {9: SILENT, 11: SILENT, 14: ({"instance": "t:1", "job": "scalerl-trainer"},), 30: SILENT},
            ),
        ),
    )
