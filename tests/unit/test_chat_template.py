from datetime import datetime

import pytest
from jinja2 import TemplateSyntaxError

from deployments.chat_template import ChatTemplate
from deployments.errors import InvalidParameter
from deployments.types import ChatMessage, ChatPrompt
from tests.factories import CHAT_TEMPLATE

NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ message['role'] }}]{{ message['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def prompt(
    *messages: tuple[str, str], add_generation_prompt: bool = True, continue_final_message: bool = False
) -> ChatPrompt:
    return ChatPrompt(
        tuple(ChatMessage(role, content) for role, content in messages),
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
    )


def render(source: str, asked: ChatPrompt, **special_tokens: str) -> str:
    return ChatTemplate(source, special_tokens, now=lambda: datetime(2024, 7, 9)).render(asked)


def test_messages_are_rendered_with_an_open_turn() -> None:
    text = render(CHAT_TEMPLATE, prompt(("system", "Be brief."), ("user", "Hi")))
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_turn_is_not_opened_unasked() -> None:
    text = render(CHAT_TEMPLATE, prompt(("user", "Hi"), add_generation_prompt=False))
    assert text == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ strftime_now('%d %b %Y') }}", "09 Jul 2024"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<é>"}'),
        ("{{ messages | tojson(indent=1) | length > 20 }}", "True"),
        ("{% if tools %}tools{% endif %}{% if documents is none %}none{% endif %}", "none"),
        ("{% for message in messages %}{% break %}{% endfor %}x", "x"),
        ("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}", "<é>"),
        (
            "{%- set ns = namespace(found=false) -%}\n{% set ns.found = true %}\n  {% if ns.found %}\nyes{% endif %}",
            "yes",
        ),
        ("{{ messages[0].name is defined }}", "False"),
    ],
)
def test_templates_find_what_they_expect(source: str, text: str) -> None:
    assert render(source, prompt(("user", "<é>")), bos_token="<s>", eos_token="</s>") == text


def test_the_name_of_a_speaker_is_passed_on() -> None:
    asked = ChatPrompt((ChatMessage("user", "Hi", name="ann"),))
    assert render("{{ messages[0].name }}", asked) == "ann"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([("system", "S"), ("user", "U")], "[user]S\n\nU[assistant]"),
        ([("system", "S"), ("system", "T"), ("user", "U")], "[user]S\n\nT\n\nU[assistant]"),
        ([("system", "S"), ("assistant", "A"), ("user", "U")], "[assistant]A[user]S\n\nU[assistant]"),
        ([("system", "S")], "[user]S[assistant]"),
    ],
)
def test_a_refused_system_text_goes_into_the_first_user_turn(messages: list[tuple[str, str]], text: str) -> None:
    assert render(NO_SYSTEM, prompt(*messages)) == text


@pytest.mark.parametrize(
    ("source", "before"),
    [(CHAT_TEMPLATE, "<|im_start|>assistant\nOnce upon "), (NO_SYSTEM, "[user]Tell[assistant]Once upon")],
)
def test_the_final_message_can_be_left_open(source: str, before: str) -> None:
    asked = prompt(
        ("user", "Tell"), ("assistant", "Once upon "), add_generation_prompt=False, continue_final_message=True
    )
    assert render(source, asked).endswith(before)


@pytest.mark.parametrize(
    ("source", "asked", "param", "message"),
    [
        (CHAT_TEMPLATE, prompt(), "messages", "at least one message"),
        (CHAT_TEMPLATE, prompt(("user", "a"), continue_final_message=True), "continue_final_message", "not both"),
        ("{{ raise_exception('roles must alternate') }}", prompt(("user", "a")), "messages", "roles must alternate"),
        ("{{ raise_exception('never') }}", prompt(("system", "a"), ("user", "b")), "messages", "never"),
        ("{{ messages[7]['role'] + 1 }}", prompt(("user", "a")), "messages", "cannot render"),
        ("{{ ''.__class__.__mro__ }}", prompt(("user", "a")), "messages", "cannot render"),
        ("{{ messages.append(1) }}", prompt(("user", "a")), "messages", "cannot render"),
        (
            "nothing of it",
            prompt(("user", "a"), add_generation_prompt=False, continue_final_message=True),
            "messages",
            "does not show the message",
        ),
    ],
)
def test_messages_that_cannot_be_rendered_are_refused(source: str, asked: ChatPrompt, param: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message) as error:
        render(source, asked)
    assert error.value.param == param


def test_a_malformed_template_is_refused_at_once() -> None:
    with pytest.raises(TemplateSyntaxError):
        ChatTemplate("{% if %}", {})
