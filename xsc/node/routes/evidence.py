"""What providers signed that cannot be true."""

from __future__ import annotations

from xsc.api import jobs as api
from xsc.api.endpoint import Id, Nothing
from xsc.base.ids import to_text
from xsc.node.api.serving import Answers
from xsc.node.build import Node


async def listed(node: Node, _: Nothing) -> api.EvidenceList:
    """List contradictory receipts."""
    return api.EvidenceList(
        evidence=[
            api.Evidence(
                id=to_text(item.id),
                found_ms=item.found_ms,
                module=item.module.hex(),
                function=item.function,
                first=to_text(item.first),
                first_name=node.name_of(item.first),
                second=to_text(item.second),
                second_name=node.name_of(item.second),
                differs=list(item.differs),
            )
            for item in node.evidence.list()
        ]
    )


async def record(node: Node, asked: Id) -> bytes:
    """Return one record of evidence."""
    return node.evidence.get(asked.id)


ANSWERS: Answers = {api.EVIDENCE: listed, api.EVIDENCE_RECORD: record}
