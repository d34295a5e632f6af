"""The OpenAPI document is an interface: a change must be deliberate."""

from __future__ import annotations

import json
import os
from pathlib import Path

RECORDED = Path(__file__).with_name("openapi.json")
RECORD = "OURVIDZ_RECORD_OPENAPI"
HOW = f"""the served document differs from {RECORDED.name}; if the change is wanted, record it and commit:
    {RECORD}=1 python -m pytest {Path(__file__).name}"""


def test_the_served_document_is_the_recorded_one(open_shim) -> None:
    """Clients are generated from it: a renamed schema or a new status shows in the diff of the recording."""
    shim = open_shim(OURVIDZ_API_KEYS="all:k:jobs+chat+admin", OURVIDZ_EMBEDDED=True)
    served = shim.client.get("/openapi.json").json()
    served["info"]["version"] = "0"
    if os.environ.get(RECORD):
        RECORDED.write_text(json.dumps(served, indent=1, sort_keys=True) + "\n")
    assert served == json.loads(RECORDED.read_text()), HOW
