"""A small client that knows the interface only by what openapi-python-client has generated: mypy finds what does not fit
together, and running it finds what is not true."""

import sys

from event_pipeline_client import AuthenticatedClient
from event_pipeline_client.api.events import get_event, list_events, publish_events
from event_pipeline_client.api.server import get_stats
from event_pipeline_client.models import Event, NewEvent, NewEventPayload, Problem, Stats

# A server that asks for no key ignores the one that is sent.
with AuthenticatedClient(base_url=sys.argv[1], token="none") as client:
    payload = NewEventPayload.from_dict({"answer": 8})
    event = NewEvent(event_type="answer_submitted", source="client.py", session_id="python", payload=payload)
    published = publish_events.sync(client=client, body=event)
    assert isinstance(published, Event), published
    assert published.user_id is None

    stored = get_event.sync(published.id, client=client)
    assert isinstance(stored, Event), stored
    assert stored.payload.to_dict() == {"answer": 8}

    page = list_events.sync(client=client, session_id="python", limit=5)
    assert isinstance(page, list), page
    assert [event.id for event in page] == [published.id]

    stats = get_stats.sync(client=client)
    assert isinstance(stats, Stats), stats
    assert stats.total_events > 6571

    problem = get_event.sync("evt_ffffffffffff", client=client)
    assert isinstance(problem, Problem), problem
    assert problem.status == 404

print(f"client.py published and read {published.id}")
