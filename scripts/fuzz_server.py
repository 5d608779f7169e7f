"""Requests made from a running server's OpenAPI description, right and wrong ones, and answers held against it.

    pip install schemathesis
    ascend-m1 serve --max-length 256 --max-adapters 1 &
    python scripts/fuzz_server.py --examples 50

Looked for: answers of 5xx; statuses, content types, headers and bodies that the description does not tell. GET
/stopService is left out: it ends the server. The last line is JSON; the exit status is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.core.failures import FailureGroup

LOOKED_FOR = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


class Fuzzer:
    """Asks one server; what was found, each problem once.

    Args:
        model: a name that is served, put where a path needs one; in requests of wrong form in half of them.
    """

    def __init__(self, model: str, examples: int, first: int) -> None:
        self._model, self._seed = model, first
        self._limits = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        self.statuses: Counter[int] = Counter()
        self.problems: dict[str, str] = {}

    def fuzz(self, operation: Any) -> None:
        """Requests of right and of wrong form."""
        for mode in GenerationMode:
            cases = operation.as_strategy(generation_mode=mode)
            named = cases.map(self._named)
            # A model that is not served is refused before the body is looked at: half of the wrong ones name it, too.
            cases = named if mode is GenerationMode.POSITIVE else cases | named
            with suppress(Unsatisfiable):  # without parameters and body nothing can be wrong
                given(case=cases)(self._limits(seed(self._seed)(lambda case: self._ask(case))))()

    def _named(self, case: Any) -> Any:
        for name in {"model", "name"} & case.path_parameters.keys():
            case.path_parameters[name] = self._model
        return case

    def _ask(self, case: Any) -> None:
        response = case.call(timeout=120)
        self.statuses[response.status_code] += 1
        try:
            case.validate_response(response, checks=LOOKED_FOR)
        except FailureGroup as group:
            for failure in group.exceptions:
                kind = f"{case.operation.label}: {failure.title} ({response.status_code})"
                self.problems.setdefault(kind, str(group))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:1025")
    parser.add_argument("--model", default="m1-icd10", help="that is served (default: m1-icd10)")
    parser.add_argument("--examples", type=int, default=50, help="of each form, for each operation")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fuzzer = Fuzzer(arguments.model, arguments.examples, arguments.seed)
    schema = schemathesis.openapi.from_url(f"{arguments.url}/openapi.json").exclude(path="/stopService")
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:
        fuzzer.fuzz(operation)
        print(f"{operation.label}: {sum(fuzzer.statuses.values())} requests so far", file=sys.stderr)
    for text in fuzzer.problems.values():
        print(text, file=sys.stderr)
    summary = {"operations": len(operations), "statuses": fuzzer.statuses, "problems": sorted(fuzzer.problems)}
    print(json.dumps(summary))
    return bool(fuzzer.problems)


if __name__ == "__main__":
    raise SystemExit(main())
