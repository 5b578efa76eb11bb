"""Run independent tasks in this process, in worker processes or on a Dask cluster, and claim files for them."""

from ckpt_probe.scheduling.claims import UnclaimedError, claimed, claimed_in_turn, remove_abandoned
from ckpt_probe.scheduling.tasks import Busy, Failed, Team, Workers, in_turn, joint_error, made_once, results
