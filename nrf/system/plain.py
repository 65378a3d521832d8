"""YAML that others wrote, without what can exhaust memory or patience."""

from collections.abc import Callable
from typing import Any

import yaml

DEEPEST, LONGEST = 20, 2**16  # lists in lists; characters


def plain_yaml(text: str, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """What load(text) gives.  yaml.YAMLError for aliases, a few lines of which can stand for more values than
    any memory holds, and for what is nested or long enough to take time without end."""
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"{len(text)} characters; expected at most {LONGEST}")
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("anchors and aliases; expected plain values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"lists in lists, more than {DEEPEST} deep; expected plain values")
    return load(text)
