"""Captured predictions on their way to a trainer that is there, slow, broken, or away."""

import asyncio
import contextvars
from collections import Counter

import pytest

from aimass.trainer.v1 import capture_pb2 as pb
from aimass.trainer.v1.capture_pb2_grpc import CaptureServiceStub
from gateway import capture as module
from gateway.access import UNTOLD
from gateway.capture import Answered, Capture
from gateway.capture_figures import CaptureFigures
from gateway.journal import Journal
from gateway.sampling import Dropped, Strategy
from services.common.channels import open_channel
from services.common.errors import NotReady
from services.common.identity import bind_caller
from tests.end_to_end.suite import eventually
from tests.gateway.capturing import POLICY, Trainer

MIB = 1024 * 1024


class Gateway:
    """A capture, and what it counts."""

    def __init__(self, connect, folder, **options):
        self.figures = CaptureFigures()
        options = {"max_bytes": 4 * MIB, "max_message_bytes": 4 * MIB} | options
        self.capture = Capture(connect, self.figures, Journal(folder), **options)
        self.made = 0

    def answer(self, image=b"image", model="tiny", label="red", confidence=0.9, contributor="anna"):
        """Answer one prediction as the predictor does; return its id and the decision."""
        self.made += 1
        identity = f"{self.made:032x}"
        decision = self.capture.decide(model, 3, label, confidence, lambda: len(image))
        if decision.captured:
            labels = ((label, confidence), ("blue", 1 - confidence))
            answered = Answered(identity, model, 3, 7, "sha256:spec", image, labels, contributor)
            self.capture.offer(answered, decision)
        return identity, decision

    @property
    def sums(self):
        """What the trainer would be told of version 3."""
        (count,) = self.figures.message().counts
        return count


@pytest.fixture
async def trainer():
    trainer = Trainer()
    yield trainer
    await trainer.stop()


@pytest.fixture
async def follow(trainer, monkeypatch, tmp_path):
    """A function that returns a gateway which follows the trainer's policies already."""
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.01)
    gateways, channels = [], []

    async def start(trainer_takes=4 * MIB, send_seconds=0.01, **options):
        monkeypatch.setattr(module, "SEND_SECONDS", send_seconds)
        if not channels:
            channels.append(open_channel(await trainer.start(trainer_takes)))
        gateways.append(Gateway(CaptureServiceStub(channels[-1]).Capture, tmp_path / "captured", **options))
        gateways[-1].capture.start()
        await eventually(lambda: gateways[-1].capture._samplers)
        return gateways[-1]

    yield start
    for gateway in gateways:
        await gateway.capture.close(0)
    for channel in channels:
        await channel.close()


async def test_what_was_answered_reaches_the_trainer_as_it_was(trainer, follow):
    gateway = await follow()

    identity, decision = gateway.answer(b"picture")
    await eventually(lambda: gateway.figures.queue_bytes == 0)

    (prediction,) = trainer.received
    assert decision.captured
    assert (prediction.sequence, prediction.prediction_id, prediction.image) == (1, identity, b"picture")
    assert (prediction.model, prediction.version, prediction.traffic_generation) == ("tiny", 3, 7)
    assert (prediction.preprocess_digest, prediction.contributor) == ("sha256:spec", "anna")
    assert [(each.label, pytest.approx(each.probability)) for each in prediction.labels] == [
        ("red", 0.9),
        ("blue", 0.1),
    ]
    assert (prediction.strategy, prediction.probability) == (pb.CapturedPrediction.STRATEGY_RANDOM, 1.0)
    assert prediction.time.seconds > 1_600_000_000


async def test_other_strategies_are_told_without_a_probability(trainer, follow):
    trainer.policies.policies[0].MergeFrom(pb.CapturePolicy(confidence_below=0.6, low_confidence_share=1.0))
    trainer.policies.policies[0].random_share = 0
    gateway = await follow()

    gateway.answer(confidence=0.5)
    await trainer.until(lambda: trainer.received)

    assert trainer.received[0].strategy == pb.CapturedPrediction.STRATEGY_LOW_CONFIDENCE
    assert trainer.received[0].probability == 0


