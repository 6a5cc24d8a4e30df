"""What dispatchers need of the jobs that they share: claims with a lease, and changes under the claim's fence."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from deployments.training import TrainingRequest
from serve_app.jobs.job import Job
from serve_app.jobs.transitions import Change


class ClaimLost(Exception):
    """ClaimLost(job_id): the job has been cancelled or paused, has ended, or was claimed by another."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this dispatcher runs, as it was claimed; its fence tells this claim from every other one.

    training_data, validation_data: digests of the documents. checkpoint: the manifest to go on from.
    """

    job: Job
    training_data: str
    validation_data: str | None
    checkpoint: str | None

    def request(self) -> TrainingRequest:
        job = self.job
        return TrainingRequest(
            job_id=job.id,
            fence=job.fence,
            account=job.account,
            model_id=job.model_id,
            base_model=job.base_model,
            training_data=self.training_data,
            params=job.params,
            validation_data=self.validation_data,
            checkpoint=self.checkpoint,
        )


class JobQueue(Protocol):
    """The open jobs of all accounts. Every method raises StorageError where the database does not answer."""

    async def claim(self, worker: str, now: float, *, besides: Collection[str], takes_over: bool) -> Claim | Job | None:
        """The job whose turn it is, now the worker's for a lease; None where no job waits or there is no room. The job
        alone where it was left by its dispatcher once too often, and has failed thereby.

        With `takes_over`, jobs whose lease is over come first; then come those of the account with the fewest running
        jobs, of such accounts the one whose last turn is longest ago, the oldest first. No job of
        `besides`, and none that waits of a closed account.
        """

    async def renew(self, worker: str, lease_until: float) -> Mapping[str, int]:
        """Every job that is the worker's is so until then at least; their ids, and the fences of their claims."""

    async def held(self, worker: str) -> Mapping[str, int]:
        """Which jobs are the worker's: ids, and the fences of their claims."""

    async def advance(self, job_id: str, fence: int, transition: Callable[[Job], Change]) -> Job:
        """The job after the transition, which is stored with everything that belongs to it, or not at all.

        Raises ClaimLost where the job is not under the claim with this fence any more; nothing changes then.
        """
