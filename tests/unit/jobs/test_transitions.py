"""What may follow what in the life of a job, and what is told of it."""

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deployments.errors import InvalidRequest
from deployments.training import Validated
from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job, JobError, JobStatus
from serve_app.jobs.transitions import Change, IllegalTransition
from serve_app.webhooks.event import EventType
from tests.fake_fine_tuner import checkpoint, finished, progress, started
from tests.job_rows import make_job

CONFIG = FineTuningConfig(max_attempts=3, retry_s=2.0, lease_s=30.0)
AT = 2_000_000.0
ERROR = JobError("training_failed", "the loss is no number")


def claimed(job: Job, now: float = AT) -> Change:
    return transitions.claimed(job, now, worker="worker", config=CONFIG)


def lost(job: Job, now: float = AT) -> Change:
    return transitions.worker_lost(job, now, reason="it was killed", config=CONFIG)


def running(**fields: object) -> Job:
    return replace(claimed(make_job()).job, **fields)


def test_claim_gives_a_lease_and_a_new_fence() -> None:
    job = make_job(fence=4)
    job = claimed(job).job
    assert (job.status, job.worker, job.lease_until, job.fence) == (JobStatus.RUNNING, "worker", AT + 30, 5)


def test_job_that_waits_for_its_next_attempt_cannot_be_claimed_before() -> None:
    job = make_job(not_before=AT)
    with pytest.raises(IllegalTransition):
        claimed(job, AT - 0.1)
    assert claimed(job, AT).job.status is JobStatus.RUNNING


def test_running_job_is_claimed_when_its_lease_is_over_and_that_counts_as_a_lost_worker() -> None:
    job = running()
    with pytest.raises(IllegalTransition):
        claimed(job, AT + 29.9)
    change = claimed(job, AT + 30)
    assert (change.job.fence, change.job.attempts, change.job.lease_until) == (2, 1, AT + 60)
    assert [event.level for event in change.events] == ["warn"]


def test_job_that_takes_its_dispatchers_with_it_fails_in_the_end() -> None:
    change = claimed(running(attempts=2), AT + 30)
    assert change.job.status is JobStatus.FAILED
    assert change.job.error is not None and change.job.error.code == "worker_lost"
    assert len(change.webhooks) == 2


def test_pause_after_a_lost_worker_doubles_until_the_job_fails() -> None:
    job, pauses = running(), []
    for _ in range(2):
        job = lost(job).job
        pauses.append(job.not_before - AT)
        job = claimed(job, job.not_before).job
    assert pauses == [2.0, 4.0]
    assert lost(job).job.status is JobStatus.FAILED


def test_checkpoint_lets_lost_workers_be_forgotten() -> None:
    before = running(attempts=2, postponed=3, postponed_because="no room")
    change = transitions.checkpointed(before, AT, checkpoint(7))
    assert (change.job.attempts, change.job.postponed, change.job.postponed_because) == (0, 0, None)
    assert change.checkpoint is not None
    assert (change.checkpoint.step, change.checkpoint.manifest) == (7, f"{7:064x}")


def test_released_job_can_be_claimed_at_once_and_lost_nothing_of_its_patience() -> None:
    job = transitions.released(running(attempts=1), AT).job
    assert (job.status, job.attempts, job.worker, job.lease_until) == (JobStatus.QUEUED, 1, None, None)
    assert claimed(job, AT).job.fence == 2


def test_job_that_cannot_be_run_at_the_moment_never_runs_out_of_patience() -> None:
    job, pauses, told = running(attempts=1), [], []
    for number in range(2000):
        now = AT + 1000 * number
        change = transitions.postponed(job, now, reason="no store" if number < 1000 else "no room", config=CONFIG)
        assert (change.job.status, change.job.attempts) == (JobStatus.QUEUED, 1)
        pauses.append(change.job.not_before - now)
        told += [event.message for event in change.events]
        job = claimed(change.job, now + 300).job
    assert pauses[:7] == [10, 20, 40, 80, 160, 300, 300]
    assert pauses[-1] == 300
    assert told == [f"The job waits and is tried again: {reason}" for reason in ("no store", "no room")]


