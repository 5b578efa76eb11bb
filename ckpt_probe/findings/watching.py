"""Events of a run that is still training, each reported once, as soon as its interval is closed by a checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckpt_probe.findings.detection import FEWEST, name_of
from ckpt_probe.findings.sentences import event_sentence, main_findings

LEVEL = 0.005
"""Family-wise error of one look: a run that is still training is looked at many times."""

OFTEN, GROWTH = 40, 1.05
"""Number of checkpoints up to which each is a look; beyond it, the number grows by this factor between looks."""

Record = Mapping[str, Any]
Sighting = tuple[str, str, float, float]
"""Series, kind, and both ends of an interval."""


class EventWatch:
    """Report the events of a growing run once each."""

    def __init__(self) -> None:
        self._reported: list[Sighting] = []
        self._looked: dict[str, int] = {}

    def look(self, split: str, records: Sequence[Record]) -> list[str]:
        """Return sentences about the new events in the records of one split so far.

        Args:
            split: Name of the split.
            records: Its records.
        """
        count, before = len(records), self._looked.get(split, 0)
        if count < FEWEST or (count > OFTEN and count < GROWTH * before):
            return []
        self._looked[split] = count
        events = main_findings("", {"": records}, LEVEL)
        named = [(name_of(event), event["kind"], event["from_step"], event["to_step"]) for event in events]
        return self.unreported(zip(named, map(event_sentence, events), strict=True))

    def unreported(self, events: Iterable[tuple[Sighting, str]]) -> list[str]:
        """Return the sentences of events that overlap no reported one of their series and kind.

        Args:
            events: Each event with its sentence.
        """
        sentences = []
        for (name, kind, start, stop), sentence in events:
            if not any(
                (name, kind) == (other, its_kind) and start < its_stop and its_start < stop
                for other, its_kind, its_start, its_stop in self._reported
            ):
                self._reported.append((name, kind, start, stop))
                sentences.append(sentence)
        return sentences
