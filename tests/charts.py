"""Renders deploy/helm by Helm's own engine, in a process of its own: python -m tests.charts < values.json."""

import json
import sys

from helm_python import Chart, HelmError

from tests.workers import ROOT

if __name__ == "__main__":
    chart = Chart.load(ROOT / "deploy" / "helm")
    given = json.load(sys.stdin)
    try:
        chart.validate_schema(given)
        sys.stdout.write(json.dumps(chart.render(given, name="team", namespace="tools")))
    except HelmError as error:
        sys.exit(str(error))
