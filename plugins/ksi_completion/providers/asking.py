"""How a conversation is said to a program that takes one text."""

import json

from ksi_completion.providers.interface import Job, ProviderFailure


def asked(job: Job) -> str:
    """Say what is new; to one that does not know the conversation, all of it. Raises ProviderFailure."""
    turns = [message for message in job.messages if message.role != "system"]
    answered = max((at + 1 for at, message in enumerate(turns) if message.role == "assistant"), default=0)
    new = "\n\n".join(message.content for message in turns[answered:])
    if not new.strip():
        raise ProviderFailure("the prompt is empty", reason="empty_prompt", kind="invalid")
    if not answered or job.provider_session is not None:
        return new
    # In JSON, where no text of a message can end it.
    lines = [json.dumps({message.role: message.content}, ensure_ascii=False) for message in turns[:answered]]
    return "\n".join(
        ["This is our conversation so far:", "", *lines, "", "Go on with it. I now say:", "", new]
    )


def told(job: Job, default: str | None = None) -> str:
    """Give what the model is told before the conversation; "" for nothing."""
    said = [message.content for message in job.messages if message.role == "system"]
    return "\n\n".join(text for text in (job.system or default, *said) if text)
