"""Programs that hold a model's library, so that the daemon need not: each a script, in a child process.

A worker speaks JSON, one object a line, and may be at several answers at once. What it is asked, on stdin:

    -> {"do": "complete", "id": "7", "messages": [{"role": "user", "content": "Hi"}],
        "model": "m", "system": null, "max_tokens": null, "tools": [], "response_schema": null,
        "options": {}}
    -> {"do": "cancel", "id": "7"}

``id`` is the daemon's, and new each time. A cancel of what has ended is no error, and is not answered. What
it reports, on stdout:

    <- {"report": "ready"}                                       first, once it can be asked
    <- {"report": "delta", "id": "7", "text": "Hel"}             any number of them, then one of
    <- {"report": "done", "id": "7", "text": "Hello", "finish_reason": "stop", "model": "m",
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 0}, "dropped_messages": 0}
    <- {"report": "failed", "id": "7", "kind": "invalid", "reason": "context_exceeded", "message": "..."}
    <- {"report": "stopped", "id": "7"}                          the proof of a cancel

``options`` is what one kind of worker is told besides. ``done.text`` is the whole answer; ``tool_calls`` may
go with it. ``stopped`` is said when nothing works on the answer any more, not before.
``kind`` is a FailureClass of `ksi_completion.providers.interface`; ``retry_after_s`` may go with it, and the
``status`` of an HTTP answer stands for both ``kind`` and ``reason``.

A worker ends when its stdin does. One that cannot begin reports ``failed`` with ``"id": null``. One that
finds a bug in itself exits with an error and says why in its last line on stderr: the daemon starts another.

stdout is for reports alone, against libraries that print: a worker keeps it to itself and points fd 1 to
stderr. Prompts, which are secret, are never written to stderr.
"""
