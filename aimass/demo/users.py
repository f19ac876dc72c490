"""Those who use the suite: users who send pictures and say what is wrong, a reviewer, and one who lies."""

import asyncio
import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np
from PIL import Image

from aimass.client import AsyncClient, Feedback, Prediction, PredictionError
from aimass.demo.pictures import Picture
from aimass.trainer.v1 import access_pb2, feedback_pb2
from aimass.trainer.v1.access_pb2_grpc import AccessServiceStub
from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceStub
from services.common.channels import open_channel
from services.trainer.data.cifar10 import LABELS

if TYPE_CHECKING:  # exists only for type checkers
    from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceAsyncStub

MODEL = "cifar10"
USERS = ("ada", "ben", "cleo", "dan", "eve", "finn")
LIAR = "mallory"
REVIEWER = "ruth"
CORRECTS, CONFIRMS = 0.7, 0.05
"""Shares of mistakes and of right answers that users say something of."""
LIES_PER_PICTURE = 0.15
REVIEWS_AT_ONCE = 40
REVIEW_SECONDS = 0.5
"""Between two looks at the queue."""
RETRIES, RETRY_SECONDS = 100, 0.1
"""Of what meets a process that is being started again."""
_T = TypeVar("_T")
_AWAY = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}


async def make_keys(address: str) -> dict[str, str]:
    """Give each of them a key, and return it by name; the reviewer is trusted."""
    keys = {}
    async with open_channel(address) as channel:
        access = AccessServiceStub(channel)
        for name in (*USERS, LIAR, REVIEWER):
            scopes = [access_pb2.SCOPE_PREDICT, access_pb2.SCOPE_FEEDBACK]
            request = access_pb2.CreateKeyRequest(contributor=name, scopes=scopes, trusted=name == REVIEWER)
            keys[name] = (await when_there(partial(access.CreateKey, request))).secret
    return keys


async def when_there(call: Callable[[], Awaitable[_T]]) -> _T:
    """Return what *call* does, once the gateway has found the trainer; one of them may have just started."""
    for _ in range(RETRIES):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(RETRY_SECONDS)
    return await call()


