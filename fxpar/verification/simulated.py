"""A verification with all ranks in this process."""

from __future__ import annotations

from fxpar.parts import boxes
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.verification.compare import Findings, check
from fxpar.verification.report import Report, merge
from fxpar.verification.subject import Subject


def verify_simulated(subject: Subject) -> Report:
    """Run every rank in lockstep on the CPU and compare. Raises RankError for a rank that fails."""
    reference, batch, partition = subject.reference(), subject.batch, subject.partition

    def run(_rank: int, groups: Groups) -> Findings:
        return check(
            subject.rank(groups), batch, lambda name: boxes(partition, name, groups.coordinate), reference
        )

    return merge(partition, reference, simulate(partition.mesh, run), simulated=True, sizes=subject.sizes)
