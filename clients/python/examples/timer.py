#!/usr/bin/env python3
"""The timers of a class: each session counts down, and every tick is an event.

    python timer.py http://localhost:8001 --sessions 30 --seconds 300

The ticks of all timers go out over one socket in the background, so a server that restarts delays no timer. Each tick is
stored once, in order, also if the server was killed in between.
"""

import argparse
import os
import time

from event_pipeline import EventPipeline, NewEvent, State


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the timers of a class.")
    parser.add_argument("url", nargs="?", default="http://localhost:8001")
    parser.add_argument("--sessions", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=300, help="how long each timer runs")
    parser.add_argument("--tick", type=float, default=1.0, help="how long a second takes")
    parser.add_argument("--warn-at", type=int, default=60, help="seconds before the end")
    return parser.parse_args()


def tell(state: State) -> None:
    print(f"{state.phase} {state.why}".strip(), flush=True)


def main() -> None:
    args = arguments()
    sessions = [f"exam-{n:02}" for n in range(args.sessions)]

    def event(event_type: str, session: str, remaining: int) -> NewEvent:
        return NewEvent(event_type, "timer_service", session, payload={"remaining_seconds": remaining})

    with (
        EventPipeline(args.url, key=os.environ.get("EVENT_PIPELINE_KEY")) as events,
        events.publisher(on_state=tell) as publisher,
    ):
        began = time.monotonic()
        for passed in range(args.seconds + 1):
            remaining = args.seconds - passed
            kind = "timer_started" if passed == 0 else "quiz_timeout" if remaining == 0 else "timer_tick"
            for session in sessions:
                publisher.put(event(kind, session, remaining))
                if remaining == args.warn_at:
                    publisher.put(event("timer_warning", session, remaining))
            # By the clock and not by the pause, so that a slow second does not make the class late.
            time.sleep(max(0.0, began + (passed + 1) * args.tick - time.monotonic()))
        publisher.flush()
        counts = publisher.counts
    print(f"{counts.stored} events stored, {counts.replayed} of them sent twice", flush=True)


if __name__ == "__main__":
    main()
