"""Runs the Autobahn fuzzing client (Python 2.7) with the specification in the file named, its patience multiplied.

The suite gives a peer a second or less for most answers. A busy machine takes longer, and where no answer
is to be expected a second is much.
"""

import json
import sys

from autobahntestsuite import fuzzing
from twisted.internet import reactor

specification, factor = json.load(open(sys.argv[1])), float(sys.argv[2])


def multiplied(wait):
    return lambda protocol, seconds: wait(protocol, seconds * factor)


for name in ("killAfter", "closeAfter"):
    setattr(fuzzing.FuzzingProtocol, name, multiplied(getattr(fuzzing.FuzzingProtocol, name)))

fuzzing.startClient(specification)
reactor.run()
