"""Talk with a model through the daemon: what ``chat.py`` does.

main.py        run a command line: one question, or a conversation
arguments.py   what was asked for
prompt.py      the prompt: words, what is piped in, a file where it is large
reaching.py    a daemon that answers, started where there is none
asking.py      one completion, over lost connections, and how to stop it
steps.py       what a completion tells, each thing once
answer.py      what became of it
showing.py     write it: for people, for programs
spending.py    what models were paid, in words
screen.py      the terminal and the pipes
talking.py     the conversation; commands.py: its commands; line_editor.py: its prompt
interrupts.py  Ctrl-C
sessions.py    names of sessions, and the last one
failures.py    what is said, and which exit code, when it went wrong

Nothing here imports pydantic: an answer should not wait for it.
"""