async def test_nothing_is_captured_of_a_model_without_a_policy_or_before_policies_came(trainer, tmp_path):
    async with open_channel(await trainer.start()) as channel:
        gateway = Gateway(CaptureServiceStub(channel).Capture, tmp_path)
        assert not gateway.answer()[1].captured
        assert not gateway.answer(model="other")[1].captured
        assert not gateway.figures.message().counts


async def test_what_no_receipt_has_named_is_sent_again_after_a_break_and_nothing_else_is(trainer, follow):
    gateway = await follow()
    before = {gateway.answer()[0] for _ in range(5)}
    await eventually(lambda: gateway.figures.queue_bytes == 0)

    trainer.slow, trainer.break_after = True, 5 + 3
    broken = {gateway.answer()[0] for _ in range(3)}
    await trainer.until(lambda: trainer.streams == 2)
    trainer.slow = False
    after = {gateway.answer()[0] for _ in range(5)}
    await eventually(lambda: gateway.figures.queue_bytes == 0)

    assert Counter(trainer.ids) == Counter([*before, *broken, *broken, *after])
    assert gateway.sums.captured_counts == {"RANDOM": 13}
    assert len(set(trainer.gateways)) == 1


async def test_who_asks_for_a_prediction_waits_until_the_trainer_has_it(trainer, follow):
    gateway = await follow()
    trainer.slow = True
    identity, _ = gateway.answer()
    settling = asyncio.ensure_future(gateway.capture.settle(identity))
    await trainer.until(lambda: trainer.received)

    assert not settling.done()
    await trainer.release()
    await settling
    await gateway.capture.settle("another")


async def test_what_is_captured_waits_for_more_until_somebody_waits_for_it(trainer, follow):
    gateway = await follow(send_seconds=3600.0)
    gateway.answer()
    identity, _ = gateway.answer()
    await gateway.capture.settle(identity)

    assert [each.sequence for each in trainer.received] == [1, 2]


async def test_much_that_was_captured_does_not_wait_for_more(trainer, follow):
    gateway = await follow(send_seconds=3600.0, max_bytes=100)
    gateway.answer(bytes(51))
    await trainer.until(lambda: trainer.received)
    await eventually(lambda: gateway.figures.queue_bytes == 0)


async def test_nobody_waits_for_a_trainer_that_goes_away(trainer, follow):
    gateway = await follow()
    trainer.slow = True
    identity, _ = gateway.answer()
    settling = asyncio.ensure_future(gateway.capture.settle(identity))
    await trainer.until(lambda: trainer.received)

    await trainer.stop()
    with pytest.raises(NotReady, match="waits for the trainer, which is away; try again soon"):
        await settling
    await gateway.capture.settle("another")


async def test_nothing_captured_is_lost_while_the_trainer_is_away_for_a_while(trainer, follow):
    gateway = await follow()
    await trainer.stop()

    answered = {gateway.answer()[0] for _ in range(20)}
    await trainer.start()
    await eventually(lambda: gateway.figures.queue_bytes == 0)

    assert set(trainer.ids) == answered


async def test_a_queue_that_is_full_captures_no_more_and_says_why(trainer, follow):
    trainer.slow = True
    gateway = await follow(max_bytes=8)

    decisions = [gateway.answer(b"four")[1] for _ in range(3)]
    assert [each.captured for each in decisions] == [True, True, False]
    assert decisions[2].dropped is Dropped.QUEUE_FULL
    await trainer.until(lambda: len(trainer.received) == 2)
    await trainer.release()
    await eventually(lambda: gateway.figures.queue_bytes == 0)

    assert gateway.answer(b"four")[1].captured
    await eventually(lambda: gateway.figures.queue_bytes == 0)
    assert gateway.sums.captured_counts == {"RANDOM": 3}
    assert gateway.sums.dropped_counts == {"QUEUE_FULL": 1}


async def test_small_images_are_not_likelier_to_be_captured_than_large_ones(trainer, follow):
    trainer.slow = True
    gateway = await follow(max_bytes=8)

    assert [gateway.answer(image)[1].captured for image in (b"four", b"seven...", b"1")] == [True, True, False]


async def test_a_queue_that_filled_while_the_trainer_is_away_says_so(trainer, follow):
    gateway = await follow(max_bytes=8)
    await trainer.stop()
    await eventually(lambda: gateway.capture._away)

    dropped = [gateway.answer(b"four")[1].dropped for _ in range(3)]

    assert dropped == [None, None, Dropped.TRAINER_AWAY]


