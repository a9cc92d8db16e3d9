"""A short text that tells a value from others, for names and records."""

import hashlib
import json
from typing import Any


def digest(value: Any) -> str:
    """32 hexadecimal digits of a JSON-able value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