def test_start_is_the_first_one_s_also_after_a_lost_worker() -> None:
    job = transitions.started(running(), AT, started()).job
    again = transitions.started(claimed(lost(job).job, AT + 9).job, AT + 9, started(1))
    assert again.job.started_at == AT
    assert "after step 1" in again.events[0].message


def test_progress_is_kept_and_told_as_metrics() -> None:
    change = transitions.progressed(running(), AT, progress(1), training_time_s=3.5)
    assert (change.job.step, change.job.total_steps, change.job.trained_tokens) == (1, 2, 100)
    assert change.job.training_time_s == 3.5
    assert change.job.progress is not None and change.job.progress["loss"] == 2.5
    [event] = change.events
    assert (event.type, event.message) == ("metrics", "Step 1/2: training loss=2.5000")
    assert {"step", "train_loss", "tokens_per_second", "seconds_left"} <= event.data.keys()


def test_loss_that_is_no_number_can_be_stored_as_json() -> None:
    change = transitions.progressed(running(), AT, progress(1, loss=float("nan")), training_time_s=0)
    assert change.job.progress is not None and change.job.progress["loss"] is None
    assert change.events[0].data["train_loss"] is None


def test_validation_is_told_as_metrics() -> None:
    [event] = transitions.validated(running(total_steps=2), AT, Validated(2, 1.25)).events
    assert (event.type, event.data) == ("metrics", {"step": 2, "valid_loss": 1.25})


def test_published_job_has_a_model_and_tells_both_webhooks() -> None:
    change = transitions.published(running(name="mine"), AT, finished(), training_time_s=180.5)
    job, model = change.job, change.model
    assert (job.status, job.finished_at, job.worker) == (JobStatus.SUCCEEDED, AT, None)
    assert model is not None
    assert (model.id, model.job, model.name, model.manifest) == (job.model_id, job.id, "mine", job.manifest)
    ours, openais = change.webhooks
    assert ours.type is EventType.FINETUNE_COMPLETED
    assert ours.payload == {
        "type": "finetune.completed",
        "timestamp": "1970-01-24T03:33:20Z",
        "id": ours.id,
        "data": {
            "status": "success",
            "model_id": job.model_id,
            "training_time": 180.5,
            "job_id": job.id,
            "epochs": 3,
            "trained_tokens": 200,
            "error": None,
        },
    }
    assert openais.payload == {
        "id": openais.id,
        "object": "event",
        "type": "fine_tuning.job.succeeded",
        "created_at": 2_000_000,
        "data": {"id": job.id},
    }
    assert ours.id != openais.id
    assert all(event.id.startswith("evt_") and len(event.id) == 28 for event in change.webhooks)


def test_failure_tells_why() -> None:
    change = transitions.failed(running(), AT, ERROR)
    assert change.job.error == ERROR
    assert change.events[-1].level == "error"
    ours, openais = change.webhooks
    assert (ours.type, openais.type) == (EventType.FINETUNE_FAILED, EventType.JOB_FAILED)
    assert ours.payload["data"]["error"] == {"code": ERROR.code, "message": ERROR.message}
    assert ours.payload["data"]["model_id"] is None


@pytest.mark.parametrize("job", [make_job(), running(), transitions.paused(make_job(), AT).job])
def test_job_that_has_not_ended_can_be_cancelled(job: Job) -> None:
    change = transitions.cancelled(job, AT)
    assert (change.job.status, change.job.finished_at, change.job.worker) == (JobStatus.CANCELLED, AT, None)
    assert [event.type for event in change.webhooks] == [EventType.FINETUNE_CANCELLED, EventType.JOB_CANCELLED]


def test_cancelling_and_pausing_again_change_and_tell_nothing() -> None:
    for transition in (transitions.cancelled, transitions.paused):
        job = transition(make_job(), AT).job
        assert transition(job, AT + 1) == Change(job)


