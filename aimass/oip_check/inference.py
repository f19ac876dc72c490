"""Checks whether right requests are answered as clients read answers."""

import math
from collections.abc import Iterable, Sequence

from aimass.oip_check.finding import Check, Outcome, breaks, ok, skipped, warns
from aimass.oip_check.server import Reply, Server, Unmet
from aimass.oip_check.tensors import TYPED_CONTENTS, elements_of, fits, same_values, size_in_bytes, typed_zeros
from aimass.open_inference import grpc_service_pb2 as pb

NUMERIC = ("FP16", "BF16", "FP32", "FP64")


def _raw(server: Server) -> Outcome:
    return ok("an answer") if server.baseline.ok else breaks(str(server.baseline))


def _raw_outputs(server: Server) -> Outcome:
    typed = [output.name for output in server.answer.outputs if output.HasField("contents")]
    if typed:
        return breaks(f"typed contents in {', '.join(typed)}")
    return ok("no typed contents")


def _raw_count(server: Server) -> Outcome:
    outputs, raw = len(server.answer.outputs), len(server.answer.raw_output_contents)
    if any(output.HasField("contents") for output in server.answer.outputs):
        return skipped("the outputs are typed: see output-is-raw")
    return ok(f"{raw} for {outputs} outputs") if raw == outputs else breaks(f"{raw} raw entries for {outputs} outputs")


def _output_sizes(server: Server) -> Outcome:
    wrong = [sentence for output, raw in _raw_pairs(server.answer) if (sentence := _misfit(server, output, raw))]
    return breaks("; ".join(wrong)) if wrong else ok("bytes, shapes and datatypes agree")


def _raw_pairs(answer: pb.ModelInferResponse) -> Iterable[tuple[pb.ModelInferResponse.InferOutputTensor, bytes]]:
    if len(answer.outputs) != len(answer.raw_output_contents):
        raise Unmet("not every output has a raw entry: see output-raw-count")
    return zip(answer.outputs, answer.raw_output_contents, strict=True)


