"""YAML that others wrote, without what can exhaust memory or patience."""

import yaml


def plain_yaml(text, load=yaml.safe_load):
    """What load(text) gives.  yaml.YAMLError for aliases, a few lines of which can stand for more values than
    any memory holds, and for brackets without end."""
    try:
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise yaml.YAMLError("anchors and aliases; expected plain values")
        return load(text)
    except RecursionError:
        raise yaml.YAMLError("brackets in brackets without end; expected plain values") from None