@pytest.mark.parametrize("transition", [transitions.cancelled, transitions.paused, transitions.resumed])
def test_owner_is_told_in_a_sentence_what_an_ended_job_does_not_allow(
    transition: Callable[[Job, float], Change],
) -> None:
    with pytest.raises(InvalidRequest, match="succeeded"):
        transition(make_job(status=JobStatus.SUCCEEDED), AT)


def test_only_paused_jobs_can_be_resumed() -> None:
    with pytest.raises(InvalidRequest, match="is queued"):
        transitions.resumed(make_job(), AT)


class Lives(RuleBasedStateMachine):
    """Anything happens to a job in any order: it ends once, and what is told of it agrees with what it is."""

    @initialize()
    def begin(self) -> None:
        change = transitions.created(make_job())
        self.now = change.job.created_at
        self.job = change.job
        self.webhooks = list(change.webhooks)
        self.models = 0
        self.num_ends = 0
        self.highest_fence = 0

    def take(self, transition: Callable[[], Change]) -> None:
        """The transition, if it is a legal one; a final state has none but itself."""
        before = self.job
        try:
            change = transition()
        except (IllegalTransition, InvalidRequest):
            return
        assert not before.status.is_final or change == Change(before)
        assert change.job.fence >= before.fence
        assert asdict(change.job).keys() == asdict(before).keys()
        assert (change.job.id, change.job.account, change.job.model_id) == (before.id, before.account, before.model_id)
        self.job = change.job
        self.webhooks += change.webhooks
        self.models += change.model is not None
        self.num_ends += self.job.status.is_final and not before.status.is_final

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def claim(self) -> None:
        before = self.job
        self.take(lambda: claimed(self.job, self.now))
        if self.job.status is JobStatus.RUNNING and self.job is not before:
            assert self.job.fence == before.fence + 1

    @rule()
    def lose(self) -> None:
        self.take(lambda: lost(self.job, self.now))

    @rule()
    def postpone(self) -> None:
        self.take(lambda: transitions.postponed(self.job, self.now, reason="no room", config=CONFIG))

    @rule()
    def release(self) -> None:
        self.take(lambda: transitions.released(self.job, self.now))

    @rule(step=st.integers(1, 9))
    def come_further(self, step: int) -> None:
        self.take(lambda: transitions.progressed(self.job, self.now, progress(step), training_time_s=1.0))
        self.take(lambda: transitions.checkpointed(self.job, self.now, checkpoint(step)))

    @rule()
    def finish(self) -> None:
        self.take(lambda: transitions.published(self.job, self.now, finished(), training_time_s=1.0))

    @rule()
    def fail(self) -> None:
        self.take(lambda: transitions.failed(self.job, self.now, ERROR))

    @rule(transition=st.sampled_from([transitions.paused, transitions.resumed, transitions.cancelled]))
    def owner_acts(self, transition: Callable[[Job, float], Change]) -> None:
        self.take(lambda: transition(self.job, self.now))

    @precondition(lambda self: self.job.status is JobStatus.RUNNING)
    @rule()
    def dispatcher_dies(self) -> None:
        assert self.job.lease_until is not None
        self.now = max(self.now, self.job.lease_until)

    @invariant()
    def it_ends_once_and_tells_it_once(self) -> None:
        is_final = self.job.status.is_final
        assert self.num_ends == is_final
        assert len(self.webhooks) == 2 * is_final
        assert len({event.id for event in self.webhooks}) == len(self.webhooks)
        assert self.models == (self.job.status is JobStatus.SUCCEEDED)
        assert (self.job.finished_at is not None) == is_final
        assert (self.job.error is not None) == (self.job.status is JobStatus.FAILED)

    @invariant()
    def it_is_somebody_s_only_while_it_runs(self) -> None:
        is_running = self.job.status is JobStatus.RUNNING
        assert (self.job.worker is not None) == is_running
        assert (self.job.lease_until is not None) == is_running
        assert self.job.attempts < CONFIG.max_attempts or self.job.status is JobStatus.FAILED


TestLives = Lives.TestCase