async def test_a_paused_policy_captures_nothing_until_it_is_lifted(trainer, follow):
    gateway = await follow()
    paused = pb.CapturePolicy()
    paused.CopyFrom(POLICY)
    paused.paused_reason = "DISK_FULL"

    await trainer.tell(paused)
    await eventually(lambda: gateway.answer()[1].dropped is Dropped.PAUSED)
    await trainer.tell(POLICY)
    await eventually(lambda: gateway.answer()[1].captured)


async def test_nothing_is_captured_of_who_sends_a_key_that_cannot_be_looked_up_yet(trainer, follow):
    gateway = await follow()
    context = contextvars.copy_context()
    context.run(bind_caller, UNTOLD)

    _, untold = context.run(gateway.answer)
    _, decision = gateway.answer()

    assert (untold.captured, untold.dropped) == (False, Dropped.TRAINER_AWAY)
    assert decision.captured
    await trainer.until(lambda: trainer.received)
    assert (gateway.sums.answered_count, dict(gateway.sums.dropped_counts)) == (2, {"TRAINER_AWAY": 1})


async def test_a_model_whose_policy_is_gone_is_captured_no_more(trainer, follow):
    gateway = await follow()

    await trainer.tell()

    await eventually(lambda: not gateway.answer()[1].captured)
    assert gateway.answer()[1].strategy is None


async def test_an_image_that_no_message_has_room_for_is_not_captured(trainer, follow):
    gateway = await follow(max_message_bytes=MIB)

    decision = gateway.answer(bytes(MIB))[1]

    assert decision.dropped is Dropped.TOO_LARGE


async def test_an_image_that_only_the_trainer_finds_too_large_does_not_hold_back_the_others(trainer, follow):
    gateway = await follow(trainer_takes=MIB)

    small = gateway.answer()[0]
    gateway.answer(bytes(2 * MIB))
    last = gateway.answer()[0]
    await eventually(lambda: gateway.figures.queue_bytes == 0)

    assert set(trainer.ids) == {small, last}
    assert gateway.sums.captured_counts == {"RANDOM": 2}
    assert gateway.sums.dropped_counts == {"TOO_LARGE": 1}


async def test_a_refused_prediction_is_counted_as_dropped_and_not_sent_again(trainer, follow):
    gateway = await follow()
    trainer.refused = {f"{2:032x}": "NOT_AN_IMAGE"}

    for _ in range(3):
        gateway.answer()
    await eventually(lambda: gateway.figures.queue_bytes == 0)

    assert set(trainer.ids.values()) == {1}
    assert gateway.sums.captured_counts == {"RANDOM": 2}
    assert gateway.sums.dropped_counts == {"NOT_AN_IMAGE": 1}


