"""The page of providers is true: its settings are read, its commands and its example are there."""

import re
import tomllib
from pathlib import Path

import pytest

from ksi_client.cli.install import EXTRAS
from ksi_common.errors import InvalidArgument
from ksi_completion.providers.jsonl_settings import JsonlCliSettings
from ksi_completion.settings import CompletionSettings
from ksi_daemon.settings import Settings
from requirements import install

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "providers.md").read_text()
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def read(text: str) -> CompletionSettings:
    return CompletionSettings.of(Settings.model_validate(tomllib.loads(text)))


@pytest.mark.parametrize("block", BLOCKS)
def test_the_settings_of_the_page_are_read(block: str) -> None:
    providers = read(block).providers
    assert providers != read("").providers


def test_the_example_of_the_folder_is_read() -> None:
    path = ROOT / "examples" / "providers" / "parrot.yaml"
    assert path.relative_to(ROOT).as_posix() in PAGE
    assert JsonlCliSettings.model_validate({"file": str(path)}).resume


def test_the_extras_of_the_page_can_be_installed() -> None:
    assert re.findall(r"`\./ksi install (\w+)`", PAGE) == list(EXTRAS)
    assert install.EXTRAS == EXTRAS


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[plugins.completion.providers.litelm]", "litellm"),
        ("[plugins.completion.providers.claude-cli]\nmodel = 'a'", "models"),
        (
            "[plugins.completion.providers.litellm.models.m]\nmodel = 'a'\napi_key_evn = 'sk-1'",
            "api_key_env",
        ),
    ],
)
def test_a_setting_that_is_not_there_is_refused_with_a_guess(text: str, hint: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read(text)
    assert refused.value.hint == f'did you mean "{hint}"?'

    assert "sk-1" not in str(refused.value) + str(refused.value.details)


def test_a_key_in_the_wrong_place_is_not_repeated() -> None:
    with pytest.raises(InvalidArgument) as refused:
        read("[plugins.completion.providers.litellm.models.m]\nmodel = 'a'\napi_key_file = 'sk-secret'")
    assert "api_key_file" in str(refused.value)
    assert "sk-secret" not in str(refused.value) + str(refused.value.details)


def test_a_program_cannot_take_the_name_of_a_provider_that_there_is() -> None:
    with pytest.raises(InvalidArgument, match="embedded"):
        read("[plugins.completion.providers.jsonl-cli.embedded]\ncommand = ['a']\nlines = [{ text = 't' }]")
