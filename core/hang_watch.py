"""When a process that runs and answers nobody is started again.

Whoever supervises a process sees that it ended, and never that it stands still.
"""

from dataclasses import dataclass

LOOK_SECONDS = 10.0
"""Between two looks at the same process."""
LOOKS = 5
"""In a row without an answer: about a minute, since each waits for one a while."""
FIRST_PAUSE = 60.0
"""Seconds after a restart until the next one, doubled at each: what a machine under load needs is
time, and every start takes more of it.
"""
LONGEST_PAUSE = 3600.0


@dataclass
class HangWatch:
    """Counts looks at one process, and says when it is to be started again."""

    grace: float
    """Seconds that a process may take from its start to its first answer."""
    restarts: int = 0
    """In a row, each soon after the one before."""
    unanswered: int = 0
    """Looks in a row without an answer."""
    _answered_at: float = 0.0
    _restarted_at: float = 0.0

    def look(self, answers: bool, since: float, now: float) -> bool:
        """Count a look, and return whether the process is to be started again now.

        Args:
            answers: whether it answered.
            since: Unix time at which the process started; 0: it does not run.
            now: Unix time of the look.
        """
        if answers:
            self._answered_at = now
        still_starts = self._answered_at < since and now - since < self.grace
        if answers or not since or still_starts:
            self.unanswered = 0
            return False
        self.unanswered += 1
        if now - self._restarted_at > 2 * LONGEST_PAUSE:
            self.restarts = 0
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**self.restarts)
        if self.unanswered < LOOKS or (self.restarts and now - self._restarted_at < pause):
            return False
        self.restarts, self.unanswered, self._restarted_at = self.restarts + 1, 0, now
        return True

    def forget(self) -> None:
        """Begin to count anew: there was nothing to look at."""
        self.unanswered = 0
