"""An engine whose completions come from a function."""

from pathlib import Path

from records import BYTES_CHAT

import sampling.worker
from sampling.request import Completion, Request


class MockEngine:
    """Answers with `speak(prompt, seed)`, a text and its finish reason, in reverse order; records the requests."""

    def __init__(self, speak):
        self.speak = speak
        self.asked: list[Request] = []

    def run(self, requests):
        for request in reversed(list(requests)):
            self.asked.append(request)
            text, reason = self.speak(bytes(request.ids[1:]).decode(), request.seed)
            ids = [] if reason == "too_long" else [*text.encode(), *[0] * (reason == "stop")]
            yield Completion(request.id, ids, reason, -1.0)


def mock_model(monkeypatch, folder: Path, speak) -> MockEngine:
    """Let workers use a mock engine in place of the model in the new `folder`."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    engine = MockEngine(speak)
    monkeypatch.setattr(sampling.worker, "load_engine", lambda settings, model_dir, log: engine)
    monkeypatch.setattr(sampling.worker, "load_chat", lambda folder: BYTES_CHAT)
    return engine