def _misfit(server: Server, output: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> str:
    """Return what is wrong with an output, or nothing."""
    for declared in server.metadata.outputs:
        if declared.name == output.name and declared.datatype != output.datatype:
            return f"{output.name} is {output.datatype}, the metadata says {declared.datatype}"
        if declared.name == output.name and not fits(output.shape, declared.shape):
            return f"{output.name} has shape {list(output.shape)}, the metadata says {list(declared.shape)}"
    count = math.prod(output.shape)
    if output.datatype == "BYTES":
        elements = elements_of(raw)
        return "" if elements is not None and len(elements) == count else f"{output.name} does not hold {count} strings"
    expected = size_in_bytes(output.datatype, output.shape)
    return "" if len(raw) == expected else f"{output.name} has {len(raw)} bytes, its shape needs {expected}"


def _all_outputs(server: Server) -> Outcome:
    reply = server.call("ModelInfer", _with_answer(server, outputs=()))
    if not reply.ok:
        return breaks(str(reply))
    return _named(reply.message, [each.name for each in server.metadata.outputs])


def _one_output(server: Server) -> Outcome:
    wanted = [server.metadata.outputs[-1].name]
    reply = server.call("ModelInfer", _with_answer(server, outputs=wanted))
    return _named(reply.message, wanted) if reply.ok else breaks(str(reply))


def _named(answer: pb.ModelInferResponse, wanted: list[str]) -> Outcome:
    names = [each.name for each in answer.outputs]
    if missing := [name for name in wanted if name not in names]:
        return breaks(f"without {', '.join(missing)}")
    return ok(", ".join(names)) if names == wanted else warns(f"{', '.join(names)} for {', '.join(wanted)}")


def _with_answer(server: Server, *, outputs: Iterable[str] | None = None, id: str = "") -> pb.ModelInferRequest:
    """Return a request, of which a plain form is known to be answered."""
    server.need_answer()
    return server.request(outputs=outputs, id=id)


def _typed(server: Server) -> Outcome:
    request = _with_answer(server)
    raw_only = [each.name for each in request.inputs if each.datatype not in TYPED_CONTENTS]
    if raw_only:
        return skipped(f"{', '.join(raw_only)} has no typed form")
    if sum(math.prod(each.shape) for each in request.inputs) > 2**20:
        return skipped("the inputs are too large to be sent typed")
    del request.raw_input_contents[:]
    for tensor in request.inputs:
        tensor.contents.CopyFrom(typed_zeros(tensor.datatype, tensor.shape))
    reply = server.call("ModelInfer", request)
    return ok("an answer") if reply.ok else breaks(str(reply))


def _id(server: Server) -> Outcome:
    reply = server.call("ModelInfer", _with_answer(server, id="oip-check-7"))
    if not reply.ok:
        return breaks(str(reply))
    return ok("the same id") if reply.message.id == "oip-check-7" else breaks(f"the id {reply.message.id!r}")


def _parameter(server: Server) -> Outcome:
    request = _with_answer(server)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    reply = server.call("ModelInfer", request)
    return ok("an answer") if reply.ok else breaks(str(reply))


def _version(server: Server) -> Outcome:
    versions = server.metadata.versions
    if not versions:
        return skipped("the metadata names no version")
    request = _with_answer(server)
    request.model_version = versions[-1]
    reply = server.call("ModelInfer", request)
    if not reply.ok:
        return breaks(str(reply))
    if reply.message.model_version != versions[-1]:
        return breaks(f"an answer of version {reply.message.model_version!r} for {versions[-1]!r}")
    return ok(f"an answer of version {versions[-1]}")


def _batch(server: Server) -> Outcome:
    if server.config.max_batch_size < 2:
        return skipped(f"max_batch_size is {server.config.max_batch_size}")
    _with_answer(server)
    reply = server.call("ModelInfer", server.request(batch=2))
    if not reply.ok:
        return breaks(str(reply))
    wrong = [each.name for each in reply.message.outputs if each.shape[:1] != [2]]
    return breaks(f"not 2 samples in {', '.join(wrong)}") if wrong else ok("2 samples")


def _classification(server: Server) -> Outcome:
    if "classification" not in server.extensions:
        return skipped("not listed")
    names = [each.name for each in server.metadata.outputs if each.datatype in NUMERIC]
    if not names:
        return skipped("no output holds scores")
    request = _with_answer(server, outputs=names[:1])
    request.outputs[0].parameters["classification"].int64_param = 1
    reply = server.call("ModelInfer", request)
    return _classes(reply.message) if reply.ok else breaks(str(reply))


def _classes(answer: pb.ModelInferResponse) -> Outcome:
    output, raw = next(iter(_raw_pairs(answer)))
    if output.datatype != "BYTES":
        return breaks(f"{output.datatype} instead of BYTES")
    elements = elements_of(raw)
    if not elements or not all(_is_class(element) for element in elements):
        return breaks(f"{raw[:40]!r}, which isn't value:index[:label]")
    return ok(elements[0].decode(errors="replace"))


def _is_class(element: bytes) -> bool:
    value, _, rest = element.partition(b":")
    try:
        float(value)
    except ValueError:
        return False
    return rest.partition(b":")[0].isdigit()


def _bytes(server: Server) -> Outcome:
    name = server.model if _takes_strings(server.metadata) else _string_model(server)
    if name is None:
        return skipped("no model that takes strings was found")
    other = Server(server.channel, name, timeout=server.timeout)
    if not other.baseline.ok:
        return breaks(f"{name}: {other.baseline}")
    wrong = [sentence for output, raw in _raw_pairs(other.answer) if (sentence := _misfit(other, output, raw))]
    return breaks(f"{name}: {'; '.join(wrong)}") if wrong else ok(f"{name} takes strings and answers")


def _string_model(server: Server) -> str | None:
    """Return the name of a ready model that takes BYTES; looks at no more than a few."""
    ready: list[str] = (
        [each.name for each in server.index.message.models if each.state == "READY"] if server.index.ok else []
    )
    for name in ready[:20]:
        reply = server.call("ModelMetadata", pb.ModelMetadataRequest(name=name))
        if reply.ok and _takes_strings(reply.message):
            return name
    return None


def _takes_strings(metadata: pb.ModelMetadataResponse) -> bool:
    return any(each.datatype == "BYTES" for each in metadata.inputs)


def _gives_same(server: Server) -> Outcome:
    """A request whose inputs come in another order gets the same answer.

    Each input has a value of its own, and answers are compared: a server that takes inputs by their place would else
    not be noticed where both have one datatype and shape.
    """
    count = len(_with_answer(server).inputs)
    if count < 2:
        return skipped("the model has one input")
    values: Sequence[int] = range(count)
    first = server.call("ModelInfer", server.request(values=values))
    if not first.ok:  # not every model takes every value; a place of another shape still shows
        values, first = [0] * count, server.baseline
    if _differs(first.message, server.call("ModelInfer", server.request(values=values))):
        return skipped("the model gives another answer each time")
    turned = server.call("ModelInfer", _turned(server.request(values=values)))
    if not turned.ok:
        return breaks(str(turned))
    if different := _differs(first.message, turned):
        return breaks(f"another {different} for the same inputs")
    if not _differs(first.message, server.call("ModelInfer", server.request(values=values[::-1]))):
        return skipped("the model gives the same for exchanged values, so nothing is known")
    return ok("the same answer")


def _turned(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """Return *request* with its inputs from last to first."""
    inputs, raw = list(request.inputs)[::-1], list(request.raw_input_contents)[::-1]
    del request.inputs[:], request.raw_input_contents[:]
    request.inputs.extend(inputs)
    request.raw_input_contents.extend(raw)
    return request


def _differs(answer: pb.ModelInferResponse, reply: Reply) -> str:
    """Return the name of an output in which *reply* differs from *answer*; nothing where it doesn't."""
    if not reply.ok:
        return str(reply)
    others = {output.name: (list(output.shape), raw) for output, raw in _raw_pairs(reply.message)}
    for output, raw in _raw_pairs(answer):
        shape, other = others.get(output.name, ([], b""))
        if shape != list(output.shape) or not same_values(output.datatype, raw, other):
            return output.name
    return ""


EVERYONE = {"perf_analyzer, tritonclient, KServe clients": "get no answer"}

CHECKS = (
    Check(
        "infer-raw",
        "ModelInfer with raw inputs and named outputs",
        "perf_analyzer and tritonclient send their inputs raw.",
        EVERYONE,
        _raw,
    ),
    Check(
        "output-is-raw",
        "whether the outputs come raw",
        "Triton's clients read only raw_output_contents, though the protocol allows typed contents.",
        {
            "perf_analyzer": "ends with a segmentation fault, exit code 139",
            "tritonclient": "as_numpy raises ValueError: cannot reshape array of size 0",
        },
        _raw_outputs,
    ),
    Check(
        "output-raw-count",
        "whether each output has its entry in raw_output_contents",
        "The C++ client indexes raw_output_contents for every output, even for one that went to shared memory.",
        {
            "perf_analyzer": "ends with a segmentation fault, exit code 139",
            "tritonclient": "as_numpy raises ValueError: cannot reshape array of size 0",
        },
        _raw_count,
    ),
    Check(
        "output-sizes",
        "whether outputs are as long as their shape and as the metadata says",
        "A client makes an array of datatype and shape from the bytes.",
        {"tritonclient": "as_numpy raises"},
        _output_sizes,
    ),
    Check(
        "infer-all-outputs",
        "ModelInfer that names no outputs",
        "A request that names no outputs gets all of them.",
        {"tritonclient": "as_numpy returns None", "KServe clients": "miss outputs"},
        _all_outputs,
    ),
    Check(
        "infer-one-output",
        "ModelInfer that names the last output",
        "A request gets the outputs that it names, in its order.",
        {"tritonclient": "as_numpy returns None for what is missing, and what is too much costs time"},
        _one_output,
    ),
    Check(
        "infer-input-order",
        "ModelInfer with the inputs in another order",
        "Inputs are found by name, whatever their order; a client's is that of its own code.",
        {"tritonclient": "gets no answer, or one for exchanged inputs and no word of it"},
        _gives_same,
    ),
    Check(
        "infer-typed",
        "ModelInfer with typed inputs",
        "The protocol lets a client choose; clients that write JSON, such as grpcurl, send typed contents.",
        {"grpcurl and clients made from the protocol's own .proto": "get no answer"},
        _typed,
    ),
    Check(
        "infer-id",
        "ModelInfer with an id",
        "The answer bears its request's id.",
        {"tritonclient": "callers that match answers by get_response().id find none"},
        _id,
    ),
    Check(
        "infer-unknown-parameter",
        "ModelInfer with triton_enable_empty_final_response",
        "Every request of the C++ client carries this parameter; a server ignores what it does not know.",
        {"perf_analyzer and every C++ client": "each request fails"},
        _parameter,
    ),
    Check(
        "infer-version",
        "ModelInfer with a version",
        "A version that the metadata names can be asked for.",
        {"perf_analyzer": "-x fails or measures another version", "tritonclient": "model_version fails"},
        _version,
    ),
    Check(
        "infer-batch",
        "ModelInfer with a batch of 2",
        "A model with max_batch_size above 0 takes batches up to it.",
        {"perf_analyzer": "-b fails", "tritonclient": "batches fail"},
        _batch,
    ),
    Check(
        "infer-classification",
        "ModelInfer with the parameter `classification`",
        "The extension's result is BYTES, each value:index or value:index:label.",
        {"tritonclient": "class_count results can't be read"},
        _classification,
    ),
    Check(
        "infer-strings",
        "ModelInfer of a model that takes strings",
        "In raw BYTES each element is led by its length, as 4 little-endian bytes.",
        {"tritonclient": "as_numpy raises or gives other strings"},
        _bytes,
    ),
)