class Crowd:
    """Users who send one picture after the other, each picture twice, and say what they think of the answers.

    Args:
        address: Of the suite.
        keys: By name.
        pictures: What they have.
        per_second: Pictures.

    Attributes:
        counts: `answered`, `failed`, `retried`, `feedback`, and the states that feedback led to.
        captured: Predictions of which an answer said that they are captured.
        heard: Who was told that a word on a picture is taken in, with the SHA-256 of the picture's file.
    """

    def __init__(self, address: str, keys: dict[str, str], pictures: Sequence[Picture], per_second: float) -> None:
        self._clients = {name: AsyncClient(address, key) for name, key in keys.items() if name != REVIEWER}
        self._pictures = pictures
        self._per_second = per_second
        self._random = np.random.default_rng(0)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.captured: set[str] = set()
        self.heard: set[tuple[str, str]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Send pictures until *stop*."""
        loop = asyncio.get_running_loop()
        begin, sent = loop.time(), 0
        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                picture = self._pictures[sent // 2 % len(self._pictures)]
                tasks.create_task(self._use(picture, USERS[sent % len(USERS)]))
                if self._random.random() < LIES_PER_PICTURE:
                    tasks.create_task(self._lie(self._pictures[int(self._random.integers(len(self._pictures)))]))
                sent += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), max(0.0, begin + sent / self._per_second - loop.time()))
        for client in self._clients.values():
            await client.close()

    async def _use(self, picture: Picture, name: str) -> None:
        prediction = await self._predict(picture, name)
        if prediction is None:
            return
        wrong = prediction.label != picture.label
        if self._random.random() < (CORRECTS if wrong else CONFIRMS):
            await self._say(prediction, name, picture, picture.label)

    async def _lie(self, picture: Picture) -> None:
        """Call every automobile a ship, and everything else anything that it is not."""
        prediction = await self._predict(picture, LIAR)
        if prediction is not None:
            others = [label for label in LABELS if label != picture.label]
            lie = "ship" if picture.label == "automobile" else others[int(self._random.integers(len(others)))]
            await self._say(prediction, LIAR, picture, lie)

    async def _predict(self, picture: Picture, name: str) -> Prediction | None:
        prediction = await self._until_answered(lambda: self._clients[name].predict(picture.png, MODEL))
        if prediction is not None:
            self.counts["answered"] += 1
            if prediction.captured:
                self.captured.add(prediction.prediction_id)
        return prediction

    async def _say(self, prediction: Prediction, name: str, picture: Picture, label: str) -> None:
        """Say it, with the picture where it was not captured."""
        image = None if prediction.captured else picture.png

        async def say() -> Feedback:
            return await self._clients[name].send_feedback(prediction, label, image=image, model=MODEL)

        said = await self._until_answered(say)
        if said is not None:
            self.counts["feedback"] += 1
            self.counts[said.state] += 1
            self.heard.add((name, hashlib.sha256(picture.png).hexdigest()))

    async def _until_answered(self, call: Callable[[], Awaitable[_T]]) -> _T | None:
        """Do as every user does whose page says that the service is away for a moment: try again."""
        for _ in range(RETRIES):
            try:
                return await call()
            except PredictionError as error:
                if error.code not in _AWAY:
                    self.counts["failed"] += 1
                    self.failures.append(f"{error.code} {error.reason}: {error.message}")
                    return None
                self.counts["retried"] += 1
                await asyncio.sleep(RETRY_SECONDS)
        self.counts["failed"] += 1
        self.failures.append("the service did not come back")
        return None


class Reviewer:
    """One person who is trusted, and looks at what waits for a decision.

    Args:
        address: Of the suite.
        key: Of the reviewer.
        pictures: All that may come; a person sees what is on them.

    Attributes:
        count: Of decisions.
    """

    def __init__(self, address: str, key: str, pictures: Sequence[Picture]) -> None:
        self._address = address
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._seen = {_pixels(each.png): each.label for each in pictures}
        self.count = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Review until *stop*: first what candidate and champion differ on, then random draws."""
        async with open_channel(self._address) as channel:
            stub: FeedbackServiceAsyncStub = FeedbackServiceStub(channel)
            while not stop.is_set():
                with contextlib.suppress(grpc.aio.AioRpcError):  # a process is being started again
                    await self._review(stub, feedback_pb2.ListObservationsRequest.ORDER_DISAGREEMENT)
                    await self._review(stub, feedback_pb2.ListObservationsRequest.ORDER_DRAWN)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), REVIEW_SECONDS)

    async def _review(self, stub: "FeedbackServiceAsyncStub", order: Any) -> None:
        request = feedback_pb2.ListObservationsRequest(model=MODEL, order=order, page_size=REVIEWS_AT_ONCE // 2)
        for each in (await stub.ListObservations(request, metadata=self._metadata)).observations:
            wanted = feedback_pb2.GetObservationImageRequest(id=each.id)
            image = (await stub.GetObservationImage(wanted, metadata=self._metadata)).image
            decision = feedback_pb2.ReviewObservationRequest(id=each.id, label=self._seen[_pixels(image)])
            await stub.ReviewObservation(decision, metadata=self._metadata)
            self.count += 1


def _pixels(image: bytes) -> str:
    return hashlib.sha256(Image.open(io.BytesIO(image)).convert("RGB").tobytes()).hexdigest()


async def together(stop: asyncio.Event, *works: Coroutine[Any, Any, None], until: Coroutine[Any, Any, None]) -> None:
    """Do *works* beside *until*, and tell them to stop when that has ended."""
    async with asyncio.TaskGroup() as tasks:
        for work in works:
            tasks.create_task(work)
        try:
            await until
        finally:
            stop.set()
