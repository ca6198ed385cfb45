"""What schemathesis has to know of this server beyond the document."""

import json
import random
import re
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

import schemathesis

# What is stored before the run. A stream that ends there ends by itself.
UNTIL = datetime.now(timezone.utc).isoformat()
# The longest that one request may wait, or a stored event be held back. The server's own limits are minutes.
WAIT_MS_MAX = 20


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Says of lines and streams what each item is: OpenAPI 3.1 has no word for that, and the document has `x-item-schema`."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            request = operation.get("requestBody", {})
            for body in [request, *operation["responses"].values()]:
                for media_type, content in body.get("content", {}).items():
                    if "x-item-schema" not in content:
                        continue
                    if media_type == "text/event-stream":
                        del content["schema"]
                        content["itemSchema"] = MESSAGE
                    else:
                        at_least = 1 if body is request else 0
                        content["schema"] = {"type": "array", "minItems": at_least, "items": content["x-item-schema"]}
                        # They are lines of text.
                        content.pop("examples", None)


# A message of an event stream, as the tool hands it in: the event in `data` is still text.
MESSAGE = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": "^evt_[0-9a-f]{12}$"},
        "data": {"type": "string", "pattern": "^\\{.*\\}$"},
    },
    # A stored event has its id and no name of its own. All other messages have a name.
    "if": {"properties": {"event": {"const": "message"}}},
    "then": {"required": ["id"]},
    "else": {
        "properties": {
            "event": {
                "enum": ["subscribed", "gap", "lagged", "skipped", "fell_behind", "caught_up", "complete", "too_slow"]
            }
        }
    },
}


@schemathesis.serializer("application/x-ndjson")
def write_lines(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """One line for each element. What is no array is sent as it is, which the server must refuse."""
    items = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


@schemathesis.deserializer("application/x-ndjson")
def read_lines(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return [json.loads(line) for line in response.content.splitlines()]


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    operation = case.operation.definition.raw
    choice = random.Random(f"{case.path_parameters} {case.query} {case.body}")
    accept_one(operation, case, choice)
    query = case.query or {}
    match operation.get("operationId"):
        case "streamEvents":
            end_stream(case, query)
        case "listEvents" if re.fullmatch("[0-9]+(s|ms)?", str(query.get("wait", ""))):
            query["wait"] = f"{WAIT_MS_MAX}ms"


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Any, case: schemathesis.Case, response: schemathesis.Response
) -> bool:
    """Drops a failure if a request was accepted with a wrong parameter that the server does not look at."""
    invalid = re.search("Invalid component: (?:parameters? (.*) )?in query", failure.message)
    if "Schema-violating request accepted" not in failure.title or not invalid:
        return True
    query = parse_qs(urlsplit(response.request.url).query, keep_blank_values=True)
    names = set(re.findall("`([^`]*)`", invalid[1] or ""))
    if "`additionalProperties`" in failure.message or "`required`" in failure.message:
        # One that is unknown was added, or one that may be left out was left out.
        return "event_id" in names
    # Empty ones are as none.
    ignored = {name for name, values in query.items() if values == [""]} - {"limit", "last", "ack", "interval", "group_by"}
    if "`propertyNames`" in failure.message:
        # The tool takes the name for a part of the value.
        ignored.add("payload.KEY")
    # One beginning of a stream takes precedence over another.
    if "Last-Event-ID" in case.headers:
        ignored |= {"after", "since", "last", "latest_by"}
    elif "after" in query:
        ignored |= {"since", "last"}
    return case.operation.definition.raw["operationId"] == "deleteEvents" or not names <= ignored


def accept_one(operation: dict[str, Any], case: schemathesis.Case, choice: random.Random) -> None:
    """Asks for one of the media types of the answer: the document has no parameter for a header that HTTP has itself."""
    media_types = list(operation["responses"].get("200", {}).get("content", {}))
    if len(media_types) > 1 and "Accept" not in case.headers:
        case.headers["Accept"] = choice.choice(media_types)


def end_stream(case: schemathesis.Case, query: dict[str, Any]) -> None:
    """Makes a stream end by itself, soon. One that would be refused is refused all the same."""
    query["until"] = UNTIL
    if not any(query.get(start) for start in ("after", "since", "last")) and "Last-Event-ID" not in case.headers:
        query["last"] = 3
    if within(query.get("speed"), 0.01, 1000):
        query["speed"] = 1000
    if within(query.get("interval_ms"), WAIT_MS_MAX, 60_000):
        query["interval_ms"] = WAIT_MS_MAX


def within(value: Any, least: float, most: float) -> bool:
    try:
        return least <= float(value) <= most
    except (TypeError, ValueError):
        return False
