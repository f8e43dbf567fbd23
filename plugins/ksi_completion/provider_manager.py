"""Which provider makes an answer, and how many it makes at once."""

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from ksi_common.events.system import Check
from ksi_completion.providers.interface import CompletionProvider
from ksi_daemon.plugin import FailedPrecondition, JsonValue, NotFound


class ProviderManager:
    """The providers in order of preference, and what each has at work.

    ``default``: who answers what names no provider, and nobody else, where it has the model. ``on_request``:
    those that answer only what names them.
    """

    def __init__(
        self,
        providers: Sequence[CompletionProvider],
        *,
        default: str | None = None,
        on_request: Collection[str] = (),
    ) -> None:
        ordered = sorted(providers, key=lambda item: item.name != default)
        self._providers: Mapping[str, CompletionProvider] = {item.name: item for item in ordered}
        self._default = default
        self._on_request = frozenset(on_request) - {default}
        self._working: Counter[str] = Counter()

    def choose(self, provider: str | None, model: str | None) -> tuple[str, str]:
        """Give the names of a provider that can be used and of a model that it has.

        Raises NotFound for a name that nobody has, FailedPrecondition for a provider that is not installed.
        """
        chosen = self._automatic(model) if provider is None else self.get(provider)
        reason = chosen.missing()
        if reason is not None:
            raise FailedPrecondition(
                f"provider {chosen.name} cannot be used: {reason}", reason="provider_missing"
            )
        return chosen.name, chosen.models[0] if model is None else self._model(chosen, model)

    def get(self, name: str) -> CompletionProvider:
        """Give a provider by name; raise NotFound with those that there are."""
        try:
            return self._providers[name]
        except KeyError:
            known = ", ".join(self._providers)
            raise NotFound(
                f'there is no provider "{name}"', hint=f"there are: {known}", reason="unknown_provider"
            ) from None

    def has_room(self, name: str) -> bool:
        """Tell whether a provider can begin another answer now."""
        return self._working[name] < self._providers[name].concurrency if name in self._providers else True

    def begin(self, name: str) -> None:
        """Count an answer that is being made."""
        self._working[name] += 1

    def end(self, name: str) -> None:
        """Count it no more."""
        self._working[name] -= 1

    def missing(self) -> Mapping[str, str | None]:
        """Say why a provider cannot be used, or None, of each that one need not ask for by name."""
        return {
            name: provider.missing()
            for name, provider in self._providers.items()
            if name not in self._on_request
        }

    def health(self) -> Check:
        """Tell which providers can be used; without any, no completion is accepted."""
        missing = self.missing()
        usable = [name for name, reason in missing.items() if reason is None]
        detail: dict[str, JsonValue] = {"configured": len(missing), "usable": list(usable)}
        detail |= {name: reason for name, reason in missing.items() if reason is not None}
        return Check(status="healthy" if usable else "degraded", detail=detail)

    async def close(self) -> None:
        """End what providers have running."""
        for provider in self._providers.values():
            await provider.close()

    def _automatic(self, model: str | None) -> CompletionProvider:
        if self._default is not None:
            default = self.get(self._default)
            if model is None or model in default.models:
                return default
        candidates = [one for name, one in self._providers.items() if name not in self._on_request]
        having = [one for one in candidates if model is None or model in one.models]
        usable = [one for one in having if one.missing() is None]
        if usable or having:
            return (usable or having)[0]
        raise self._unknown_model(model or "", candidates)

    def _model(self, provider: CompletionProvider, model: str) -> str:
        if model not in provider.models:
            raise self._unknown_model(model, [provider])
        return model

    @staticmethod
    def _unknown_model(model: str, providers: Sequence[CompletionProvider]) -> NotFound:
        known = [name for provider in providers for name in provider.models]
        near = difflib.get_close_matches(model, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(known)}"
        return NotFound(f'no provider has the model "{model}"', hint=hint, reason="unknown_model")
