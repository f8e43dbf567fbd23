"""Handle events from a process of your own: it may crash or hang, and the daemon will not.

.venv/bin/python examples/remote/serve.py &
ksi call words:count text="to be or not to be"
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from pydantic import Field

from ksi_client import serve
from ksi_common.errors import InvalidArgument
from ksi_common.messages import Message, Request, Stream


class Counted(Message):
    words: dict[str, int]


class Count(Request[Counted], event="words:count", safe=True):
    """Count the words of a text."""

    text: str = Field(description="What to count.", examples=["to be or not to be"])


class Word(Message):
    word: str


class Split(Stream[Word], event="words:split", safe=True):
    """Give the words of a text, one by one."""

    text: str = Field(description="What to split.", examples=["to be"])


async def count(request: Count) -> Counted:
    if not request.text.strip():
        raise InvalidArgument("there are no words in it", hint="send some text")
    return Counted(words=dict(Counter(request.text.split())))


async def split(request: Split) -> AsyncIterator[Word]:
    for word in request.text.split():
        yield Word(word=word)


if __name__ == "__main__":
    asyncio.run(
        serve(count, split, name="words", ready=lambda: print("serving words:count, words:split", flush=True))
    )
