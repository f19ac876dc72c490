"""What is said of answers in JSON holds for every message, whatever is in it."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from pydantic import ValidationError
from pydantic_core import to_json

from aimass.gateway.v1 import gateway_pb2
from aimass.trainer.v1 import access_pb2, capture_pb2, data_pb2, feedback_pb2, loop_pb2, training_pb2
from gateway.message_json import plain
from gateway.message_schemas import answer_model

MESSAGES = [
    getattr(module, name)
    for module in (gateway_pb2, access_pb2, capture_pb2, data_pb2, feedback_pb2, loop_pb2, training_pb2)
    for name in module.DESCRIPTOR.message_types_by_name
]


def fits(message):
    return answer_model(type(message)).model_validate_json(to_json(plain(message)), strict=True, extra="forbid")


def fill(message):
    """Put something into every field, and into those of what it holds."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            if value.message_type is not None:
                fill(getattr(message, field.name)["1"])
            else:
                getattr(message, field.name)[one_of(field.message_type.fields_by_name["key"])] = one_of(value)
        elif field.message_type is not None:
            fill(getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name))
        elif field.is_repeated:
            getattr(message, field.name).append(one_of(field))
        else:
            setattr(message, field.name, one_of(field))
    return message


def one_of(field):
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = '{"a": [1]}' if field.name.endswith("_json") else "text"
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    return 1


@pytest.mark.parametrize("message", MESSAGES, ids=lambda each: each.DESCRIPTOR.full_name)
def test_a_message_that_is_empty_and_one_that_is_full_are_as_their_schema_says(message):
    fits(message())
    fits(fill(message()))


def test_what_json_has_no_number_for_and_words_of_a_newer_trainer_are_as_the_schema_says():
    fits(loop_pb2.Cycle(stage=99, gate=loop_pb2.GateFigures(log_e=-float("inf"))))


def test_what_is_not_there_or_of_another_kind_is_against_the_schema():
    document = plain(loop_pb2.Cycle())
    model = answer_model(loop_pb2.Cycle)

    for wrong in ({"stage": "walk"}, {"number": "1"}, {"number": None}, {"gate": {}}, {"start_time": "now"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            model.model_validate_json(to_json(document | wrong), strict=True)
    with pytest.raises(ValidationError, match="reason"):
        model.model_validate({key: value for key, value in document.items() if key != "reason"})


def test_integers_tell_their_width_and_absent_messages_may_be_null():
    schema = answer_model(loop_pb2.Cycle).model_json_schema()

    assert schema["properties"]["number"]["format"] == "int64"
    assert schema["properties"]["gate"]["anyOf"] == [{"$ref": "#/$defs/GateFigures"}, {"type": "null"}]
    assert set(schema["required"]) == set(schema["properties"])
