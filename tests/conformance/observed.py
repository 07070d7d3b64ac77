"""What the product shows at the end of a run: every page of its API that the comparison needs, kept as JSON."""

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

STATES = ("pending", "scheduled", "received", "started", "retry", "succeeded", "failed", "revoked", "rejected", "lost")
PAGE = 500
ANSWER_SECONDS = 60


class Api:
    """The JSON API of a running dashboard."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **query: object) -> Any:
        url = f"{self.address}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)

    def pages(self, path: str, limit: int) -> Iterator[dict[str, Any]]:
        """Every item of a list."""
        page = self.get(path, limit=limit)
        yield from page["items"]
        while page["next"]:
            page = self.get(path, limit=limit, cursor=page["next"])
            yield from page["items"]

    @property
    def health(self) -> dict[str, Any]:
        """What it says of the only cluster."""
        (item,) = self.get("/api/v1/health")["items"]
        return dict(item)


def _count(api: Api, query: str) -> int:
    return int(api.get("/api/v1/tasks", q=query, limit=1)["count"]["value"])


def observe(api: Api) -> dict[str, Any]:
    """All tasks (listed and one by one), counts by state, workflows, health."""
    listed = list(api.pages("/api/v1/tasks", PAGE))
    roots = [each["root"]["id"] for each in api.pages("/api/v1/workflows", 100)]
    return {
        "listed": listed,
        "tasks": [api.get(f"/api/v1/tasks/{urllib.parse.quote(each['id'], safe='')}") for each in listed],
        "counts": {each: _count(api, f"state:{each}") for each in STATES} | {"any": _count(api, "")},
        "workflows": [api.get(f"/api/v1/workflows/{urllib.parse.quote(each, safe='')}") for each in roots],
        "health": api.health,
    }
