"""Which provider makes an answer, which one instead, and how many each makes at once."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack

from ksi_common.events.completion_providers import BreakerStatus, ProvidersStatus, ProviderStatus
from ksi_common.events.system import Check
from ksi_common.guessing import nearest
from ksi_completion.circuit_breakers import Candidate, CircuitBreakers
from ksi_completion.providers.interface import ANY_MODEL, CompletionProvider
from ksi_completion.routes import Routes
from ksi_daemon.plugin import FailedPrecondition, JsonValue, NotFound


class ProviderManager:
    """The providers in order of preference, and what each has at work.

    ``default``: who answers what names no provider, and nobody else, where it has the model. ``on_request``:
    those that answer only what names them. ``aliases``: names of models that stand for candidates.
    """

    def __init__(
        self,
        providers: Sequence[CompletionProvider],
        breakers: CircuitBreakers,
        *,
        default: str | None = None,
        default_model: str | None = None,
        on_request: Collection[str] = (),
        aliases: Mapping[str, Sequence[Candidate]] | None = None,
    ) -> None:
        ordered = sorted(providers, key=lambda item: item.name != default)
        self._providers: Mapping[str, CompletionProvider] = {item.name: item for item in ordered}
        self._breakers = breakers
        self._default = default
        self._default_model = default_model
        self._on_request = frozenset(on_request) - {default}
        self._aliases = aliases or {}
        self._working: Counter[str] = Counter()
        self.routes = Routes(self._aliases, breakers, self._is_usable)
        """From one model to another, where an alias stands for several."""

    def choose(self, provider: str | None, model: str | None) -> Candidate:
        """Give the names of a provider that can be used and of a model that it has.

        Raises NotFound for a name that nobody has, FailedPrecondition for a provider that is not installed.
        """
        if provider is None and model is None:
            model = self._default_model
        if (alias := self.alias_of(provider, model)) is not None:
            return self._first_of(alias)
        chosen = self._automatic(model) if provider is None else self.get(provider)
        reason = chosen.missing()
        if reason is not None:
            raise FailedPrecondition(
                f"provider {chosen.name} cannot be used: {reason}", reason="provider_missing"
            )
        return Candidate(chosen.name, chosen.models[0] if model is None else self._model(chosen, model))

    def alias_of(self, provider: str | None, model: str | None) -> str | None:
        """Give the name that stands for several models, where one is asked for, or is the default."""
        if provider is not None or self._default_takes_all:
            return None
        name = self._default_model if model is None else model
        return name if name in self._aliases else None

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
        shut = [str(candidate) for candidate, _, state in self._breakers.known() if state != "closed"]
        detail: dict[str, JsonValue] = {"configured": len(missing), "usable": list(usable)}
        detail |= {name: reason for name, reason in missing.items() if reason is not None}
        detail |= {"left_alone": list(shut)} if shut else {}
        return Check(status="healthy" if usable else "degraded", detail=detail)

    def status(self, name: str | None = None) -> ProvidersStatus:
        """Describe one provider, or all. Raises NotFound."""
        named = self._providers.values() if name is None else [self.get(name)]
        return ProvidersStatus(
            providers=[self._described(provider) for provider in named],
            aliases={alias: list(map(str, them)) for alias, them in self._aliases.items()},
        )

    async def close(self) -> None:
        """End what providers have running; one that raises keeps no other from it."""
        async with AsyncExitStack() as closing:
            for provider in self._providers.values():
                closing.push_async_callback(provider.close)

    def _described(self, provider: CompletionProvider) -> ProviderStatus:
        return ProviderStatus(
            provider=provider.name,
            missing=provider.missing(),
            is_default=provider.name == self._default,
            on_request=provider.name in self._on_request,
            models=[model for model in provider.models if model != ANY_MODEL],
            concurrency=provider.concurrency,
            working=self._working[provider.name],
            breakers=[
                BreakerStatus(
                    model=candidate.model,
                    state=state,
                    failures=breaker.failures,
                    retry_after_s=round(self._breakers.wait_s(candidate), 3),
                    reason=breaker.reason,
                    message=breaker.message,
                )
                for candidate, breaker, state in self._breakers.known()
                if candidate.provider == provider.name
            ],
        )

    @property
    def _default_takes_all(self) -> bool:
        return self._default is not None and ANY_MODEL in self.get(self._default).models

    def _is_usable(self, name: str) -> bool:
        return name in self._providers and self._providers[name].missing() is None

    def _first_of(self, alias: str) -> Candidate:
        """Give the first candidate of an alias that can be used; the first one's reason where none can."""
        reasons = []
        for candidate in self._aliases[alias]:
            reason = self.get(candidate.provider).missing()
            if reason is None:
                return candidate
            reasons.append(f"{candidate}: {reason}")
        raise FailedPrecondition(
            f"none of the models that {alias} stands for can be used: {'; '.join(reasons)}",
            reason="provider_missing",
        )

    def _automatic(self, model: str | None) -> CompletionProvider:
        if self._default is not None:
            default = self.get(self._default)
            if model is None or has_model(default.models, model):
                return default
        candidates = [one for name, one in self._providers.items() if name not in self._on_request]
        having = [one for one in candidates if model is None or has_model(one.models, model)]
        usable = [one for one in having if one.missing() is None]
        if usable or having:
            return (usable or having)[0]
        raise self._unknown_model(model or "", candidates)

    def _model(self, provider: CompletionProvider, model: str) -> str:
        if has_model(provider.models, model):
            return model
        for candidate in self._aliases.get(model, ()):
            if candidate.provider == provider.name:
                return candidate.model
        raise self._unknown_model(model, [provider])

    def _unknown_model(self, model: str, providers: Sequence[CompletionProvider]) -> NotFound:
        known = [name for provider in providers for name in provider.models if name != ANY_MODEL]
        known += self._aliases
        near = nearest(model, known)
        hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(known)}"
        return NotFound(f'no provider has the model "{model}"', hint=hint, reason="unknown_model")


def has_model(models: Sequence[str], model: str) -> bool:
    """Tell whether a provider of these models has one of that name."""
    return model in models or ANY_MODEL in models
