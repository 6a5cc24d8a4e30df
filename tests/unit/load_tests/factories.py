"""Records with defaults."""

from load_tests.records import CellRecord, Sample


def cell(
    *,
    contender: str = "a server",
    round: int = 0,
    concurrency: int = 8,
    wall_s: float = 2.0,
    other_cpu_s: float = 0.0,
    num_requests: int = 2,
    samples: tuple[Sample, ...] = (),
) -> CellRecord:
    return CellRecord(
        contender=contender,
        round=round,
        concurrency=concurrency,
        wall_s=wall_s,
        client_cpu_s=0.1,
        server_cpu_s=3.0,
        other_cpu_s=other_cpu_s,
        samples=samples or tuple(Sample(0.0, 0.1, 1.0, 128) for _ in range(num_requests)),
    )
