"""How tests/schemathesis.sh sends JSON lines: the description has such a body as a text, which is sent as it is."""

import schemathesis


@schemathesis.serializer("application/x-ndjson", "application/jsonl")
def lines(_context, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
