"""What can go wrong with a worker, as its caller sees it."""


class WorkerError(RuntimeError):
    """A worker died, failed or did not answer in time; the message names it and quotes it.

    The call may be tried again after the next push: a restarted worker holds no weights.
    """


class StaleWeightsError(WorkerError):
    """A rollout worker does not hold the version of the weights that was asked for."""


class UnusableRankError(RuntimeError):
    """A learner rank cannot go on: a thread of it is stuck in a library, and with it its device.

    Its group of ranks has to end; the next one goes on from the last checkpoint.
    """
