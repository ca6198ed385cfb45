"""Where the client logs what no exception can say."""

import logging

log = logging.getLogger("event_pipeline")