async def test_a_gateway_that_is_idle_says_that_it_lives(trainer, follow, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    gateway = await follow()
    gateway.answer()
    await trainer.until(lambda: trainer.counts and trainer.counts[0].captured_counts == {"RANDOM": 1})
    assert not gateway.figures.changed
    for _ in range(2):
        trainer.counts.clear()
        await trainer.until(lambda: trainer.counts)

    assert (trainer.counts[0].answered_count, trainer.counts[0].captured_counts) == (1, {"RANDOM": 1})


async def test_the_end_waits_for_receipts_and_tells_the_last_counts(trainer, follow):
    trainer.slow = True
    gateway = await follow()
    for _ in range(4):
        gateway.answer()
    closing = asyncio.ensure_future(gateway.capture.close(60))
    await trainer.until(lambda: len(trainer.received) == 4)
    await trainer.release()
    await closing

    (count,) = trainer.counts
    assert (count.model, count.version, count.answered_count) == ("tiny", 3, 4)
    assert count.captured_counts == {"RANDOM": 4}
    assert not gateway.answer()[1].captured


async def test_what_is_left_at_the_end_reaches_the_trainer_from_the_next_gateway(trainer, follow):
    trainer.slow = True
    gateway = await follow()
    answered = {gateway.answer()[0] for _ in range(4)}
    await trainer.until(lambda: len(trainer.received) == 4)
    await gateway.capture.close(0)
    assert not gateway.sums.dropped_counts

    trainer.slow = False
    trainer.received.clear()
    following = await follow()
    await eventually(lambda: following.figures.queue_bytes == 0)
    assert trainer.ids == Counter(answered)
    assert following.sums.captured_counts == {"RANDOM": 4}


async def test_who_asks_for_a_prediction_that_was_left_waits_until_the_trainer_has_it(trainer, follow):
    trainer.slow = True
    gateway = await follow()
    identity, _ = gateway.answer()
    await trainer.until(lambda: trainer.received)
    await gateway.capture.close(0)

    following = await follow()
    settling = asyncio.ensure_future(following.capture.settle(identity))
    await trainer.until(lambda: len(trainer.received) > 1)
    assert not settling.done()
    await trainer.release()
    await settling


async def test_what_cannot_be_understood_does_not_hold_back_what_else_was_left(trainer, follow, tmp_path):
    journal = Journal(tmp_path / "captured")
    newer = pb.CapturedPrediction(prediction_id="newer", model="tiny", strategy=99)
    good = pb.CapturedPrediction(prediction_id="good", model="tiny", strategy="STRATEGY_RANDOM")
    for sequence, data in enumerate((b"\xff no message", newer.SerializeToString(), good.SerializeToString()), 1):
        journal.append(sequence, data)
    journal.close()

    gateway = await follow()
    await gateway.capture.settle("good")

    assert set(trainer.ids) == {"good"}
    assert gateway.answer()[1].captured
    await eventually(lambda: gateway.figures.queue_bytes == 0)
    assert [path.stat().st_size for path in (tmp_path / "captured").iterdir()] == [0]


async def test_what_the_disk_does_not_take_is_answered_not_captured_and_counted(trainer, follow, tmp_path):
    (tmp_path / "captured").write_text("where the folder should be")
    gateway = await follow()
    for _ in range(3):
        gateway.answer()

    assert gateway.sums.answered_count == 3
    assert gateway.sums.dropped_counts == {"NOT_WRITTEN": 3}
    (tmp_path / "captured").unlink()
    gateway.answer()
    await eventually(lambda: gateway.sums.captured_counts == {"RANDOM": 1})


async def test_every_answer_is_captured_dropped_or_was_not_chosen(trainer, follow):
    """Through breaks, a short queue and a small budget the counts stay exact."""
    policy = trainer.policies.policies[0]
    policy.MergeFrom(pb.CapturePolicy(low_confidence_share=0.5, confidence_below=0.6))
    policy.random_share, policy.samples_per_second, policy.burst = 0.3, 200, 40
    gateway = await follow(max_bytes=60)
    decisions = []
    for turn in range(400):
        decisions.append(gateway.answer(confidence=0.5 if turn % 2 else 0.9)[1])
        if turn % 50 == 0:
            trainer.break_after = 1
        if turn % 5 == 0:
            await asyncio.sleep(0)
    await gateway.capture.close(60)

    sums = gateway.sums
    captured, dropped = sum(sums.captured_counts.values()), sum(sums.dropped_counts.values())
    assert sums.answered_count == 400
    assert captured + dropped + sum(each.strategy is None for each in decisions) == 400
    assert len(trainer.ids) == captured == sum(each.captured for each in decisions)
    assert set(sums.captured_counts) <= {*Strategy}
    assert set(sums.dropped_counts) <= {*Dropped}


async def test_a_trainer_that_takes_no_captures_changes_nothing(serve, tmp_path):
    class Nothing:
        services = collectors = ()

        async def start(self):
            """Nothing to load."""

        async def close(self):
            """Nothing to free."""

    served = await serve(lambda _stop: Nothing())
    gateway = Gateway(CaptureServiceStub(served.channel).Capture, tmp_path)
    gateway.capture.start()

    assert not gateway.answer()[1].captured
    await gateway.capture.close(60)


async def test_figures_tell_what_was_decided_dropped_and_waits(trainer, follow):
    trainer.slow = True
    gateway = await follow(max_bytes=8)
    for _ in range(3):
        gateway.answer(b"four")

    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in gateway.figures.collect()
        for sample in metric.samples
    }
    assert samples == {
        ("aimass_capture_decided_total", "tiny", "RANDOM"): 3,
        ("aimass_capture_dropped_total", "tiny", "QUEUE_FULL"): 1,
        ("aimass_capture_probability", "tiny"): 1.0,
        ("aimass_capture_queue_bytes",): 8,
    }
