"""The OpenAPI document beside real answers of a real gateway, and beside what gRPC asks of its callers."""

import pytest

from gateway.scopes import scopes_of_method, scopes_of_request

TRAINER = "aimass.trainer.v1"
LOOP, FEEDBACK, GATEWAY = f"{TRAINER}.LoopService", f"{TRAINER}.FeedbackService", "aimass.gateway.v1.GatewayService"
PLACES = {"model": "tiny", "prediction_id": "abc", "number": "4", "contributor": "anna", "deletion_id": "some-deletion"}
ID = {"request_id": "some-request"}
CALLS = [
    ("GET", "/v1/models", f"{GATEWAY}/ListModels", {}),
    ("GET", "/v1/models/{model}/loop", f"{LOOP}/GetLoop", {}),
    ("GET", "/v1/models/{model}/loop/events", f"{LOOP}/ListEvents", {}),
    ("GET", "/v1/models/{model}/analysis", f"{LOOP}/GetAnalysis", {}),
    ("POST", "/v1/models/{model}/loop/trigger", f"{LOOP}/TriggerCycle", {"json": ID}),
    ("POST", "/v1/models/{model}/loop/propose", f"{LOOP}/ProposeVersion", {"json": {"version": 1} | ID}),
    ("POST", "/v1/models/{model}/loop/promote", f"{LOOP}/PromoteCandidate", {"json": {"version": 1} | ID}),
    ("POST", "/v1/models/{model}/loop/reject", f"{LOOP}/RejectCandidate", {"json": {"version": 1} | ID}),
    ("POST", "/v1/models/{model}/loop/rollback", f"{LOOP}/RollBack", {"json": ID}),
    ("GET", "/v1/predictions/{prediction_id}/trace", f"{LOOP}/TracePrediction", {}),
    ("DELETE", "/v1/observations/{number}", f"{LOOP}/DeleteSample", {"params": ID}),
    ("DELETE", "/v1/contributors/{contributor}", f"{LOOP}/DeleteContributor", {"params": ID}),
    ("GET", "/v1/deletions/{deletion_id}", f"{LOOP}/GetDeletion", {}),
    ("POST", "/v1/predictions/{prediction_id}/feedback", f"{GATEWAY}/SendFeedback", {"json": {"correct": True}}),
    ("GET", "/v1/models/{model}/observations", f"{FEEDBACK}/ListObservations", {}),
    ("GET", "/v1/observations/{number}/image", f"{FEEDBACK}/GetObservationImage", {}),
    ("POST", "/v1/observations/{number}/review", f"{FEEDBACK}/ReviewObservation", {"json": {"label": "red"}}),
]
PREDICT = ("POST", "/v1/models/{model}/predict", f"{GATEWAY}/Predict", {})
KINDS = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def misfit(value, schema, schemas, where="answer"):
    """Return where *value* is not as *schema* says; nothing where it is. Knows what our document is made of."""
    if "$ref" in schema:
        return misfit(value, schemas[schema["$ref"].rpartition("/")[2]], schemas, where)
    if "anyOf" in schema:
        found = [misfit(value, each, schemas, where) for each in schema["anyOf"]]
        return "" if "" in found else " and ".join(found)
    if "type" not in schema:
        return ""
    if not isinstance(value, KINDS[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return f"{where} is {value!r}, no {schema['type']}"
    if value not in schema.get("enum", [value]):
        return f"{where} is {value!r}, none of {schema['enum']}"
    if isinstance(value, list):
        parts = [(each, schema["items"], f"{where}[{index}]") for index, each in enumerate(value)]
    elif isinstance(value, dict) and "properties" in schema:
        if value.keys() != schema["properties"].keys():
            return f"{where} has {sorted(value.keys() ^ schema['properties'].keys())} or lacks them"
        parts = [(value[name], each, f"{where}.{name}") for name, each in schema["properties"].items()]
    elif isinstance(value, dict) and "additionalProperties" in schema:
        parts = [(each, schema["additionalProperties"], f"{where}.{name}") for name, each in value.items()]
    else:
        parts = []
    return next(filter(None, (misfit(each, inner, schemas, place) for each, inner, place in parts)), "")


@pytest.fixture
async def described(door):
    return (await door.http.get("/openapi.json")).json()


async def test_answers_are_as_the_document_says(door, described):
    schemas, found = described["components"]["schemas"], []
    for method, path, _, sent in CALLS:
        answer = await door.http.request(method, path.format(**PLACES), **sent)
        kind = answer.headers["content-type"]
        content = described["paths"][path][method.lower()]["responses"][str(answer.status_code)]["content"]
        assert answer.status_code == 200, path
        schema = content[kind]["schema"]
        assert schema, path
        if kind == "application/json" and (problem := misfit(answer.json(), schema, schemas)):
            found.append(f"{method} {path}: {problem}")

    assert not found, "\n".join(["", *found])


async def test_failures_are_as_the_document_says(door, described):
    for method, path, _, _ in CALLS:
        schema = described["paths"][path][method.lower()]["responses"]["default"]["content"]["application/json"][
            "schema"
        ]
        assert schema["$ref"].endswith("/Failure"), path
    refused = await door.http.post("/v1/models/tiny/loop/promote", json={"version": 0})

    assert not misfit(refused.json(), schema, described["components"]["schemas"])


async def test_each_operation_has_a_summary_in_words_and_bodies_name_what_is_needed(described):
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            name = operation["operationId"].removesuffix(f"_{method}").partition("_v1_")[0].strip("_").replace("_", " ")
            assert operation["summary"].casefold() not in ("", name), path
            assert "422" not in operation["responses"], path
    body = described["paths"]["/v1/models/{model}/loop/propose"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert body["required"]
    assert schema["required"] == ["version", "request_id"]
    assert schema["properties"]["goal"]["enum"] == ["better", "not_worse"]


async def test_a_path_needs_the_scopes_of_its_method(described):
    listed = {(method, path): rpc for method, path, rpc, _ in (*CALLS, PREDICT)}
    documented = {
        (method.upper(), path)
        for path, operations in described["paths"].items()
        for method in operations
        if path.startswith("/v1/")
    }

    assert set(listed) == documented
    for (method, path), rpc in listed.items():
        assert scopes_of_request(method, path.format(**PLACES)) == scopes_of_method(f"/{rpc}"), path
