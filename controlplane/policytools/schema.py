"""The JSON Schema of a policy file, for editors that check while one types.

It lies in `controlplane/policy/policy.schema.json`; `scalerl policy schema > controlplane/policy/policy.schema.json` renews it.
"""

import json
from typing import Any

from controlplane.contract.tunables import TUNABLES
from controlplane.policy.models import LEARNING_RATE, Policy


def schema() -> str:
    """The schema as text. What needs two places of a file to be judged (keys of a rollback, clamps) only `check` can tell."""
    body: dict[str, Any] = Policy.model_json_schema()
    body["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    body["title"] = "A policy of the control plane"
    names = {"enum": list(TUNABLES), "type": "string"}
    body["properties"]["clamps"]["propertyNames"] = {"enum": [*TUNABLES, LEARNING_RATE], "type": "string"}
    for name in ("scale", "set"):
        body["$defs"]["Then"]["properties"][name]["propertyNames"] = names
    return json.dumps(body, indent=1, sort_keys=True) + "\n"
