"""Prints an OpenAPI document whose request bodies have only their first media type. openapi-python-client chooses the
media type of a request by the Python type of its body, which cannot tell two lists apart."""

import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    document = json.load(file)
for path in document["paths"].values():
    for operation in path.values():
        content = operation.get("requestBody", {}).get("content", {})
        for media_type in list(content)[1:]:
            del content[media_type]
json.dump(document, sys.stdout)
